"""Attempts, lineage and the fence: one decision about where a run resumes, whoever else is still writing."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from lineages import begin_attempts
from tubelet.run_directory import (
    Attempt,
    Commit,
    RunConfig,
    RunDirectory,
    checkpoint_name,
    parse_name,
)
from workers import forkserver


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(str(tmp_path / "runs" / "one"))


def commit(run: RunDirectory, step: int, attempt: int, **changes: Any) -> str:
    """Leave a committed checkpoint."""
    done = Commit(step=step, attempt=attempt, world_size=2, files={}, audit={}, points=[])
    run.write_json(vars(done) | changes, "checkpoints", done.name, "commit.json")
    return done.name


def begin(run: RunDirectory, world_size: int = 2) -> Attempt:
    return run.begin_attempt(ray_run="ray-1", world_size=world_size)


def test_a_new_run_has_nothing_and_begins_at_step_0(run: RunDirectory) -> None:
    assert run.newest_attempt() is None
    assert run.attempts() == []
    assert run.committed() == []
    assert run.lineage() == []
    assert run.resume_point(None) is None
    assert run.read_json("run.json") is None
    first = begin(run, world_size=3)
    assert (first.number, first.step, first.parent, first.world_size) == (1, 0, None, 3)
    assert run.newest_attempt() == first == run.attempt(1)


def test_an_attempt_starts_from_the_last_commit_of_the_one_before(run: RunDirectory) -> None:
    begin(run)
    commit(run, 10, 1)
    last = commit(run, 20, 1)
    second = begin(run)
    assert (second.number, second.step, second.parent) == (2, 20, last)


def test_an_attempt_without_a_commit_passes_its_parent_on(run: RunDirectory) -> None:
    begin(run)
    parent = commit(run, 10, 1)
    for number in (2, 3):
        attempt = begin(run)
        assert (attempt.number, attempt.step, attempt.parent) == (number, 10, parent)


def test_a_stale_attempts_late_commit_is_never_seen(run: RunDirectory) -> None:
    begin(run)
    commit(run, 10, 1)
    begin(run)
    commit(run, 20, 1)  # attempt 1 was only thought dead
    assert [a.step for a in run.attempts()] == [0, 10]
    third = begin(run)
    assert (third.step, third.parent) == (10, checkpoint_name(10, 1))
    commit(run, 15, 3)
    commit(run, 30, 1)
    commit(run, 30, 2)
    assert begin(run).step == 15
    assert [(a.number, step) for a, step in run.lineage()] == [(1, 10), (3, 15)]


def test_without_its_commit_a_checkpoint_does_not_exist(run: RunDirectory, tmp_path: Path) -> None:
    begin(run)
    commit(run, 10, 1)
    torn = Path(run.path("checkpoints", checkpoint_name(20, 1)))
    torn.mkdir()
    (torn / ".metadata").write_bytes(b"all there, but for the commit")
    assert run.committed() == [checkpoint_name(10, 1)]
    assert run.begun() == [checkpoint_name(10, 1), checkpoint_name(20, 1)]
    assert begin(run).step == 10


def test_what_else_lies_beside_checkpoints_is_no_checkpoint(run: RunDirectory) -> None:
    begin(run)
    commit(run, 10, 1)
    for name in (".DS_Store", "step_12-a1", "notes.txt"):
        run.write_json({}, "checkpoints", name, "commit.json")
    assert run.begun() == run.committed() == [checkpoint_name(10, 1)]


def test_removing_a_damaged_checkpoint_resumes_from_the_one_before(run: RunDirectory) -> None:
    """What the error about damage advises, also after attempts that died of the damage."""
    begin(run)
    commit(run, 10, 1)
    begin(run)
    commit(run, 20, 2)
    damaged = commit(run, 30, 2)
    for _ in range(2):
        assert begin(run).parent == damaged
    Path(run.path("checkpoints", damaged, "commit.json")).unlink()
    assert begin(run).parent == checkpoint_name(20, 2)
    Path(run.path("checkpoints", checkpoint_name(20, 2), "commit.json")).unlink()
    commit(run, 18, 1)  # late again: attempt 2 had begun at 10
    assert begin(run).parent == checkpoint_name(10, 1)
    Path(run.path("checkpoints", checkpoint_name(10, 1), "commit.json")).unlink()
    assert begin(run).parent is None


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 3), max_size=3)), max_size=8))
def test_the_lineage_is_what_was_trained_and_kept(
    tmp_path_factory: pytest.TempPathFactory, starts: list[tuple[int, list[int]]]
) -> None:
    """Each attempt commits a few times while all older ones go on writing nonsense further ahead."""
    run = RunDirectory(str(tmp_path_factory.mktemp("lineage") / "run"))
    kept: list[tuple[int, int]] = []
    step = 0
    for own, stale in starts:
        attempt = begin(run)
        assert attempt.step == step
        for number in stale:
            if 1 <= number < attempt.number:
                commit(run, 1000 + 10 * attempt.number, number)
        for _ in range(own):
            step += 5
            commit(run, step, attempt.number)
        if own:
            kept.append((attempt.number, step))
    assert [(a.number, s) for a, s in run.lineage()] == kept


def test_callers_at_once_each_get_a_number_of_their_own(run: RunDirectory) -> None:
    with forkserver().Pool(4) as pool:
        numbers = pool.map(begin_attempts, [(run.uri, 10)] * 4, chunksize=1)
    everything = sorted(n for mine in numbers for n in mine)
    assert everything == list(range(1, 41))
    assert all(mine == sorted(mine) for mine in numbers)
    assert [a.number for a in run.attempts()] == everything


def test_a_checkpoint_of_a_newer_release_is_refused(run: RunDirectory) -> None:
    begin(run)
    commit(run, 10, 1, version=2)
    with pytest.raises(ValueError, match="format version 2 is newer than this release reads") as e:
        begin(run)
    assert str(e.value) == (
        f"{run.path('checkpoints', checkpoint_name(10, 1))}: format version 2 is newer than this release"
        " reads (1); resume with the release that wrote it"
    )


def test_what_a_commit_says_comes_back(run: RunDirectory) -> None:
    begin(run)
    done = Commit(
        step=7,
        attempt=1,
        world_size=3,
        files={"__0_0.distcp": {"size": 12, "sha256": "ab"}},
        audit={"step_0000000007-a00001-r00000.parquet": {"size": 1, "sha256": "cd"}},
        points=[{"step": 7, "metrics": {"train/loss": 0.1 + 0.2}}],
    )
    run.write_json(vars(done), "checkpoints", done.name, "commit.json")
    assert run.commit(done.name) == done


def test_names_sort_by_step_and_tell_attempts_apart() -> None:
    names = [checkpoint_name(step, attempt) for step in (9, 10, 10_000) for attempt in (1, 2, 10)]
    assert names == sorted(names)
    assert checkpoint_name(1200, 1) == "step_0000001200-a00001"
    assert [parse_name(n) for n in names[:3]] == [(9, 1), (9, 2), (9, 10)]


def test_a_wish_to_stop_is_for_one_attempt(run: RunDirectory) -> None:
    begin(run)
    run.request_stop(1, "SIGTERM")
    begin(run)
    assert run.stop_requested(1)
    assert not run.stop_requested(2)
    assert [a.number for a in run.attempts()] == [1, 2], "the wish is no attempt"


def test_events_are_lines_in_order(run: RunDirectory) -> None:
    run.record_event("attempt", attempt=1, workers=2)
    run.record_event("end", code=0)
    lines = Path(run.path("events.jsonl")).read_text().splitlines()
    first, second = (json.loads(line) for line in lines)
    assert (first["event"], first["attempt"], first["workers"]) == ("attempt", 1, 2)
    assert (second["event"], second["code"]) == ("end", 0)
    assert first["unix_s"] <= second["unix_s"]


def test_clearing_a_run_leaves_its_logs(run: RunDirectory) -> None:
    begin(run)
    commit(run, 10, 1)
    run.write_json({}, "logs", "driver.log")
    run.clear()
    assert [p.name for p in Path(run.uri).iterdir()] == ["logs"]
    assert run.newest_attempt() is None


@pytest.mark.parametrize("name", ["", ".", " . ", "a/b", "/abs"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"run.name is .*neither empty nor a path"):
        RunConfig(name=name)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_hash_takes_is_refused(seed: int) -> None:
    load = TypeAdapter(RunConfig).validate_python
    assert load({"seed": 2**63 - 1}).seed == 2**63 - 1
    with pytest.raises(ValidationError, match="seed"):
        load({"seed": seed})
