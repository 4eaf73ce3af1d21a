"""The audit finds what is lost and what is repeated."""

from pathlib import Path

import pytest
import torch

import lineages
from tubelet import audit
from tubelet.audit import AuditReport, AuditTrail
from tubelet.feed import Unit
from tubelet.ledger import Ledger
from tubelet.run_directory import Commit, RunDirectory

LEDGER = Ledger(rows=10, epochs=2, batch=8, micro_batch=4, seed=0)  # 3 steps, the last half empty


def unit_of(number: int, *, reason: str = "") -> Unit:
    return lineages.unit_of(LEDGER, number, reason=reason)


def trained(
    folder: Path, *, leave_out: int | None = None, twice: int | None = None, reason: str = ""
) -> AuditReport:
    """An attempt that trained all steps, with one unit left out or given twice; then its verdict."""
    run = RunDirectory(str(folder / "run"))
    lineages.leave_trained(run, LEDGER, leave_out=leave_out, twice=twice, reason=reason)
    return audit.verify(run, ledger=LEDGER, copies=1)


def test_a_whole_run_is_exact_and_padding_is_not_counted(tmp_path: Path) -> None:
    report = trained(tmp_path)
    assert report.exact
    assert (report.step, report.expected, report.consumed) == (3, 20, 20)
    assert (
        report.summary()
        == "3 steps, 20 of 20 positions consumed, 0 lost, 0 repeated, 0 clips undecodable"
    )


def test_a_lost_unit_is_found_by_its_positions(tmp_path: Path) -> None:
    report = trained(tmp_path, leave_out=2)
    assert not report.exact
    assert report.lost == [8, 9, 10, 11]


def test_a_repeated_unit_is_found_by_its_positions(tmp_path: Path) -> None:
    report = trained(tmp_path, twice=3)
    assert not report.exact
    assert report.repeated == [12, 13, 14, 15]


def test_an_undecodable_clip_is_consumed_and_named(tmp_path: Path) -> None:
    report = trained(tmp_path, reason="x.mp4: corrupt: no frames")
    assert report.exact
    assert report.bad == ["x.mp4: corrupt: no frames"]


def test_steps_beyond_the_newest_checkpoint_do_not_count(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    attempt = run.begin_attempt(ray_run="r", world_size=1)
    trail = AuditTrail(attempt=attempt.number, rank=0)
    trail.add(0, unit_of(0))
    trail.add(0, unit_of(1))
    commit = Commit(1, attempt.number, 1, {}, lineages.keep(run, trail), [])
    run.write_json(vars(commit), "checkpoints", commit.name, "commit.json")
    trail.add(1, unit_of(2))
    lineages.keep(run, trail)  # written, and never committed
    report = audit.verify(run, ledger=LEDGER, copies=1)
    assert report.exact
    assert (report.step, report.expected) == (1, 8)


def test_what_a_killed_worker_was_writing_is_no_part_of_the_trail(tmp_path: Path) -> None:
    assert trained(tmp_path).exact
    (whole, *_) = sorted((tmp_path / "run" / "audit").iterdir())
    half = whole.with_name(f".{whole.name}.1a2b3c4d")  # as storage writes, through a neighbour
    half.write_bytes(whole.read_bytes()[:100])
    report = audit.verify(RunDirectory(str(tmp_path / "run")), ledger=LEDGER, copies=1)
    assert report.exact
    assert report.consumed == 20


@pytest.mark.parametrize("dummy", [Unit(0, torch.zeros(1), torch.zeros(1), torch.zeros(1))])
def test_dummies_leave_no_trace(tmp_path: Path, dummy: Unit) -> None:
    trail = AuditTrail(attempt=1, rank=0)
    trail.add(0, dummy)
    assert trail.take() == {}


def test_what_a_stale_attempt_trained_beyond_its_counted_step_is_neither_lost_nor_repeated(
    tmp_path: Path,
) -> None:
    """Attempt 1 is thought dead after its first step, goes on, and even commits."""
    run = RunDirectory(str(tmp_path / "run"))

    def train(attempt: int, step: int) -> None:
        trail = AuditTrail(attempt=attempt, rank=0)
        for number in (2 * step, 2 * step + 1):
            trail.add(step, unit_of(number))
        commit = Commit(step + 1, attempt, 1, {}, lineages.keep(run, trail), [])
        run.write_json(vars(commit), "checkpoints", commit.name, "commit.json")

    run.begin_attempt(ray_run="r", world_size=1)
    train(1, 0)
    run.begin_attempt(ray_run="r", world_size=2)
    train(1, 1)
    for step in (1, 2):
        train(2, step)
    report = audit.verify(run, ledger=LEDGER, copies=1)
    assert report.exact, report.summary()
    assert set(audit.consumed(run)["attempt"].to_pylist()) == {1, 2}
    assert audit.consumed(run).num_rows == 20


def test_a_copy_that_is_missing_makes_its_visit_lost(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    run.begin_attempt(ray_run="r", world_size=1)
    trail = AuditTrail(attempt=1, rank=0)
    for number in (0, 1):
        trail.add(0, unit_of(number))
    commit = Commit(1, 1, 1, {}, lineages.keep(run, trail), [])
    run.write_json(vars(commit), "checkpoints", commit.name, "commit.json")
    assert audit.verify(run, ledger=LEDGER, copies=2).lost == list(range(8))
