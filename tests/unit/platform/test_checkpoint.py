"""Checkpoints: equal bits at any world size, and nothing read that is not what was committed."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ceph import Gateway
from checkpoints import (
    DAMAGE,
    load_from_bucket,
    load_small,
    move_small,
    save_small,
    save_to_bucket,
    save_where_one_rank_cannot,
)
from clips import storage
from tubelet import checkpoint
from tubelet.run_directory import RunDirectory, checkpoint_name
from workers import run_group

STEP = 10


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, dict[str, Any]]:
    """A checkpoint of three ranks, and what it must hold."""
    run = RunDirectory(str(tmp_path_factory.mktemp("saved") / "run"))
    run.begin_attempt(ray_run="ray", world_size=3)
    ranks = run_group(3, save_small, run.uri, STEP)
    return run, ranks[0]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_three_ranks_checkpoint_loads_with_equal_bits_at_another_world_size(
    saved: tuple[RunDirectory, dict[str, Any]], world_size: int
) -> None:
    run, expected = saved
    for loaded in run_group(world_size, load_small, run.uri, checkpoint_name(STEP, 1)):
        assert_same(loaded, expected)


def assert_same(loaded: dict[str, Any], expected: dict[str, Any]) -> None:
    for part in ("weights", "exp_avg", "exp_avg_sq"):
        assert loaded[part].keys() == expected[part].keys()
        for name, tensor in expected[part].items():
            assert torch.equal(loaded[part][name], tensor), f"{part} of {name}"
            assert tensor.any(), "nothing to tell apart"


def test_bits_stay_the_same_from_four_ranks_to_two_to_three(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    run.begin_attempt(ray_run="ray", world_size=4)
    expected = run_group(4, save_small, run.uri, STEP)[0]
    run.begin_attempt(ray_run="ray", world_size=2)
    assert_same(run_group(2, move_small, run.uri, checkpoint_name(STEP, 1), 2)[0], expected)
    for loaded in run_group(3, load_small, run.uri, checkpoint_name(STEP, 2)):
        assert_same(loaded, expected)


def test_a_checkpoint_that_training_waits_for_has_the_same_content(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    save = functools.partial(save_small, background=False)
    expected = run_group(2, save, run.uri, STEP)[0]
    assert_same(run_group(1, load_small, run.uri, checkpoint_name(STEP, 1))[0], expected)
    run_group(2, save_small, run.uri, STEP + 1)
    commits = [run.commit(checkpoint_name(step, 1)) for step in (STEP, STEP + 1)]
    shards = [
        {n: f for n, f in commit.files.items() if n.endswith(".distcp")} for commit in commits
    ]
    assert shards[0] == shards[1], "byte for byte"


def test_a_save_that_fails_for_one_rank_leaves_nothing_but_its_audit_for_the_next(
    tmp_path: Path,
) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    seen = run_group(2, save_where_one_rank_cannot, run.uri, STEP)
    assert seen[0] == seen[1], "one verdict"
    error, there, next_error, still_there = seen[0]
    assert error.startswith("IsADirectoryError")
    assert (there, next_error, still_there) == (False, None, False)
    (name,) = run.committed()
    assert name == checkpoint_name(STEP + 1, 1)
    assert set(run.commit(name).audit) == {
        f"rank-{rank}-step-{step}" for rank in range(2) for step in (STEP, STEP + 1)
    }


def test_a_commit_lists_every_file_with_its_hash_and_what_every_rank_adds(
    saved: tuple[RunDirectory, dict[str, Any]],
) -> None:
    run, _ = saved
    commit = run.commit(checkpoint_name(STEP, 1))
    folder = Path(run.path("checkpoints", commit.name))
    there = {p.name for p in folder.iterdir()} - {"commit.json"}
    assert set(commit.files) == there == {".metadata", *(f"__{r}_0.distcp" for r in range(3))}
    for name, entry in commit.files.items():
        assert entry == storage.fingerprint(str(folder / name))
        assert entry["size"] == (folder / name).stat().st_size > 0
        assert len(entry["sha256"]) == 64
    assert (commit.step, commit.attempt, commit.world_size) == (STEP, 1, 3)
    assert commit.audit == {
        f"rank-{r}": storage.fingerprint(run.path("audit", f"rank-{r}")) for r in range(3)
    }
    assert [entry["size"] for entry in commit.audit.values()] == [0, 1, 2]
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
            "set aside, resuming from the checkpoint before it"
        )
    assert run.committed() == [], "it does not exist any more"
    assert run.read_json("checkpoints", checkpoint_name(STEP, 1), "damaged.json") == {
        "files": [file]
    }
    assert [event["event"] for event in run.events()] == ["damaged"]
    assert not (tmp_path / "exploded").exists(), "a pickle that was not ours has run"


def test_workers_that_start_again_on_their_node_fetch_nothing_from_the_bucket(
    object_store: Gateway, tmp_path: Path
) -> None:
    run = RunDirectory(f"{object_store.bucket('copies')}/run")
    run.begin_attempt(ray_run="ray", world_size=2)
    name = checkpoint_name(STEP, 1)

    def load(world_size: int, node: str) -> list[tuple[Any, int]]:
        where = str(tmp_path / node)
        return run_group(
            world_size, load_from_bucket, run.uri, name, where, object_store.environment
        )

    first = str(tmp_path / "first")
    expected = run_group(2, save_to_bucket, run.uri, STEP, first, object_store.environment)[0]
    size = sum(entry["size"] for entry in run.commit(name).files.values())
    for loaded, fetched in load(3, "first"):
        assert_same(loaded, expected)
        assert fetched == 0
    (other,) = load(1, "second")
    assert_same(other[0], expected)
    assert other[1] == size, "each file once"

    (copy,) = (tmp_path / "first").glob("*/*/*/__1_0.distcp")
    copy.write_bytes(copy.read_bytes()[:-1])
    (again,) = load(1, "first")
    assert_same(again[0], expected)
    assert again[1] == run.commit(name).files["__1_0.distcp"]["size"], "what is spoilt here, once"

    storage.write_bytes(f"{run.path('checkpoints', name)}/__0_0.distcp", b"spoilt")
    assert load(1, "first")[0][1] == 0, "a good copy needs no other"
    (error,) = load(1, "third")
    assert str(error[0]).endswith("set aside, resuming from the checkpoint before it")
    assert run.committed() == []


def test_a_node_keeps_the_newest_two(object_store: Gateway, tmp_path: Path) -> None:
    run = RunDirectory(f"{object_store.bucket('newest')}/run")
    run.begin_attempt(ray_run="ray", world_size=1)
    for step in (10, 20, 30):
        run_group(
            1, save_to_bucket, run.uri, step, str(tmp_path / "node"), object_store.environment
        )
    kept = sorted(path.name for path in (tmp_path / "node").glob("*/*/*"))
    assert kept == [checkpoint_name(step, 1) for step in (20, 30)]


def test_a_file_that_is_not_there_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    assert storage.fingerprint(str(tmp_path / "none")) == {"size": -1, "sha256": ""}
    (tmp_path / "empty").touch()
    empty = storage.fingerprint(str(tmp_path / "empty"))
    assert empty["size"] == 0
    assert empty["sha256"].startswith("e3b0c44298fc1c14")


def test_keeping_fewer_than_two_is_refused() -> None:
    from pydantic import TypeAdapter, ValidationError

    load: Callable[[Any], Any] = TypeAdapter(checkpoint.CheckpointConfig).validate_python
    assert load({"keep": 2}).keep == 2
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        functools.partial(load, {"keep": 1})()
