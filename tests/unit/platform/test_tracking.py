import logging
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tubelet import tracking

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

RECIPE = "run:\n  storage: s3://me:pa/ss@bucket/runs?token=abc\n"
PARAMETERS = {
    "optim.lr": 1e-3,
    "data.root": "https://user:secret@host/videos?X-Amz-Signature=abc",
    "data.note": "x" * 600,
}


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for the whole file: creating its tables takes seconds."""
    return str(tmp_path_factory.mktemp("storage"))


def start(storage: str, **changes: Any) -> str:
    arguments: dict[str, Any] = dict(
        storage=storage,
        job="pretrain",
        name="tiny",
        parameters=PARAMETERS,
        recipe=RECIPE,
        manifest="m" * 64,
        revision="abc123",
    )
    return tracking.start_run(tracking.resolve_uri(storage), **(arguments | changes))


def client(storage: str) -> MlflowClient:
    return MlflowClient(tracking.resolve_uri(storage))


def test_a_local_storage_holds_its_own_store(tmp_path: Path) -> None:
    assert tracking.resolve_uri(str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking.resolve_uri(f"file://{tmp_path}") == f"sqlite:///{tmp_path}/mlflow.db"


def test_the_environment_names_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking.resolve_uri("s3://bucket/runs") == "http://mlflow:5000"
    assert tracking.resolve_uri(str(tmp_path)) == "http://mlflow:5000"


def test_a_remote_storage_without_a_server_is_the_users_mistake() -> None:
    with pytest.raises(tracking.TrackingError, match=r"s3://\*\*\*@bucket.*MLFLOW_TRACKING_URI"):
        tracking.resolve_uri("s3://key:secret@bucket/runs")


def test_a_relative_storage_is_refused() -> None:
    with pytest.raises(tracking.TrackingError, match="absolute folder here, got 'runs'"):
        tracking.resolve_uri("runs")


def test_a_run_tells_what_it_is(storage: str) -> None:
    run = client(storage).get_run(start(storage))
    experiment = client(storage).get_experiment(run.info.experiment_id)
    assert experiment.name == "tubelet/pretrain"
    assert experiment.artifact_location == f"file://{storage}/mlartifacts/tubelet/pretrain"
    assert run.info.run_name == "tiny"
    assert run.info.status == "RUNNING"
    assert run.data.tags["tubelet.run"] == "tiny"
    assert run.data.tags["tubelet.manifest"] == "m" * 64
    assert run.data.tags["tubelet.revision"] == "abc123"
    assert "tubelet.changed" not in run.data.tags
    assert run.data.params["optim.lr"] == "0.001"
    assert run.data.params["data.note"] == "x" * 500


def test_no_secret_is_written(storage: str) -> None:
    run_id = start(storage)
    run = client(storage).get_run(run_id)
    assert run.data.params["data.root"] == "https://***@host/videos?***"
    written = client(storage).download_artifacts(run_id, "recipe.yaml")
    assert Path(written).read_text() == "run:\n  storage: s3://***@bucket/runs?***\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/a b, s3://k:s/e+c@x/y", "s3://bucket/a b, s3://***@x/y"),
        ("http://token@host:5000/a?b=c d", "http://***@host:5000/a?*** d"),
        ("http://host:5000/a", "http://host:5000/a"),
        ("s3://bucket/size@2x.mp4", "s3://bucket/size@2x.mp4"),
        ("models:/name@champion", "models:/name@champion"),
        ("'sqlite:////tmp/a.db'", "'sqlite:////tmp/a.db'"),
    ],
)
def test_redaction_hides_user_and_query_and_nothing_else(text: str, expected: str) -> None:
    assert tracking.redact(text) == expected


def test_many_parameters_are_all_logged(storage: str) -> None:
    many = {f"model.key_{i}": i for i in range(230)}
    run = client(storage).get_run(start(storage, parameters=many))
    assert run.data.params == {key: str(value) for key, value in many.items()}


def claim(storage: str, key: str, *, run_id: str | None = None) -> str:
    identity = tracking.Identity("pretrain", "tiny", storage, key=key, run_id=run_id)
    return tracking.claim(client(storage), tracking.resolve_uri(storage), identity)


def describe(storage: str, run_id: str, key: str, **changes: Any) -> dict[str, str]:
    """Describe a run; returns its tags."""
    identity = tracking.Identity("pretrain", "tiny", storage, key=key)
    told: dict[str, Any] = dict(parameters=PARAMETERS, manifest="m" * 64, revision="abc123")
    tracking.describe(client(storage), run_id, identity, tracking.Description(**(told | changes)))
    return client(storage).get_run(run_id).data.tags


def test_a_run_is_found_again_by_its_key_or_its_id(storage: str) -> None:
    run_id = claim(storage, "one")
    assert claim(storage, "one") == run_id
    assert claim(storage, "other") != run_id
    assert claim(storage, "unheard of", run_id=run_id) == run_id
    assert len(with_key(storage, "one")) == 1


def with_key(storage: str, key: str) -> list[str]:
    experiment = client(storage).get_experiment_by_name("tubelet/pretrain")
    assert experiment is not None
    runs = client(storage).search_runs(
        [experiment.experiment_id], filter_string=f"tags.`tubelet.key` = '{key}'"
    )
    return [run.info.run_id for run in runs]


def test_of_two_runs_that_came_of_one_request_the_described_one_stays(storage: str) -> None:
    first = claim(storage, "twins")
    experiment = client(storage).get_run(first).info.experiment_id
    second = client(storage).create_run(experiment, tags={tracking.KEY: "twins"}).info.run_id
    describe(storage, second, "twins")
    assert claim(storage, "twins") == second
    assert with_key(storage, "twins") == [second]
    assert client(storage).get_run(first).data.tags[tracking.TWIN] == second


def test_of_two_empty_runs_the_first_stays_whoever_asks(storage: str) -> None:
    first = claim(storage, "empty")
    experiment = client(storage).get_run(first).info.experiment_id
    late = int(time.time() * 1000) + 5
    client(storage).create_run(experiment, tags={tracking.KEY: "empty"}, start_time=late)
    assert claim(storage, "empty") == first
    assert with_key(storage, "empty") == [first]


def test_what_a_later_start_changed_is_told(storage: str) -> None:
    run_id = claim(storage, "changed")
    assert "tubelet.changed" not in describe(storage, run_id, "changed")
    tags = describe(
        storage,
        run_id,
        "changed",
        parameters=PARAMETERS | {"optim.lr": 2e-3, "optim.new": 1},
        revision="def456",
    )
    run = client(storage).get_run(run_id)
    assert tags["tubelet.revision"] == "def456"
    assert tags["tubelet.changed"] == "optim.lr: 0.001 -> 0.002"
    assert (run.data.params["optim.lr"], run.data.params["optim.new"]) == ("0.001", "1")
    assert describe(storage, run_id, "changed")["tubelet.changed"] == ""


def test_a_run_begins_with_the_parameters_of_its_first_start_though_nobody_heard_them(
    storage: str,
) -> None:
    run_id = claim(storage, "late")
    later = PARAMETERS | {"optim.lr": 2e-3}
    tags = describe(storage, run_id, "late", parameters=later, began_with=PARAMETERS)
    assert client(storage).get_run(run_id).data.params["optim.lr"] == "0.001"
    assert tags["tubelet.changed"] == "optim.lr: 0.001 -> 0.002"


def test_a_run_that_is_not_in_the_store_cannot_be_continued(storage: str) -> None:
    with pytest.raises(tracking.TrackingError, match=r"0123 is missing at sqlite.*run\.fresh=true"):
        claim(storage, "none", run_id="0123")


def test_a_deleted_run_cannot_be_continued(storage: str) -> None:
    run_id = start(storage)
    client(storage).delete_run(run_id)
    with pytest.raises(tracking.TrackingError, match=f"{run_id} is deleted"):
        claim(storage, "none", run_id=run_id)


def test_a_deleted_experiment_is_told(storage: str) -> None:
    run_id = start(storage, job="gone")
    client(storage).delete_experiment(client(storage).get_run(run_id).info.experiment_id)
    with pytest.raises(tracking.TrackingError, match=r"'tubelet/gone' .* was deleted: restore it"):
        start(storage, job="gone")


def test_artifacts_are_copied(storage: str, tmp_path: Path) -> None:
    (tmp_path / "loss.png").write_bytes(b"png")
    run_id, uri = start(storage), tracking.resolve_uri(storage)
    assert tracking.log_artifacts(uri, run_id=run_id, folder=tmp_path, path="pictures")
    assert [f.path for f in client(storage).list_artifacts(run_id, "pictures")] == [
        "pictures/loss.png"
    ]
    with pytest.raises(FileNotFoundError, match="no folder"):
        tracking.log_artifacts(uri, run_id=run_id, folder=tmp_path / "none")


def test_a_dead_server_stops_the_start_and_not_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    uri = "http://user:secret@127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    began = time.monotonic()
    with pytest.raises(tracking.TrackingError, match=r"MLflow at http://\*\*\*@127") as caught:
        start(str(tmp_path))
    assert "secret" not in str(caught.value)
    with caplog.at_level(logging.WARNING):
        assert not tracking.finish_run(uri, run_id="0123", status="FINISHED")
        assert not tracking.log_artifacts(uri, run_id="0123", folder=tmp_path)
    assert "setting run 0123 to FINISHED failed at http://***@127.0.0.1:9" in caplog.text
    assert "secret" not in caplog.text
    assert time.monotonic() - began < 30
