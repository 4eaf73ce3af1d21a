"""What the loop leaves behind: points in reports and commits, checkpoints, exports; what an explosion does to it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from clips import ClipConfig
from motion import motion_manifest
from parity import decode_stream, train_rank
from tubelet import quarantine
from tubelet.checkpoint import CheckpointConfig
from tubelet.items import BatchConfig, DataConfig
from tubelet.optim import OptimConfig
from tubelet.recipes import Pretrain
from tubelet.run_directory import RunConfig, RunDirectory, checkpoint_name
from tubelet.schedules import ScheduleConfig
from tubelet.session import Outcome
from tubelet.timetable import TrackConfig
from videomae import MaskConfig, ModelConfig, load_export
from workers import run_group


class Small(NamedTuple):
    recipe: Pretrain
    items: Path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Twenty steps of two units, with an evaluation after every eighth."""
    folder = tmp_path_factory.mktemp("optimise")
    manifest = motion_manifest(folder / "videos", training=20, held_out=3)
    recipe = Pretrain(
        run=RunConfig(name="small", seed=1),
        model=ModelConfig(preset="tiny", frames=2, image_size=16, depth=1, decoder_depth=1),
        mask=MaskConfig(ratio=0.75),
        data=DataConfig(manifest=manifest.uri or "", clip=ClipConfig(stride=1)),
        batch=BatchConfig(size=4, micro=2),
        optim=OptimConfig(lr=0.01, min_lr=0.0),
        schedule=ScheduleConfig(epochs=4, warmup_epochs=0),
        track=TrackConfig(evaluate_every=8, pictures=False),
    )
    return Small(recipe, decode_stream(recipe, folder / "items.pickle"))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(str(tmp_path / "run"))


def train(
    small: Small, run: RunDirectory, *, save_every: int | None = None, **options: Any
) -> dict[str, Any]:
    """Begin an attempt of one worker and run it; one that is to die waits for its saves, to be the same each time."""
    run.begin_attempt(ray_run="ray", world_size=1)
    best = small.recipe.checkpoint.export_best
    recipe = replace(
        small.recipe,
        checkpoint=CheckpointConfig(
            every_steps=save_every, background="die_after" not in options, export_best=best
        ),
    )
    return run_group(1, train_rank, recipe, run.uri, small.items, **options)[0]


def steps_of(run: RunDirectory, step: int, attempt: int) -> list[int]:
    return [p["step"] for p in run.commit(checkpoint_name(step, attempt)).points]


def test_each_step_is_reported_once_with_evaluations_at_their_steps(
    small: Small, run: RunDirectory
) -> None:
    done = train(small, run, report_every_s=0.0)
    assert done["outcome"] == Outcome("finished", 20)
    assert done["reports"] == [[step] for step in range(1, 21)]
    evaluated = [p["step"] for p in done["points"] if "eval/loss" in p["metrics"]]
    assert evaluated == [8, 16, 20]
    assert set(done["points"][0]["metrics"]) == {
        "train/loss",
        "train/grad_norm",
        "train/lr",
        "train/weight_decay",
        "data/valid_clips",
        "data/clips_per_s",
        "data/wait",
        "data/decode_ms_per_clip",
        "data/bytes_per_clip",
        "data/requests_per_clip",
    }


def test_a_commit_carries_all_that_was_never_reported(small: Small, run: RunDirectory) -> None:
    """Checkpoints may come faster than reports: the newest alone must close the gap after a death."""
    died = train(small, run, save_every=2, die_after=9, report_every_s=1e6)
    assert (died["outcome"], died["reports"]) == (None, [])
    assert run.committed()[-1] == checkpoint_name(8, 1)
    assert steps_of(run, 8, 1) == list(range(1, 9))


def test_a_commit_carries_the_last_two_reports_which_may_be_lost_with_the_workers(
    small: Small, run: RunDirectory
) -> None:
    train(small, run, save_every=1, die_after=9, report_every_s=0.0)
    assert steps_of(run, 9, 1) == [7, 8, 9]
    assert steps_of(run, 8, 1) == [6, 7, 8]


def test_a_commit_carries_everything_since_the_one_before(small: Small, run: RunDirectory) -> None:
    """So that a driver on another machine, without the spool, has what the store has not."""
    train(small, run, save_every=6, die_after=13, report_every_s=0.0)
    assert steps_of(run, 12, 1) == [*range(7, 13)]


