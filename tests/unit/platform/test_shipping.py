import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_server import MlflowServer
from tubelet import shipping, tracking
from tubelet.refusals import TrackingError
from tubelet.shipping import Shipper
from tubelet.spool import MetricSpool, Point, points_file

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

NOBODY = "http://127.0.0.1:9"
DESCRIPTION = tracking.Description({"optim.lr": 1e-3}, manifest="m" * 64, revision="abc123")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for the whole file: creating its tables takes seconds."""
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def uri(storage: str) -> str:
    return f"sqlite:///{storage}/mlflow.db"


@pytest.fixture
def run(storage: str) -> tracking.Identity:
    return tracking.Identity("pretrain", "tiny", storage, key=uuid4().hex)


def points(first: int, last: int, *, scale: float = 1.0) -> list[Point]:
    return [{"step": step, "metrics": {"train/loss": scale / step}} for step in range(first, last)]


def write(folder: Path, run: tracking.Identity, *parts: list[Point]) -> None:
    spool = MetricSpool(folder, run.key)
    for part in parts:
        spool.append(part)
    assert spool.close()


@contextlib.contextmanager
def begun(
    uri: str, run: tracking.Identity, folder: Path, *, events: bytes | None = None
) -> Iterator[Shipper]:
    with Shipper(uri, run, folder=folder, events=lambda: events) as shipper:
        shipper.meet()
        shipper.begin(DESCRIPTION, recipe="run: {}\n")
        yield shipper


def ship(uri: str, run: tracking.Identity, folder: Path) -> Run:
    with begun(uri, run, folder) as shipper:
        assert shipper.end("FINISHED") == []
    return only_run(uri, run)


def only_run(uri: str, run: tracking.Identity) -> Run:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(f"tubelet/{run.job}")
    assert experiment is not None
    (found,) = client.search_runs(
        [experiment.experiment_id], filter_string=f"tags.`tubelet.key` = '{run.key}'"
    )
    return found


def stored(uri: str, run: tracking.Identity, name: str = "train/loss") -> list[tuple[int, float]]:
    history = MlflowClient(uri).get_metric_history(only_run(uri, run).info.run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


def expected(last: int) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in range(1, last)]


def test_every_point_arrives_once(uri: str, run: tracking.Identity, tmp_path: Path) -> None:
    write(tmp_path, run, points(1, 1300))
    found = ship(uri, run, tmp_path)
    assert stored(uri, run) == expected(1300)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "tiny"
    assert found.data.params == {"optim.lr": "0.001"}
    assert found.data.tags["tubelet.revision"] == "abc123"


def test_points_and_attempts_are_shipped_while_training_goes_on(
    uri: str, run: tracking.Identity, tmp_path: Path
) -> None:
    with begun(uri, run, tmp_path) as shipper:
        spool = MetricSpool(tmp_path, run.key)
        spool.attempt(7, step=0, workers=2)
        spool.append(points(1, 5))
        deadline = time.monotonic() + 30
        while shipper.run_id is None or stored(uri, run) != expected(5):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert only_run(uri, run).info.status == "RUNNING"
        assert shipper.end("KILLED") == []
    assert stored(uri, run, "sys/attempt") == [(0, 7)]
    assert stored(uri, run, "sys/workers") == [(0, 2)]
    found = only_run(uri, run)
    assert (found.info.status, found.data.tags["tubelet.attempt"]) == ("KILLED", "7")


def test_afterwards_the_environment_is_as_it_was(
    run: tracking.Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "6")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    with Shipper(NOBODY, run, folder=tmp_path, events=lambda: None):
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "60"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "6"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


@pytest.mark.parametrize("lost", ["nothing", "state", "folder"])
def test_a_restarted_driver_repeats_no_point(
    uri: str, run: tracking.Identity, tmp_path: Path, lost: str
) -> None:
    folder = tmp_path / "first"
    write(folder, run, points(1, 21))
    first = ship(uri, run, folder)
    if lost == "state":
        (folder / f"{run.key}.shipped.json").unlink()
    if lost == "folder":
        folder = tmp_path / "second"
    write(folder, run, points(11, 31, scale=2.0))
    again = ship(uri, run, folder)
    assert again.info.run_id == first.info.run_id
    assert stored(uri, run) == [(s, (1 if s < 21 else 2) / s) for s in range(1, 31)]


def test_a_step_with_more_metrics_than_a_request_takes_arrives(
    uri: str, run: tracking.Identity, tmp_path: Path
) -> None:
    many = {f"eval/class_{i}": float(i) for i in range(1203)}
    write(tmp_path, run, [{"step": 1, "metrics": many}])
    assert len(ship(uri, run, tmp_path).data.metrics) == 1203


def test_artifacts_and_events_are_kept_as_they_are_at_the_end(
    uri: str, run: tracking.Identity, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "loss.png").write_bytes(b"early")
    with begun(uri, run, tmp_path / "spool", events=b'{"event": "end"}\n') as shipper:
        shipper.keep_folder("pictures", pictures)
        shipper.keep_folder("none", tmp_path / "none")
        shipper.keep("quarantine/quarantine.parquet", b"bad")
        (pictures / "loss.png").write_bytes(b"late")
        shipper.keep_folder("pictures", pictures)
        assert shipper.end("FINISHED") == []
    run_id = only_run(uri, run).info.run_id
    found = Path(MlflowClient(uri).download_artifacts(run_id, "", str(tmp_path)))
    assert (found / "recipe.yaml").read_text() == "run: {}\n"
    assert (found / "events.jsonl").read_bytes() == b'{"event": "end"}\n'
    assert (found / "quarantine" / "quarantine.parquet").read_bytes() == b"bad"
    assert (found / "pictures" / "loss.png").read_bytes() == b"late"


def test_meeting_changes_nothing(uri: str, run: tracking.Identity, tmp_path: Path) -> None:
    other = tracking.Identity("unheard", "tiny", run.storage, key=run.key)
    with Shipper(uri, other, folder=tmp_path, events=lambda: None) as shipper:
        assert shipper.meet() is None
    assert MlflowClient(uri).get_experiment_by_name("tubelet/unheard") is None
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_of_the_users_is_told_before_anything_begins(
    uri: str, run: tracking.Identity, tmp_path: Path
) -> None:
    gone = tracking.Identity(run.job, run.name, run.storage, key=run.key, run_id="0123")
    wrong = {
        "ftp://host/mlflow": (run, "which is no place of MLflow's"),
        uri: (gone, r"0123 is missing at sqlite.*run\.fresh=true"),
    }
    for where, (who, words) in wrong.items():
        with (
            Shipper(where, who, folder=tmp_path, events=lambda: None) as shipper,
            pytest.raises(TrackingError, match=words),
        ):
            shipper.meet()


# --- a server that is not there --------------------------------------------------------------------


def test_a_server_that_is_down_is_not_waited_for_and_what_waits_is_told(
    uri: str,
    run: tracking.Identity,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shipping, "REFUSED_S", 1.0)
    write(tmp_path, run, points(1, 4))
    with Shipper(NOBODY, run, folder=tmp_path, events=lambda: None) as shipper:
        assert shipper.meet() == "Connection refused"
        shipper.begin(DESCRIPTION, recipe="run: {}\n")
        began = time.monotonic()
        missing = shipper.end("FINISHED")
        assert time.monotonic() - began < 10
        assert missing == ["3 points", "1 file", "its description", "its end"]
        assert shipper.trouble == "Connection refused"
        assert shipper.run_id is None
    assert caplog.text.count("MLflow does not answer, the run waits") == 1
    ship(uri, run, tmp_path)
    assert stored(uri, run) == expected(4)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    folder = tmp_path / "server"
    folder.mkdir()
    server = MlflowServer(folder)
    yield server
    server.kill()


def test_a_server_that_comes_up_after_the_start_gets_one_run_with_everything(
    server: MlflowServer,
    run: tracking.Identity,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shipping, "LONGEST_PAUSE_S", 2.0)
    folder = tmp_path / "spool"
    with Shipper(server.uri, run, folder=folder, events=lambda: b"{}\n") as shipper:
        assert shipper.meet() == "Connection refused"
        shipper.begin(DESCRIPTION, recipe="run: {}\n")
        spool = MetricSpool(folder, run.key)
        spool.attempt(1, step=0, workers=2)
        spool.append(points(1, 600))
        assert shipper.run_id is None
        server.start()
        server.wait()
        deadline = time.monotonic() + 60
        while shipper.run_id is None or stored(server.uri, run) != expected(600):
            assert time.monotonic() < deadline, caplog.text
            time.sleep(0.2)
        spool.append(points(500, 700))
        assert shipper.end("FINISHED") == []
    assert "MLflow answers again" in caplog.text
    assert stored(server.uri, run) == expected(700)
    found = only_run(server.uri, run)
    assert (found.info.status, found.data.tags["tubelet.attempt"]) == ("FINISHED", "1")
    assert found.data.params == {"optim.lr": "0.001"}
    files = MlflowClient(server.uri).list_artifacts(found.info.run_id)
    assert {file.path for file in files} == {"recipe.yaml", "events.jsonl"}


TRAINER = """
import sys, time
from tubelet import tracking
from tubelet.shipping import Shipper
from tubelet.spool import MetricSpool
uri, storage, key, folder, first, last = sys.argv[1:]
run = tracking.Identity("pretrain", "tiny", storage, key=key)
with Shipper(uri, run, folder=folder, events=lambda: None) as shipper:
    print("met", shipper.meet())
    shipper.begin(tracking.Description({}, manifest="m", revision="r"), recipe="")
    spool = MetricSpool(folder, key)
    for step in range(int(first), int(last)):
        spool.append([{"step": step, "metrics": {"train/loss": 1 / step}}])
        time.sleep(0.005)
    while shipper.run_id is None:
        time.sleep(0.2)
    print("missing", shipper.end("FINISHED", limit_s=None))
