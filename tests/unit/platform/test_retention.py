"""Which checkpoints are deleted, and which never."""

from pathlib import Path
from typing import Any

import pytest

from tubelet.checkpoint import CheckpointConfig
from tubelet.retention import prune, superfluous
from tubelet.run_directory import Commit, RunDirectory, checkpoint_name


def leave(
    run: RunDirectory,
    step: int,
    attempt: int,
    *,
    committed: bool = True,
    loss: float | None = None,
) -> str:
    name = checkpoint_name(step, attempt)
    Path(run.path("checkpoints", name)).mkdir(parents=True)
    Path(run.path("checkpoints", name, "__0_0.distcp")).write_bytes(b"x")
    if committed:
        metrics: dict[str, Any] = {"train/loss": 1.0} | (
            {} if loss is None else {"eval/loss": loss}
        )
        points = [{"step": step, "metrics": metrics}]
        done = Commit(step=step, attempt=attempt, world_size=1, files={}, audit={}, points=points)
        run.write_json(vars(done), "checkpoints", name, "commit.json")
    return name


def begin(run: RunDirectory) -> None:
    run.begin_attempt(ray_run="ray", world_size=1)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(str(tmp_path / "run"))


def test_pruning_keeps_the_newest_ones_and_at_least_two(run: RunDirectory) -> None:
    begin(run)
    names = [leave(run, step, 1) for step in range(1, 7)]
    assert prune(run, CheckpointConfig(keep=max(2, 4))) == names[:2]
    assert run.begun() == names[2:]
    assert prune(run, CheckpointConfig(keep=max(2, 1))) == names[2:4]
    assert prune(run, CheckpointConfig(keep=max(2, 1))) == []


def test_pruning_counts_along_the_lineage_and_keeps_the_parent(run: RunDirectory) -> None:
    begin(run)
    older, parent = leave(run, 5, 1), leave(run, 10, 1)
    begin(run)
    assert prune(run, CheckpointConfig(keep=max(2, 2))) == []
    mine = leave(run, 15, 2)
    assert prune(run, CheckpointConfig(keep=max(2, 2))) == [older]
    assert run.begun() == [parent, mine]


def test_a_late_commit_is_no_checkpoint_to_keep_in_place_of_a_real_one(run: RunDirectory) -> None:
    begin(run)
    parent = leave(run, 10, 1)
    begin(run)
    mine = leave(run, 30, 2)
    late, torn = leave(run, 20, 1), leave(run, 25, 1, committed=False)
    assert prune(run, CheckpointConfig(keep=max(2, 2))) == [late, torn]
    assert run.begun() == [parent, mine]


def test_what_attempts_left_unfinished_goes_once_a_newer_one_has_committed(
    run: RunDirectory,
) -> None:
    begin(run)
    parent = leave(run, 10, 1)
    torn = leave(run, 20, 1, committed=False)
    begin(run)
    assert prune(run, CheckpointConfig(keep=max(2, 2))) == [], (
        "attempt 1 may still be writing, and nothing is newer"
    )
    begun = leave(run, 15, 2)
    writing = leave(run, 20, 2, committed=False)
    assert prune(run, CheckpointConfig(keep=max(2, 2))) == [torn]
    assert run.begun() == [parent, begun, writing]


def test_a_stale_worker_that_prunes_deletes_nothing_of_the_lineage(run: RunDirectory) -> None:
    begin(run)
    parent = leave(run, 10, 1)
    begin(run)
    mine = leave(run, 12, 2)
    late = [leave(run, step, 1) for step in (14, 16, 18)]
    assert prune(run, CheckpointConfig(keep=max(2, 2))) == late, (
        "its own commits, which nobody will read"
    )
    assert run.begun() == [parent, mine]


def names(*steps: int) -> list[str]:
    return [checkpoint_name(step, 1) for step in steps]


def test_multiples_stay_for_good_and_so_do_the_best() -> None:
    there = names(10, 20, 30, 40, 50, 60)
    losses = dict(zip(there, (0.5, 0.1, 0.4, 0.2, 0.3, 0.6), strict=True))
    assert superfluous(there, CheckpointConfig(keep=2), losses) == names(10, 20, 30, 40)
    assert superfluous(there, CheckpointConfig(keep=2, keep_every=20), {}) == names(10, 30)
    assert superfluous(there, CheckpointConfig(keep=2, keep_best=2), losses) == names(10, 30)
    assert superfluous(there, CheckpointConfig(keep=6), {}) == []


def test_the_last_two_stay_whatever_is_asked_for() -> None:
    assert superfluous(names(1), CheckpointConfig(keep=2), {}) == []
    assert superfluous(names(1, 2, 3), CheckpointConfig(keep=2), {}) == names(1)


def test_the_best_are_judged_by_the_evaluation_at_their_own_step(run: RunDirectory) -> None:
    begin(run)
    kept = [
        leave(run, step, 1, loss=loss)
        for step, loss in ((1, 0.2), (2, 0.1), (3, 0.3), (4, 0.4), (5, None))
    ]
    assert prune(run, CheckpointConfig(keep=2, keep_best=1)) == [kept[0], kept[2]]
    assert run.begun() == [kept[1], *kept[3:]]


def test_a_loss_of_an_earlier_step_or_one_that_is_no_number_makes_no_checkpoint_the_best(
    run: RunDirectory,
) -> None:
    begin(run)
    best = leave(run, 1, 1, loss=0.3)
    diverged = leave(run, 2, 1, loss=float("nan"))
    later = leave(run, 4, 1, loss=0.1)
    late = run.commit(later)
    late.points[0]["step"] = 3  # the evaluation was before the checkpoint
    run.write_json(vars(late), "checkpoints", later, "commit.json")
    newest = [leave(run, step, 1) for step in (5, 6)]
    assert prune(run, CheckpointConfig(keep=2, keep_best=1)) == [diverged, later]
    assert run.begun() == [best, *newest]