@pytest.mark.parametrize("report_every_s", [0.0, 1e6])
@pytest.mark.parametrize("save_every", [1, 3, 7])
def test_reports_and_the_parents_commit_leave_no_hole_in_the_curve(
    small: Small, run: RunDirectory, save_every: int, report_every_s: float
) -> None:
    """Even when the last two reports before a death went unread."""
    died = train(small, run, save_every=save_every, die_after=11, report_every_s=report_every_s)
    known = {step for report in died["reports"][:-2] for step in report}
    parent = run.resume_point(run.newest_attempt())
    assert parent is not None
    known |= {p["step"] for p in parent.points}
    again = train(small, run, save_every=save_every, report_every_s=report_every_s)
    known |= {p["step"] for p in again["points"]}
    assert known == set(range(1, 21))


def test_a_run_that_died_resumes_with_the_numbers_it_would_have_had(
    small: Small, run: RunDirectory, tmp_path: Path
) -> None:
    whole = train(small, RunDirectory(str(tmp_path / "whole")))
    train(small, run, save_every=4, die_after=11)
    resumed = train(small, run)
    assert [p["step"] for p in resumed["points"]] == list(range(9, 21))
    for ours, expected in zip(resumed["points"], whole["points"][8:], strict=True):
        for name in ("train/loss", "train/grad_norm", "train/lr", "data/valid_clips"):
            assert ours["metrics"][name] == expected["metrics"][name], name
    ours, expected = (load_export(Path(f) / "export") for f in (run.uri, tmp_path / "whole"))
    assert ours.state_dict.keys() == expected.state_dict.keys()
    for name, tensor in expected.state_dict.items():
        assert torch.equal(ours.state_dict[name], tensor), name


def test_coming_back_to_a_run_that_is_done_does_nothing_more(
    small: Small, run: RunDirectory
) -> None:
    train(small, run)
    again = train(small, run)
    assert (again["outcome"], again["points"]) == (Outcome("finished", 20), [])


def test_a_damaged_checkpoint_is_set_aside_and_the_next_attempt_starts_from_the_one_before(
    small: Small, run: RunDirectory
) -> None:
    train(small, run, save_every=4, die_after=11)
    folder = Path(run.path("checkpoints", checkpoint_name(8, 1)))
    (folder / ".metadata").write_bytes(b"")
    with pytest.raises(AssertionError, match=r"DamagedCheckpointError: .*\.metadata differ"):
        train(small, run)
    assert train(small, run)["points"][0]["step"] == 5


@pytest.mark.parametrize("background", [True, False])
def test_a_run_that_cannot_save_three_times_in_a_row_ends_and_says_where_and_why(
    small: Small, run: RunDirectory, background: bool
) -> None:
    run.begin_attempt(ray_run="ray", world_size=2)
    Path(run.path("checkpoints")).write_text("not a folder")
    config = CheckpointConfig(every_steps=2, background=background)
    recipe = replace(small.recipe, checkpoint=config)
    for done in run_group(2, train_rank, recipe, run.uri, small.items):
        outcome = done["outcome"]
        assert (outcome.kind, outcome.step) == ("unsaved", 8 if background else 6)
        assert outcome.message.startswith(
            f"the last 3 checkpoints could not be saved in {run.path('checkpoints')}: "
        )
        assert "checkpoints" in outcome.message.split(": ", 1)[1], "what the system said"
    assert run.committed() == []


def test_a_loss_that_explodes_ends_the_run_with_its_curve_and_its_last_good_checkpoint(
    small: Small, run: RunDirectory
) -> None:
    wild = replace(small.recipe, optim=OptimConfig(lr=1e30, min_lr=0.0))
    done = train(small._replace(recipe=wild), run, save_every=1)
    outcome = done["outcome"]
    assert outcome.kind == "diverged"
    assert 1 <= outcome.step < 20
    assert outcome.message == (f"the loss or its gradient is not finite at step {outcome.step + 1}")
    assert [p["step"] for p in done["points"]] == list(range(1, outcome.step + 1))
    assert run.committed()[-1] == checkpoint_name(outcome.step, 1)


