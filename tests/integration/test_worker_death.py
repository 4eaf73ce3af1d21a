"""One run through all that may happen to it: SIGTERM, a damaged checkpoint, Ctrl-C twice, SIGKILL of a worker.

The story is told once (five calls of the command), the tests look at what it left. A run that nothing ever happened to,
the plain loop of ``reference.py``, says what the curve must be.
"""

import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import faults
from clips import Manifest, read_manifest
from motion import motion_manifest
from reference import Point, assert_same_series, reference_series, visits_of
from tubelet import audit, config
from tubelet.loops import pretrain
from tubelet.recipes import Pretrain
from tubelet.run_directory import Attempt, RunDirectory, parse_name

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

TRAINING, BROKEN, HELD_OUT, EPOCHS = 42, 7, 6, 20
STEPS = 105
RECIPE = {
    "model": {"preset": "tiny", "frames": 4, "image_size": 16, "depth": 2, "decoder_depth": 1},
    "mask": {"ratio": 0.75},
    "data": {"clip": {"stride": 1, "flip": True}},
    "batch": {"size": 8, "micro": 2},
    "optim": {"lr": 0.02, "min_lr": 1e-4, "clip_grad": 0.1, "precision": "float32"},
    "schedule": {"epochs": EPOCHS, "warmup_epochs": 2},
    "elastic": {"min_workers": 2, "max_workers": 2, "cpus_per_worker": 0.5},
    "checkpoint": {"every_steps": 4},
    "track": {"evaluate_every": 30, "pictures": False},
}


@dataclass
class Start:
    """One call of the command: how it ended and what it said."""

    code: int
    output: str


@dataclass
class Story:
    """What was done to the run, in order, and what it looked like in between."""

    run: RunDirectory
    storage: Path
    recipe: Pretrain
    manifest: Manifest
    starts: dict[str, Start] = field(default_factory=dict)
    tips: dict[str, int] = field(default_factory=dict)
    """Step of the newest checkpoint after a start."""
    damaged: str = ""
    killed_in: Attempt | None = None


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("death")
    manifest = motion_manifest(
        folder / "videos", training=TRAINING, held_out=HELD_OUT, broken=[BROKEN]
    )
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    command = ["tiny.yaml", f"data.manifest={manifest.uri}", f"run.storage={folder / 'runs'}"]
    recipe = config.load(Pretrain, [folder / "tiny.yaml"], command[1:])
    told = Story(
        run=RunDirectory(str(folder / "runs" / "tiny")),
        storage=folder / "runs",
        recipe=recipe,
        manifest=read_manifest(str(manifest.uri)),
    )
    with faults.machine(folder) as machine:
        _tell(told, machine, command)
        machine.wait_until_empty()
        yield told


def _tell(told: Story, machine: faults.Machine, command: list[str]) -> None:
    run = told.run

    def start(*more: str) -> faults.Driver:
        return faults.job(machine, "pretrain", *command, *more)

    def steps_on(driver: faults.Driver, steps: int) -> None:
        """Wait until the newest attempt has committed so many steps of its own."""
        before = len(run.attempts())

        def there() -> bool:
            attempt = run.newest_attempt()
            if attempt is None or attempt.number <= before:
                return False
            mine = [parse_name(n) for n in run.committed()]
            return any(n == attempt.number and s >= attempt.step + steps for s, n in mine)

        driver.wait_for(f"{steps} steps", there)

    def end(name: str, driver: faults.Driver) -> None:
        told.starts[name] = Start(driver.end(), driver.output)
        machine.wait_until_empty()
        tip = run.resume_point(run.newest_attempt())
        told.tips[name] = tip.step if tip else 0

    driver = start()
    steps_on(driver, 8)
    driver.send(signal.SIGTERM)
    end("terminated", driver)

    end("changed model", start("model.depth=3", "model.frames=8"))

    newest = Path(run.path("checkpoints", run.committed()[-1]))
    content = bytearray((newest / "__0_0.distcp").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "__0_0.distcp").write_bytes(content)
    told.damaged = str(newest)
    driver = start()
    steps_on(driver, 8)
    driver.press_ctrl_c()
    driver.wait_for("the answer", lambda: "SIGINT: saving a checkpoint" in driver.output)
    driver.press_ctrl_c()
    end("interrupted twice", driver)

    driver = start()
    steps_on(driver, 8)
    told.killed_in = run.newest_attempt()
    faults.kill_a_worker(machine)
    end("worker killed", driver)

    end("finished", start())


@pytest.fixture(scope="module")
def reference(story: Story) -> list[Point]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    series = reference_series(story.recipe, story.manifest, visits_of(story.recipe, story.manifest))
    torch.set_num_threads(threads)
    assert len(series) == STEPS
    return series


def test_sigterm_saves_a_checkpoint_says_how_to_resume_and_exits_75(story: Story) -> None:
    start, step = story.starts["terminated"], story.tips["terminated"]
    assert start.code == 75, start.output
    assert "SIGTERM: saving a checkpoint; a second one stops at once" in start.output
    assert start.output.splitlines()[-1] == (
        f"stopped; the same command resumes {story.run.uri} at step {step}"
    )
    assert 8 <= step < STEPS
    assert "Traceback" not in start.output