"""


def trainer(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TRAINER, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.slow  # 35 s: a server takes 12 s to start, twice
def test_every_point_survives_the_death_of_driver_and_server(
    server: MlflowServer, run: tracking.Identity, tmp_path: Path
) -> None:
    server.start()
    server.wait()
    folder = str(tmp_path / "spool")
    where = (server.uri, run.storage, run.key, folder)
    first = trainer(*where, "1", "100000")
    deadline = time.monotonic() + 120
    while not has_points(server.uri, run):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    server.kill()  # in the middle of the stream
    time.sleep(1)
    first.kill()
    first.communicate()
    done = len(points_file(folder, run.key).read_text().splitlines())
    # The next driver goes on from an older checkpoint, and the server is not up yet.
    last = done + 500
    second = trainer(*where, str(max(1, done - 50)), str(last))
    time.sleep(1)
    server.start()
    output, _ = second.communicate(timeout=180)
    assert output.splitlines()[-1] == "missing []"
    server.wait()
    assert stored(server.uri, run) == expected(last)


def has_points(uri: str, run: tracking.Identity) -> bool:
    with contextlib.suppress(ValueError, AssertionError):  # no run yet, or no experiment
        return bool(stored(uri, run))
    return False


@pytest.mark.slow  # 20 s: a server takes 12 s to start
def test_a_server_that_hangs_holds_up_neither_the_points_nor_for_long_the_end(
    server: MlflowServer,
    run: tracking.Identity,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shipping, "SILENT_S", 3.0)
    server.start()
    server.wait()
    folder = tmp_path / "spool"
    with begun(server.uri, run, folder) as shipper:
        deadline = time.monotonic() + 60
        while shipper.run_id is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        server.signal(signal.SIGSTOP)
        began = time.monotonic()
        write(folder, run, points(1, 101))
        assert time.monotonic() - began < 1
        missing = shipper.end("FINISHED")
        assert time.monotonic() - began < 15
        assert "100 points" in missing
        assert shipper.trouble == "no answer in time"
        server.signal(signal.SIGCONT)
    ship(server.uri, run, folder)
    assert stored(server.uri, run) == expected(101)
