import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_server import MlflowServer
from tubelet.spool import MetricSpool, Point

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def run_id(uri: str) -> str:
    return new_run(uri)


def new_run(uri: str) -> str:
    client = MlflowClient(uri)
    return client.create_run("0").info.run_id


def points(first: int, last: int, *, scale: float = 1.0) -> list[Point]:
    return [{"step": step, "metrics": {"train/loss": scale / step}} for step in range(first, last)]


def stored(uri: str, run_id: str, name: str = "train/loss") -> list[tuple[int, float]]:
    history = MlflowClient(uri).get_metric_history(run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


def expected(last: int) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in range(1, last)]


def test_every_point_arrives_once(uri: str, run_id: str, tmp_path: Path) -> None:
    spool = MetricSpool(uri, run_id, tmp_path / "spool")
    for point in points(1, 1300):
        spool.append([point])
    assert spool.close(timeout=30)
    assert stored(uri, run_id) == expected(1300)


def test_a_closed_spool_leaves_the_environment_as_it_was(
    run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "6")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    spool = MetricSpool(NOBODY, run_id, tmp_path)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "5"
    spool.close(timeout=0)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "6"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_points_are_shipped_while_training_goes_on(uri: str, run_id: str, tmp_path: Path) -> None:
    spool = MetricSpool(uri, run_id, tmp_path)
    spool.append(points(1, 5))
    deadline = time.monotonic() + 30
    while stored(uri, run_id) != expected(5):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert spool.close()


def test_rolled_back_steps_leave_no_second_point(uri: str, run_id: str, tmp_path: Path) -> None:
    spool = MetricSpool(uri, run_id, tmp_path)
    spool.append(points(1, 21))
    spool.append(points(11, 31, scale=2.0))
    spool.append([{"step": 20, "metrics": {"train/loss": 9.0, "eval/loss": 5.0}}])
    assert spool.close(timeout=30)
    kept = [(step, (1 if step < 21 else 2) / step) for step in range(1, 31)]
    assert stored(uri, run_id) == kept
    assert stored(uri, run_id, "eval/loss") == [(20, 5.0)]


@pytest.mark.parametrize("lost", ["nothing", "state", "folder"])
def test_a_restarted_controller_repeats_no_point(
    uri: str, run_id: str, tmp_path: Path, lost: str
) -> None:
    folder = tmp_path / "first"
    first = MetricSpool(uri, run_id, folder)
    first.append(points(1, 21))
    assert first.close(timeout=30)
    if lost == "state":
        (folder / f"{run_id}.shipped.json").unlink()
    if lost == "folder":
        folder = tmp_path / "second"
    again = MetricSpool(uri, run_id, folder)
    again.append(points(11, 31, scale=2.0))
    assert again.close(timeout=30)
    assert stored(uri, run_id) == [(s, (1 if s < 21 else 2) / s) for s in range(1, 31)]