def test_a_damaged_checkpoint_is_told_and_the_run_goes_on_from_the_one_before(
    story: Story,
) -> None:
    start, damaged_at = story.starts["interrupted twice"], story.tips["terminated"]
    assert (
        f"workers ended at step {damaged_at}: {story.damaged}: __0_0.distcp differ from what was committed; "
        "set aside, resuming from the checkpoint before it; starting again"
    ) in start.output.splitlines()
    (found,) = [event for event in _events(story) if event["event"] == "damaged"]
    assert story.damaged.endswith(found["checkpoint"])
    after = [a for a in story.run.attempts() if a.parent and a.step < damaged_at]
    assert after, "no attempt began before the damaged checkpoint"


def test_a_second_ctrl_c_stops_at_once_and_leaves_no_process(story: Story) -> None:
    """That none is left is waited for while the story is told."""
    start = story.starts["interrupted twice"]
    assert start.code == 75, start.output
    assert "Traceback" not in start.output
    ends = [line for line in _events(story) if line["event"] == "end"]
    assert [line["code"] for line in ends] == [75, 0], "it waited for the end after all"


def test_a_killed_worker_costs_a_restart_and_the_run_ends_by_itself(story: Story) -> None:
    start = story.starts["worker killed"]
    assert start.code == 0, start.output
    assert (
        start.output.splitlines()[-1] == f"finished after {STEPS} steps; results in {story.run.uri}"
    )
    assert story.killed_in is not None
    after = [a for a in story.run.attempts() if a.number > story.killed_in.number]
    assert after, "the fault did not fire"
    assert {a.ray_run for a in after} == {story.killed_in.ray_run}, "the driver started once"
    first = after[0]
    assert story.killed_in.step + 8 <= first.step < STEPS
    assert first.step * 8 % TRAINING, "died between two epochs, not in the middle of one"


def test_nothing_is_lost_and_nothing_repeated(story: Story) -> None:
    ledger = pretrain.job(story.recipe).plan.ledger
    report = audit.verify(story.run, ledger=ledger, copies=1)
    assert report.exact, report.summary()
    assert (report.step, report.expected, report.consumed) == (STEPS, *[TRAINING * EPOCHS] * 2)
    consumed = audit.consumed(story.run)
    columns = (consumed[name].to_pylist() for name in ("epoch", "row", "visit"))
    triples = Counter(zip(*columns, strict=True))
    rows = story.manifest.select(split="train").tolist()
    assert triples == {(epoch, row, 0): 1 for epoch in range(EPOCHS) for row in rows}
    assert len(set(consumed["attempt"].to_pylist())) >= 3, "the lineage has several attempts"
    assert len(report.bad) == EPOCHS
    assert all(reason.startswith(f"{BROKEN:06d}.mp4: ") for reason in report.bad)


def test_one_mlflow_run_holds_the_whole_curve_each_step_once(
    story: Story, reference: list[Point]
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{story.storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tubelet/pretrain")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    newest = story.run.newest_attempt()
    assert newest is not None
    assert tracked.data.tags["tubelet.attempt"] == str(newest.number)
    told = client.get_metric_history(tracked.info.run_id, "sys/attempt")
    begun = {(attempt.step, attempt.number) for attempt in story.run.attempts()}
    assert {(point.step, int(point.value)) for point in told} <= begun
    assert len(told) == len({point.step for point in told}) >= 3
    files = {file.path for file in client.list_artifacts(tracked.info.run_id)}
    assert {"recipe.yaml", "events.jsonl"} <= files
    curves: dict[str, dict[int, float]] = {}
    for name in ("train/loss", "train/grad_norm", "eval/loss"):
        history = client.get_metric_history(tracked.info.run_id, name)
        steps = [point.step for point in history]
        assert len(steps) == len(set(steps)), f"{name} has a step twice"
        curves[name] = {point.step: point.value for point in history}
    assert sorted(curves["train/loss"]) == list(range(1, STEPS + 1)), "a hole in the curve"
    assert sorted(curves["eval/loss"]) == [30, 60, 90, STEPS]
    ours = [
        Point(curves["train/loss"][s], curves["train/grad_norm"][s], curves["eval/loss"].get(s))
        for s in range(1, STEPS + 1)
    ]
    assert_same_series(ours, reference)


def test_a_run_does_not_resume_with_another_model(story: Story) -> None:
    start = story.starts["changed model"]
    assert start.code == 2, start.output
    assert f"error: {story.run.uri} was started with another recipe:" in start.output
    assert "model.depth" in start.output
    assert "model.frames" in start.output
    assert "resume.allow=[model.frames, model.depth]" in start.output
    assert "Traceback" not in start.output
    assert story.tips["changed model"] == story.tips["terminated"], "finished work stays"


def test_a_finished_run_is_left_alone(story: Story) -> None:
    start = story.starts["finished"]
    assert start.code == 2, start.output
    assert start.output.startswith(
        f"error: {story.run.uri} is finished ({STEPS} steps): choose another run.name"
    )


def test_the_terminal_shows_our_words_alone(story: Story) -> None:
    for start in story.starts.values():
        for word in ("ray::", "(pid=", "WARNING", "INFO", "raylet", "TrainController"):
            assert word not in start.output, start.output


def _events(story: Story) -> list[dict[str, Any]]:
    return story.run.events()
