"""Checkpoints: equal bits at any world size, and nothing read that is not what was committed."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import DAMAGE, load_small, save_small
from tubelet import checkpoint
from tubelet.run_directory import Commit, RunDirectory, checkpoint_name
from workers import run_group

STEP = 10


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, dict[str, Any]]:
    """A checkpoint of three ranks, and what it must hold."""
    run = RunDirectory(str(tmp_path_factory.mktemp("saved") / "run"))
    run.begin_attempt(ray_run="ray", world_size=3)
    ranks = run_group(3, save_small, run.uri, STEP)
    assert ranks[0]["commit"] == ranks[1]["commit"] == ranks[2]["commit"]
    return run, ranks[0]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_three_ranks_checkpoint_loads_with_equal_bits_at_another_world_size(
    saved: tuple[RunDirectory, dict[str, Any]], world_size: int
) -> None:
    run, expected = saved
    for loaded in run_group(world_size, load_small, run.uri, checkpoint_name(STEP, 1)):
        for part in ("weights", "exp_avg", "exp_avg_sq"):
            assert loaded[part].keys() == expected[part].keys()
            for name, tensor in expected[part].items():
                assert torch.equal(loaded[part][name], tensor), f"{part} of {name}"
                assert tensor.any(), "nothing to tell apart"


def test_a_commit_lists_every_file_with_its_hash_and_what_every_rank_adds(
    saved: tuple[RunDirectory, dict[str, Any]],
) -> None:
    run, _ = saved
    commit = run.commit(checkpoint_name(STEP, 1))
    folder = Path(run.path("checkpoints", commit.name))
    there = {p.name for p in folder.iterdir()} - {"commit.json"}
    assert set(commit.files) == there == {".metadata", *(f"__{r}_0.distcp" for r in range(3))}
    for name, entry in commit.files.items():
        assert entry == checkpoint.fingerprint(str(folder / name))
        assert entry["size"] == (folder / name).stat().st_size > 0
        assert len(entry["sha256"]) == 64
    assert (commit.step, commit.attempt, commit.world_size) == (STEP, 1, 3)
    assert commit.audit == {f"rank-{r}": {"size": r, "sha256": ""} for r in range(3)}
    assert commit.points == [{"step": STEP, "metrics": {"train/loss": 1.0}}], "rank 0's, once"


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_on_every_rank_before_anything_is_unpickled(
    damage: str, tmp_path: Path
) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    run.begin_attempt(ray_run="ray", world_size=1)
    run_group(1, save_small, run.uri, STEP)
    folder = run.path("checkpoints", checkpoint_name(STEP, 1))
    file = DAMAGE[damage](Path(folder))
    for error in run_group(2, load_small, run.uri, checkpoint_name(STEP, 1)):
        assert error == (
            f"DamagedCheckpointError: {folder}: {file} differ from what was committed; "
            "remove this folder to resume from the checkpoint before it"
        )
    assert not (tmp_path / "exploded").exists(), "a pickle that was not ours has run"


def leave(run: RunDirectory, step: int, attempt: int, *, committed: bool = True) -> str:
    name = checkpoint_name(step, attempt)
    Path(run.path("checkpoints", name)).mkdir(parents=True)
    Path(run.path("checkpoints", name, "__0_0.distcp")).write_bytes(b"x")
    if committed:
        done = Commit(step=step, attempt=attempt, world_size=1, files={}, audit={}, points=[])
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
    assert checkpoint.prune(run, keep=4) == names[:2]
    assert run.begun() == names[2:]
    assert checkpoint.prune(run, keep=1) == names[2:4]
    assert checkpoint.prune(run, keep=1) == []


def test_pruning_counts_along_the_lineage_and_keeps_the_parent(run: RunDirectory) -> None:
    begin(run)
    older, parent = leave(run, 5, 1), leave(run, 10, 1)
    begin(run)
    assert checkpoint.prune(run, keep=2) == []
    mine = leave(run, 15, 2)
    assert checkpoint.prune(run, keep=2) == [older]
    assert run.begun() == [parent, mine]


def test_a_late_commit_is_no_checkpoint_to_keep_in_place_of_a_real_one(run: RunDirectory) -> None:
    begin(run)
    parent = leave(run, 10, 1)
    begin(run)
    mine = leave(run, 30, 2)
    late, torn = leave(run, 20, 1), leave(run, 25, 1, committed=False)
    assert checkpoint.prune(run, keep=2) == [late, torn]
    assert run.begun() == [parent, mine]


def test_what_attempts_left_unfinished_goes_once_a_newer_one_has_committed(
    run: RunDirectory,
) -> None:
    begin(run)
    parent = leave(run, 10, 1)
    torn = leave(run, 20, 1, committed=False)
    begin(run)
    assert checkpoint.prune(run, keep=2) == [], (
        "attempt 1 may still be writing, and nothing is newer"
    )
    begun = leave(run, 15, 2)
    writing = leave(run, 20, 2, committed=False)
    assert checkpoint.prune(run, keep=2) == [torn]
    assert run.begun() == [parent, begun, writing]


def test_a_stale_worker_that_prunes_deletes_nothing_of_the_lineage(run: RunDirectory) -> None:
    begin(run)
    parent = leave(run, 10, 1)
    begin(run)
    mine = leave(run, 12, 2)
    late = [leave(run, step, 1) for step in (14, 16, 18)]
    assert checkpoint.prune(run, keep=2) == late, "its own commits, which nobody will read"
    assert run.begun() == [parent, mine]


def test_a_file_that_is_not_there_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    assert checkpoint.fingerprint(str(tmp_path / "none")) == {"size": -1, "sha256": ""}
    (tmp_path / "empty").touch()
    empty = checkpoint.fingerprint(str(tmp_path / "empty"))
    assert empty["size"] == 0
    assert empty["sha256"].startswith("e3b0c44298fc1c14")


def test_keeping_fewer_than_two_is_refused() -> None:
    from pydantic import TypeAdapter, ValidationError

    load: Callable[[Any], Any] = TypeAdapter(checkpoint.CheckpointConfig).validate_python
    assert load({"keep": 2}).keep == 2
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        functools.partial(load, {"keep": 1})()