def test_too_many_bad_videos_end_the_run_after_200_clips_with_a_checkpoint_and_are_counted_on(
    small: Small, run: RunDirectory, tmp_path: Path
) -> None:
    manifest = motion_manifest(tmp_path / "videos", training=100, broken=range(6, 16))
    data = replace(small.recipe.data, manifest=manifest.uri or "", held_out_clips=0)
    recipe = replace(small.recipe, data=data, schedule=ScheduleConfig(epochs=3, warmup_epochs=0))
    broken = Small(recipe, decode_stream(recipe, tmp_path / "items.pickle"))
    outcome = train(broken, run)["outcome"]
    assert (outcome.kind, outcome.step) == ("bad_data", 53)  # the first bad one after the 200th
    first, *named = outcome.message.splitlines()
    assert first == (
        "21 of 212 clips could not be decoded, more than data.max_bad_fraction (0.05) allows; among them:"
    )
    assert len(named) == 3
    assert all(".mp4: " in line for line in named)
    assert run.committed()[-1] == checkpoint_name(53, 1)
    entries = quarantine.read(run, checkpoint_name(53, 1))
    assert sum(entry.clips for entry in entries) == 21
    assert len(entries) == 10
    assert {entry.from_step for entry in entries} == {
        None
    }  # damage ends no process: tried each time

    again = train(broken, run)["outcome"]
    assert (again.kind, again.step) == ("bad_data", 54)
    assert again.message.startswith("22 of 216 clips")

    allowed = replace(recipe, data=replace(data, max_bad_fraction=0.2))
    assert train(Small(allowed, broken.items), run)["outcome"].kind == "finished"


# --- averaged weights, the best model, an early end ------------------------------------------------


def averaging(small: Small, **optim: Any) -> Small:
    optimizer = replace(small.recipe.optim, **{"ema": 0.8, **optim})
    checkpoint = CheckpointConfig(export_best=True)
    return small._replace(recipe=replace(small.recipe, optim=optimizer, checkpoint=checkpoint))


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_export(Path(folder)).state_dict


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_averaged_weights_are_evaluated_exported_and_survive_a_death(
    small: Small, run: RunDirectory, tmp_path: Path
) -> None:
    plain = train(small, RunDirectory(str(tmp_path / "plain")))
    whole = RunDirectory(str(tmp_path / "whole"))
    points = train(averaging(small), whole)["points"]
    for ours, without in zip(points, plain["points"], strict=True):
        for name in ("train/loss", "train/grad_norm", "eval/loss"):
            assert ours["metrics"].get(name) == without["metrics"].get(name), (
                "training sees nothing"
            )
        assert ("eval/ema_loss" in ours["metrics"]) == ("eval/loss" in ours["metrics"])
        if "eval/loss" in ours["metrics"]:
            assert ours["metrics"]["eval/ema_loss"] != ours["metrics"]["eval/loss"]
    assert same(weights(f"{tmp_path}/plain/export"), weights(whole.path("export")))
    assert not same(weights(whole.path("export")), weights(whole.path("export", "ema")))

    train(averaging(small), run, save_every=3, die_after=11)
    again = train(averaging(small), run)
    assert again["points"][0]["step"] == 10
    for place in ("", "ema", "best"):
        assert same(weights(run.path("export", place)), weights(whole.path("export", place)))
    evaluated = {p["step"]: p["metrics"] for p in points if "eval/loss" in p["metrics"]}
    for point in again["points"]:
        if point["step"] in evaluated:
            for name in ("eval/loss", "eval/ema_loss"):
                assert point["metrics"][name] == evaluated[point["step"]][name]


def test_the_best_model_is_kept_with_its_step_and_loss(small: Small, run: RunDirectory) -> None:
    """Weights that do not move: no later evaluation is better than the first."""
    still = averaging(small, lr=1e-30)
    points = train(still, run)["points"]
    best = load_export(Path(run.path("export", "best")))
    (loss,) = {p["metrics"]["eval/ema_loss"] for p in points if "eval/ema_loss" in p["metrics"]}
    assert (best.extra["step"], best.extra["held_out_loss"]) == (8, loss)
    assert run.commit(run.committed()[-1]).best == {"loss": loss, "step": 8, "since": 2}


def test_a_run_that_gets_no_better_ends_when_patience_does_and_stays_ended(
    small: Small, run: RunDirectory
) -> None:
    still = averaging(small, lr=1e-30)
    schedule = replace(still.recipe.schedule, patience=1)
    still = still._replace(recipe=replace(still.recipe, schedule=schedule))
    train(still, run, save_every=5, die_after=12)
    ended = train(still, run)
    message = "1 evaluations were no better than that of step 8"
    assert ended["outcome"] == Outcome("finished", 16, message)
    assert ended["points"][-1]["step"] == 16
    assert run.committed()[-1] == checkpoint_name(16, 2)
    shutil.rmtree(run.path("export"))
    again = train(still, run)
    assert (again["outcome"], again["points"]) == (Outcome("finished", 16, message), [])
    assert load_export(Path(run.path("export"))).kind == "pretrain"
    patient = replace(schedule, patience=2)
    further = still._replace(recipe=replace(still.recipe, schedule=patient))
    assert train(further, run)["outcome"] == Outcome(
        "finished", 20, "2 evaluations were no better than that of step 8"
    )
