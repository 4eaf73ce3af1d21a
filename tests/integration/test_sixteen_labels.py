"""Fine-tuning from a pretrained encoder with sixteen labels a class, untroubled and through faults.

The demo's videos and pretraining, then the recipe twice: once left alone, once with a worker killed twice and the run
stopped and gone on with two workers. The model names nine of ten held-out videos, and both runs have the same bits.
Takes minutes: most of it is the pretraining.
"""

import hashlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import faults
from clips import Manifest, write_manifest
from clips.synthetic import write_videos
from tubelet import audit, config
from tubelet.demo.stages import Motion
from tubelet.loops import finetune
from tubelet.recipes import Finetune
from tubelet.run_directory import RunDirectory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

RECIPES = faults.ROOT / "jobs" / "recipes" / "demo"
LEAST = 0.9
_PATIENCE_S = 1800.0


@dataclass
class Story:
    """Both runs, and how the troubled one was troubled."""

    untroubled: RunDirectory
    troubled: RunDirectory
    recipe: Finetune
    codes: list[int] = field(default_factory=list)
    killed_in: list[int] = field(default_factory=list)
    """Numbers of the attempts that lost a worker."""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("sixteen")
    manifest = videos(folder / "videos")
    more = [f"data.manifest={manifest}", f"run.storage={folder / 'runs'}", "track.pictures=false"]
    alone = ["elastic.min_workers=1", "elastic.max_workers=1"]
    tuning = [str(RECIPES / "finetune_16_labels.yaml"), *more]
    tuning += [f"head.init={folder / 'runs' / 'pretrain'}", "checkpoint.every_steps=20"]
    recipe = config.load(Finetune, [RECIPES / "finetune_16_labels.yaml"], tuning[1:])
    left, troubled = (RunDirectory(str(folder / "runs" / n)) for n in ("left", "troubled"))
    told = Story(left, troubled, recipe)
    with faults.machine(folder) as machine:

        def end(driver: faults.Driver) -> None:
            told.codes.append(driver.end(timeout_s=_PATIENCE_S))
            assert told.codes[-1] in (config.DONE, config.INTERRUPTED), driver.output
            machine.wait_until_empty()

        end(faults.job(machine, "pretrain", str(RECIPES / "pretrain.yaml"), *more))
        end(faults.job(machine, "finetune", *tuning, *alone, "run.name=left"))

        driver = faults.job(machine, "finetune", *tuning, *alone, "run.name=troubled")
        for attempt in (1, 2):
            steps_on(troubled, driver, attempt, steps=40)
            told.killed_in.append(len(troubled.attempts()))
            faults.kill_a_worker(machine)
        steps_on(troubled, driver, 3, steps=40)
        driver.send(signal.SIGTERM)
        end(driver)
        two = ["elastic.min_workers=2", "elastic.max_workers=2"]
        end(faults.job(machine, "finetune", *tuning, *two, "run.name=troubled"))
        yield told


def videos(folder: Path) -> str:
    """The demo's, with a manifest; returns its path."""
    motion = Motion()
    sides = {"train": range(motion.training)}
    sides["val"] = range(motion.training, motion.training + motion.held_out)
    for side, numbers in sides.items():
        write_videos(
            folder / side, numbers, seed=motion.seed, config=motion.config, class_folders=True
        )
    rows = [
        {
            "video_id": str(path.relative_to(folder)),
            "size": path.stat().st_size,
            "label": path.parent.name,
            "split": path.parts[-3],
        }
        for path in folder.rglob("*.mp4")
    ]
    return str(write_manifest(Manifest.build(rows, root=str(folder)), f"{folder}.parquet").uri)


def steps_on(run: RunDirectory, driver: faults.Driver, attempt: int, *, steps: int) -> None:
    """Wait until an attempt has come so far beyond its beginning."""

    def there() -> bool:
        newest = run.newest_attempt()
        tip = run.resume_point(newest)
        if newest is None or newest.number != attempt or tip is None:
            return False
        return tip.step >= newest.step + steps

    driver.wait_for(f"{steps} steps of attempt {attempt}", there, timeout_s=_PATIENCE_S)


def test_nine_of_ten_held_out_videos_are_named(story: Story) -> None:
    run = story.untroubled
    last = run.commit(run.committed()[-1])
    (top1,) = [p["metrics"]["eval/top1"] for p in last.points if p["step"] == last.step]
    print(f"top-1 of {story.recipe.data.held_out_clips} held-out videos: {100 * top1:.1f} %")
    assert top1 >= LEAST


def test_the_troubled_run_was_killed_twice_and_resized_once(story: Story) -> None:
    assert story.codes == [config.DONE, config.DONE, config.INTERRUPTED, config.DONE]
    attempts = story.troubled.attempts()
    assert story.killed_in == [1, 2]
    assert [a.world_size for a in attempts] == [1, 1, 1, 2]
    assert 0 < attempts[1].step < attempts[2].step < attempts[3].step


def test_both_runs_have_the_same_bits(story: Story) -> None:
    weights = [
        hashlib.sha256(Path(run.path("export", "model.safetensors")).read_bytes()).hexdigest()
        for run in (story.untroubled, story.troubled)
    ]
    assert weights[0] == weights[1]
    report = audit.verify(story.troubled, ledger=finetune.job(story.recipe).plan.ledger, copies=2)
    assert report.exact, report.summary()