def test_what_one_controller_could_not_ship_the_next_one_does(
    uri: str, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = MetricSpool(NOBODY, run_id, tmp_path)
    began = time.monotonic()
    for point in points(1, 1001):
        first.append([point])
    assert time.monotonic() - began < 1
    assert not first.close(timeout=0.5)
    assert time.monotonic() - began < 10
    assert "MLflow does not have every point" in caplog.text
    again = MetricSpool(uri, run_id, tmp_path)
    again.append(points(901, 1101))
    assert again.close(timeout=30)
    assert stored(uri, run_id) == expected(1101)


def test_a_line_that_a_kill_cut_off_is_not_a_point(uri: str, run_id: str, tmp_path: Path) -> None:
    first = MetricSpool(NOBODY, run_id, tmp_path)
    first.append(points(1, 4))
    first.close(timeout=0)
    with (tmp_path / f"{run_id}.jsonl").open("ab") as file:
        file.write(b'{"t": 1, "s": 4, "m": {"train/lo')
    again = MetricSpool(uri, run_id, tmp_path)
    again.append(points(3, 7))
    assert again.close(timeout=30)
    assert stored(uri, run_id) == expected(7)


def test_a_line_that_a_power_cut_spoilt_is_told_and_passed(
    uri: str, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"{run_id}.jsonl").write_bytes(b"\0\0\0\0\n")
    (tmp_path / f"{run_id}.shipped.json").write_bytes(b"")
    spool = MetricSpool(uri, run_id, tmp_path)
    spool.append(points(1, 4))
    assert spool.close(timeout=30)
    assert stored(uri, run_id) == expected(4)
    assert "unreadable line in the metric spool" in caplog.text


def test_non_finite_values_are_counted_at_their_step(uri: str, run_id: str, tmp_path: Path) -> None:
    spool = MetricSpool(uri, run_id, tmp_path)
    bad = {"train/loss": float("nan"), "train/norm": float("inf"), "train/lr": 1e-3}
    spool.append([*points(1, 3), {"step": 3, "metrics": bad}, *points(4, 5)])
    spool.append([{"step": 3, "metrics": bad}])
    assert spool.close(timeout=30)
    assert [step for step, _ in stored(uri, run_id)] == [1, 2, 4]
    assert stored(uri, run_id, "train/norm") == []
    assert stored(uri, run_id, "train/lr") == [(3, 1e-3)]
    assert stored(uri, run_id, "sys/nonfinite") == [(3, 2.0)]


def test_a_name_that_mlflow_refuses_does_not_hold_up_the_rest(
    uri: str, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = MetricSpool(uri, run_id, tmp_path)
    spool.append([{"step": 1, "metrics": {"train/loss": 1.0, "top-1 [%]": 2.0}}])
    assert spool.close(timeout=30)
    assert stored(uri, run_id) == [(1, 1.0)]
    assert "'top-1 [%]' is not one that MLflow takes" in caplog.text


def test_a_step_with_more_metrics_than_a_request_takes_arrives(
    uri: str, run_id: str, tmp_path: Path
) -> None:
    spool = MetricSpool(uri, run_id, tmp_path)
    spool.append([{"step": 1, "metrics": {f"eval/class_{i}": float(i) for i in range(1203)}}])
    assert spool.close(timeout=30)
    assert len(MlflowClient(uri).get_run(run_id).data.metrics) == 1203


def test_points_wait_in_memory_while_the_disk_refuses_them(
    uri: str, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "spool"
    folder.write_text("a file where the folder should be")
    spool = MetricSpool(uri, run_id, folder)
    spool.append(points(1, 4))
    assert "points wait in memory" in caplog.text
    folder.unlink()
    spool.append(points(4, 6))
    assert spool.close(timeout=30)
    assert stored(uri, run_id) == expected(6)


def test_points_that_the_disk_never_took_are_not_called_shipped(
    uri: str, run_id: str, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    folder.write_text("a file where the folder should be")
    spool = MetricSpool(uri, run_id, folder)
    spool.append(points(1, 4))
    assert not spool.close(timeout=5)


FULL_DISK = """
import resource, signal, sys
from tubelet.spool import MetricSpool
uri, run_id, folder = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = MetricSpool(uri, run_id, folder)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
for step in range(1, 101):
    spool.append([{"step": step, "metrics": {"train/loss": 1 / step}}])
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
spool.append([{"step": 101, "metrics": {"train/loss": 1 / 101}}])
spool.close(timeout=0)
"""


def test_a_disk_that_fills_up_in_the_middle_of_a_line_spoils_none(
    uri: str, run_id: str, tmp_path: Path
) -> None:
    python(FULL_DISK, NOBODY, run_id, str(tmp_path)).communicate(timeout=60)
    lines = [json.loads(line) for line in (tmp_path / f"{run_id}.jsonl").read_text().splitlines()]
    assert [line["s"] for line in lines] == list(range(1, 102))


# --- a real server that dies -------------------------------------------------------------------

TRAINER = """
import sys, time
from tubelet.spool import MetricSpool
uri, run_id, folder, first, last = sys.argv[1:]
spool = MetricSpool(uri, run_id, folder)
for step in range(int(first), int(last)):
    spool.append([{"step": step, "metrics": {"train/loss": 1 / step}}])
    time.sleep(0.005)
print("closed", spool.close(timeout=60))
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    folder = tmp_path / "server"
    folder.mkdir()
    server = MlflowServer(folder)
    yield server
    server.kill()


@pytest.mark.slow  # 35 s: a server takes 12 s to start, twice
def test_every_point_survives_the_death_of_trainer_and_server(
    server: MlflowServer, tmp_path: Path
) -> None:
    server.start()
    server.wait()
    run_id = new_run(server.uri)
    spool = str(tmp_path / "spool")
    lines = tmp_path / "spool" / f"{run_id}.jsonl"
    first = python(TRAINER, server.uri, run_id, spool, "1", "100000")
    while not stored(server.uri, run_id):
        assert first.poll() is None
        time.sleep(0.1)
    server.kill()  # in the middle of the stream
    time.sleep(1)
    first.kill()
    first.communicate()
    done = len(lines.read_text().splitlines())
    server.start()
    # The next trainer goes on from an older checkpoint, and the server is not up yet.
    last = done + 500
    second = python(TRAINER, server.uri, run_id, spool, str(max(1, done - 50)), str(last))
    output, _ = second.communicate(timeout=120)
    assert output == "closed True\n"
    server.wait()
    assert stored(server.uri, run_id) == expected(last)
