"""The real loop at one to three workers against a plain loop, at every one of a hundred steps, in float32.

In exact mode, which CPUs have by default, all numbers of workers give the same bits: one worker is compared with the
plain loop, the others with it, without tolerance.

The tolerances (loss 1e-6, gradient norm 1e-5) are as tight as float32 allows: regrouping a batch moves the loss by
1e-7, one lost sample of one step by 1e-5 and more. Three tests prove that they are tight enough.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from clips import ClipConfig, Manifest
from motion import motion_manifest
from parity import decode_stream, train_rank
from reference import Fault, Point, assert_same_series, reference_series, visits_of
from tubelet import audit
from tubelet.items import BatchConfig, DataConfig
from tubelet.loops import pretrain
from tubelet.optim import OptimConfig
from tubelet.recipes import Pretrain
from tubelet.run_directory import RunConfig, RunDirectory
from tubelet.schedules import ScheduleConfig
from tubelet.session import Outcome
from tubelet.timetable import TrackConfig
from videomae import MaskConfig, ModelConfig
from workers import run_group

BATCHES = {"24 in units of 4": (24, 4, 45), "40 in units of 8": (40, 8, 75)}  # size, micro, epochs
ROWS, BROKEN, HELD_OUT = 53, 7, 5


class Known(NamedTuple):
    """A run and what the plain loop makes of it."""

    recipe: Pretrain
    manifest: Manifest
    visits: list[Any]
    items: Path
    """All items of its feed."""
    series: list[Point]


class Trained(NamedTuple):
    """What a run came to: equal if every bit is."""

    series: list[Point]
    weights: str
    """Hash of the exported model."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("parity") / "videos"
    return motion_manifest(folder, training=ROWS, held_out=HELD_OUT, broken=[BROKEN])


@pytest.fixture(scope="module")
def known(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Known]:
    out: dict[str, Known] = {}
    for name, (size, micro, epochs) in BATCHES.items():
        recipe = Pretrain(
            run=RunConfig(name="parity", seed=3),
            model=ModelConfig(preset="tiny", frames=4, image_size=16, depth=2, decoder_depth=1),
            mask=MaskConfig(kind="tube", ratio=0.75),
            data=DataConfig(manifest=manifest.uri or "", clip=ClipConfig(stride=1, flip=True)),
            batch=BatchConfig(size=size, micro=micro),
            optim=OptimConfig(lr=0.008, min_lr=1e-4, clip_grad=0.1),
            schedule=ScheduleConfig(epochs=epochs, warmup_epochs=4),
            track=TrackConfig(evaluate_every=30, pictures=False),
        )
        visits = visits_of(recipe, manifest)
        items = decode_stream(recipe, tmp_path_factory.mktemp("items") / "items.pickle")
        series = reference_series(recipe, manifest, visits)
        out[name] = Known(recipe, manifest, visits, items, series)
    return out


def series_of(points: Sequence[dict[str, Any]]) -> list[Point]:
    assert [p["step"] for p in points] == list(range(1, len(points) + 1)), "each step once"
    values = [p["metrics"] for p in points]
    return [Point(v["train/loss"], v["train/grad_norm"], v.get("eval/loss")) for v in values]


def start(folder: Path, world_size: int) -> RunDirectory:
    run = RunDirectory(str(folder))
    run.begin_attempt(ray_run="none", world_size=world_size)
    return run


def trained(known: Known, world_size: int, folder: Path) -> Trained:
    run = start(folder / "run", world_size)
    results = run_group(world_size, train_rank, known.recipe, run.uri, known.items)
    assert {r["outcome"] for r in results} == {Outcome("finished", 100)}
    assert not any(r["points"] for r in results[1:]), "only rank 0 speaks"
    return Trained(series_of(results[0]["points"]), weights_of(run))


