"""Fine-tuning with everything random in it: the same bits at one, two and three workers, through leaving and dying.

RandAugment, random crops, erasing, mixing, drop path, dropout, weighted classes, averaged weights, two copies of a
visit, and a video that cannot be decoded: all of it at once, so that nothing can depend on who computed what.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from motion import motion_manifest
from parity import decode_stream, train_rank
from tubelet import audit
from tubelet.config import load
from tubelet.loops import finetune
from tubelet.recipes import Finetune
from tubelet.run_directory import RunDirectory
from tubelet.session import Outcome
from workers import run_group

ROWS, BROKEN, STEPS = 26, 5, 20
OVERRIDES = (
    "run.name=parity",
    "run.seed=3",
    *("model.preset=tiny", "model.frames=4", "model.image_size=16", "model.depth=2"),
    *("model.drop_path=0.3", "head.dropout=0.2", "head.init_scale=1.0", "labels.balance=0.9"),
    *(
        "data.copies=2",
        "data.clip.stride=1",
        "data.clip.sampling=window",
        "data.clip.same_frames=true",
    ),
    *("data.clip.crop=random_resized", "data.clip.rand_augment=rand-m7-n4-mstd0.5-inc1"),
    *("augment.erase=0.5", "augment.mixup=0.8", "augment.cutmix=1.0"),
    *("batch.size=8", "batch.micro=2", "schedule.epochs=6", "schedule.warmup_epochs=1"),
    *("optim.lr=0.02", "optim.min_lr=0", "optim.layer_decay=0.7", "optim.ema=0.8"),
    *("optim.clip_grad=0.5", "optim.beta2=0.999"),
    *("track.evaluate_every=7", "track.pictures=false", "checkpoint.export_best=true"),
)

pytestmark = pytest.mark.slow


class Known(NamedTuple):
    recipe: Finetune
    items: Path


class Trained(NamedTuple):
    """What a run came to: equal if every bit is."""

    series: list[dict[str, float]]
    models: dict[str, str]
    """Hash of each exported model."""


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    folder = tmp_path_factory.mktemp("parity")
    manifest = motion_manifest(folder / "v", training=ROWS, held_out=5, broken=[BROKEN])
    recipe = load(Finetune, [], [*OVERRIDES, f"data.manifest={manifest.uri}"])
    return Known(recipe, decode_stream(recipe, folder / "items.pickle"))


def train(known: Known, run: RunDirectory, world_size: int, **options: Any) -> list[dict[str, Any]]:
    run.begin_attempt(ray_run="none", world_size=world_size)
    results = run_group(world_size, train_rank, known.recipe, run.uri, known.items, **options)
    return results


def result(run: RunDirectory, points: list[dict[str, Any]]) -> Trained:
    assert [p["step"] for p in points] == list(range(1, STEPS + 1)), "each step once"
    kept = ("train/", "eval/")
    series = [{n: v for n, v in p["metrics"].items() if n.startswith(kept)} for p in points]
    models = {
        place: hashlib.sha256(
            Path(run.path("export", place, "model.safetensors")).read_bytes()
        ).hexdigest()
        for place in ("", "ema", "best")
    }
    return Trained(series, models)


@pytest.fixture(scope="module")
def alone(known: Known, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    run = RunDirectory(str(tmp_path_factory.mktemp("alone") / "run"))
    (done,) = train(known, run, 1)
    assert done["outcome"] == Outcome("finished", STEPS)
    return result(run, done["points"])


def test_the_run_has_all_that_is_to_be_reproduced(known: Known, alone: Trained) -> None:
    evaluated = [n for n, point in enumerate(alone.series, start=1) if "eval/ema_top1" in point]
    assert evaluated == [7, 14, STEPS]
    assert len(set(alone.models.values())) == 3
    plan = finetune.job(known.recipe).plan
    assert plan.ledger.steps == STEPS
    assert plan.ledger.visits % known.recipe.batch.size, "the last step is padded"


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_workers_has_the_bits_of_one(
    known: Known, alone: Trained, world_size: int, tmp_path: Path
) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    assert result(run, train(known, run, world_size)[0]["points"]) == alone


def test_dying_twice_and_leaving_once_in_other_numbers_has_the_bits_of_an_untroubled_run(
    known: Known, alone: Trained, tmp_path: Path
) -> None:
    run, points = RunDirectory(str(tmp_path / "run")), {}
    checkpoint = replace(known.recipe.checkpoint, every_steps=3, background=False)
    saving = known._replace(recipe=replace(known.recipe, checkpoint=checkpoint))
    for world_size, options in (
        (1, {"die_after": 5}),
        (2, {"stop_after": 11}),
        (1, {"die_after": 16}),
        (3, {}),
    ):
        reported = train(saving, run, world_size, report_every_s=0.0, **options)[0]["points"]
        points |= {p["step"]: p for p in reported}
    assert result(run, [points[step] for step in sorted(points)]) == alone
    assert [(a.world_size, a.step) for a in run.attempts()] == [(1, 0), (2, 3), (1, 11), (3, 15)]
    report = audit.verify(run, ledger=finetune.job(known.recipe).plan.ledger, copies=2)
    assert report.exact, report.summary()
    assert len(report.bad) == 2 * known.recipe.schedule.epochs


@pytest.mark.parametrize("changed", ["augment.erase=0", "augment.mixup=0", "labels.balance=null"])
def test_the_comparison_would_notice(
    known: Known, alone: Trained, changed: str, tmp_path: Path
) -> None:
    """Each of what was switched on is seen in the very first step."""
    recipe = load(
        Finetune, [], [*OVERRIDES, changed, f"data.manifest={known.recipe.data.manifest}"]
    )
    run = RunDirectory(str(tmp_path / "run"))
    (done,) = train(known._replace(recipe=recipe), run, 1, stop_after=3)
    ours = [point["metrics"]["train/loss"] for point in done["points"]]
    assert ours != [point["train/loss"] for point in alone.series[:3]]
