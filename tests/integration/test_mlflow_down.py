"""A whole run while MLflow's server is down, from its first step to its last; then the server comes up.

The story is told once (the same command three times), the tests look at what it left.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

import faults
from mlflow_server import MlflowServer
from motion import motion_manifest
from tubelet.run_directory import RunDirectory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

TRAINING, HELD_OUT, EPOCHS, BATCH = 12, 4, 2, 4
STEPS = TRAINING * EPOCHS // BATCH
RECIPE = {
    "model": {"preset": "tiny", "frames": 4, "image_size": 16, "depth": 2, "decoder_depth": 1},
    "data": {"clip": {"stride": 1}},
    "batch": {"size": BATCH, "micro": 2},
    "optim": {"lr": 0.01, "precision": "float32"},
    "schedule": {"epochs": EPOCHS, "warmup_epochs": 1},
    "elastic": {"min_workers": 1, "max_workers": 1, "cpus_per_worker": 0.5},
    "checkpoint": {"every_steps": 2},
    "track": {"evaluate_every": 3},
}


@dataclass
class Story:
    """What was said by each call of the command, and what was there after the first one."""

    run: RunDirectory
    server: MlflowServer
    codes: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    finished_without: dict[str, Any] | None = None


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("down")
    manifest = motion_manifest(folder / "videos", training=TRAINING, held_out=HELD_OUT)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    command = ["tiny.yaml", f"data.manifest={manifest.uri}", f"run.storage={folder / 'runs'}"]
    (folder / "server").mkdir()
    server = MlflowServer(folder / "server")
    told = Story(RunDirectory(str(folder / "runs" / "tiny")), server)
    script = str(faults.ROOT / "jobs" / "pretrain.py")
    with faults.machine(folder) as machine:

        def call() -> None:
            driver = faults.Driver(
                machine,
                [sys.executable, script, *command],
                more={"MLFLOW_TRACKING_URI": server.uri},
            )
            told.codes.append(driver.end())
            told.said.append(driver.output)

        call()
        told.finished_without = told.run.read_json("finished.json")
        server.start()
        try:
            server.wait()
            call()
            call()
            yield told
        finally:
            server.kill()


@pytest.fixture(scope="module")
def client(story: Story) -> MlflowClient:
    return MlflowClient(story.server.uri)


@pytest.fixture(scope="module")
def tracked(story: Story, client: MlflowClient) -> Run:
    experiment = client.get_experiment_by_name("tubelet/pretrain")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def test_training_is_done_without_mlflow_and_says_what_waits(story: Story) -> None:
    said = story.said[0]
    assert story.codes[0] == 0, said
    first = next(line for line in said.splitlines() if line.startswith("note: MLflow"))
    assert first == (
        f"note: MLflow at {story.server.uri} does not answer (Connection refused); "
        f"points wait in {story.run.path('spool')} and are sent when it does"
    )
    assert f"note: MLflow at {story.server.uri} does not have everything of this run (" in said
    assert "its description, its end; Connection refused): the same command sends the rest" in said
    assert said.splitlines()[-1] == f"finished after {STEPS} steps; results in {story.run.uri}", (
        said
    )
    assert story.finished_without == {"step": STEPS, "tracked": False}
    assert "Traceback" not in said


def test_the_same_command_sends_everything_and_trains_no_more(story: Story) -> None:
    said = story.said[1]
    assert story.codes[1] == 0, said
    assert said.splitlines()[-1] == (
        f"MLflow now has everything of {story.run.uri}, finished after {STEPS} steps"
    )
    assert story.run.read_json("finished.json") == {"step": STEPS}
    assert len(story.run.attempts()) == 1


def test_then_the_run_is_finished_like_any_other(story: Story) -> None:
    assert story.codes[2] == 2
    assert story.said[2].startswith(f"error: {story.run.uri} is finished ({STEPS} steps)")


def test_one_run_has_every_point_once(client: MlflowClient, tracked: Run) -> None:
    for name, steps in (
        ("train/loss", list(range(1, STEPS + 1))),
        ("train/grad_norm", list(range(1, STEPS + 1))),
        ("eval/loss", [3, STEPS]),
        ("sys/attempt", [0]),
    ):
        history = client.get_metric_history(tracked.info.run_id, name)
        assert sorted(point.step for point in history) == steps, name


def test_the_run_has_all_that_a_run_with_a_server_has(
    story: Story, client: MlflowClient, tracked: Run
) -> None:
    assert tracked.info.status == "FINISHED"
    assert tracked.info.run_name == "tiny"
    assert tracked.data.tags["tubelet.run"] == "tiny"
    assert tracked.data.tags["tubelet.attempt"] == "1"
    assert tracked.data.params["batch.size"] == str(BATCH)
    files = {file.path for file in client.list_artifacts(tracked.info.run_id)}
    assert files == {"recipe.yaml", "events.jsonl", "pictures"}
    pictures = {file.path for file in client.list_artifacts(tracked.info.run_id, "pictures")}
    assert "pictures/loss.png" in pictures
    record = story.run.read_json("run.json")
    assert record is not None
    assert record["mlflow_run_id"] == tracked.info.run_id