def weights_of(run: RunDirectory) -> str:
    return hashlib.sha256(Path(run.path("export", "model.safetensors")).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", BATCHES)
def test_the_reference_has_all_that_is_to_be_reproduced(known: dict[str, Known], name: str) -> None:
    """A hundred steps, a short last one, clipped and unclipped steps, clips that cannot be decoded, evaluations."""
    recipe, _, visits, _, series = known[name]
    assert len(series) == 100
    assert len(visits) % recipe.batch.size in range(1, recipe.batch.size - recipe.batch.micro)
    limit = recipe.optim.clip_grad or 0
    clipped = sum(p.grad_norm > limit for p in series)
    assert 10 < clipped < 80
    assert sum(visit[0].frames_THWC is None for visit in visits) == recipe.schedule.epochs
    assert [n for n, p in enumerate(series, start=1) if p.held_out is not None] == [30, 60, 90, 100]
    assert series[-1].loss < 0.9 * series[0].loss


@pytest.fixture(scope="module")
def alone(known: dict[str, Known], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """What one worker makes of each run in exact mode."""
    return {name: trained(known[name], 1, tmp_path_factory.mktemp("alone")) for name in BATCHES}


@pytest.mark.parametrize("name", BATCHES)
def test_one_worker_is_the_plain_loop_at_every_step(
    known: dict[str, Known], alone: dict[str, Trained], name: str
) -> None:
    assert_same_series(alone[name].series, known[name].series)


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("name", BATCHES)
def test_any_number_of_workers_has_the_bits_of_one(
    known: dict[str, Known], alone: dict[str, Trained], name: str, world_size: int, tmp_path: Path
) -> None:
    """Six units in two or three rounds, five in three or two with one idle; every loss and norm, and the weights."""
    assert trained(known[name], world_size, tmp_path) == alone[name]


@pytest.mark.parametrize("world_size", [2, 3])
def test_without_exactness_it_is_the_plain_loop_within_rounding(
    known: dict[str, Known], world_size: int, tmp_path: Path
) -> None:
    plain = known["24 in units of 4"]
    elastic = replace(plain.recipe.elastic, exact=False)
    ordinary = plain._replace(recipe=replace(plain.recipe, elastic=elastic))
    assert_same_series(trained(ordinary, world_size, tmp_path).series, plain.series)


def test_leaving_and_coming_back_in_other_numbers_has_the_bits_of_one_worker(
    known: dict[str, Known], alone: dict[str, Trained], tmp_path: Path
) -> None:
    """Two workers to step 37, three to 71, one to the end, through checkpoints; then the audit of all of it."""
    recipe, _, _, items, _ = known["24 in units of 4"]
    run, points = RunDirectory(str(tmp_path / "run")), []
    for world_size, last in ((2, 37), (3, 71), (1, None)):
        start(tmp_path / "run", world_size)
        results = run_group(world_size, train_rank, recipe, run.uri, items, last)
        assert {r["outcome"] for r in results} == {
            Outcome("stopped", last) if last else Outcome("finished", 100)
        }
        points += results[0]["points"]
    assert Trained(series_of(points), weights_of(run)) == alone["24 in units of 4"]
    assert [(a.world_size, a.step) for a in run.attempts()] == [(2, 0), (3, 37), (1, 71)]
    report = audit.verify(run, ledger=pretrain.job(recipe).plan.ledger, copies=1)
    assert report.exact, report.summary()
    assert (report.step, report.consumed) == (100, ROWS * recipe.schedule.epochs)
    assert len(report.bad) == recipe.schedule.epochs
    assert all(f"{BROKEN:06d}.mp4" in reason for reason in report.bad)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("lost_sample", "loss of step 51"),
        ("wrong_tail_count", "loss of step 100"),
        ("scaled_gradient", "norm of step 51"),
    ],
)
def test_the_comparison_would_notice(known: dict[str, Known], fault: Fault, said: str) -> None:
    recipe, manifest, visits, _, series = known["24 in units of 4"]
    faulty = reference_series(recipe, manifest, visits, fault)
    with pytest.raises(AssertionError, match=said):
        assert_same_series(faulty, series)
