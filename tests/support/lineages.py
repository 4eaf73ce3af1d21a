"""What others do to a run directory in its tests: processes that begin attempts, workers that keep their audit."""

from typing import Any

import numpy as np
import torch

from clips import storage
from tubelet.audit import AuditTrail
from tubelet.feed import Unit
from tubelet.ledger import Ledger
from tubelet.run_directory import Commit, RunDirectory


def begin_attempts(task: tuple[str, int]) -> list[int]:
    """Begin so many attempts, one after another; returns their numbers."""
    uri, count = task
    run = RunDirectory(uri)
    return [run.begin_attempt(ray_run="other", world_size=1).number for _ in range(count)]


def keep(run: RunDirectory, trail: AuditTrail) -> dict[str, dict[str, Any]]:
    """Write what a trail has noted, as saving does; returns what the commit lists."""
    files = trail.take()
    for name, content in files.items():
        storage.write_bytes(run.path("audit", name), content)
    return {name: storage.fingerprint(run.path("audit", name)) for name in files}


def unit_of(ledger: Ledger, number: int, *, reason: str = "") -> Unit:
    """A unit as workers receive it, its first clip bad if there is a reason."""
    visits = ledger.unit(number)
    count = len(visits.position)
    valid = visits.valid.copy()
    reasons = np.full(count, "", dtype=object)
    if reason:
        valid[0], reasons[0] = False, reason
    nothing = np.zeros(count, np.int64)
    return Unit(
        number=number,
        frames_BTHWC=torch.zeros(count, 1, 1, 1, 3),
        valid_B=torch.ones(count),
        label_B=torch.zeros(count),
        source={
            "position": visits.position,
            "epoch": visits.epoch,
            "row": visits.index,
            "visit": nothing,
            "copy": nothing,
            "valid": valid,
            "reason": reasons,
        },
    )


def leave_trained(
    run: RunDirectory,
    ledger: Ledger,
    *,
    leave_out: int | None = None,
    twice: int | None = None,
    reason: str = "",
) -> None:
    """An attempt that trained and committed all steps, with one unit left out or given twice, and one bad clip."""
    attempt = run.begin_attempt(ray_run="r", world_size=1)
    trail = AuditTrail(attempt=attempt.number, rank=0)
    for number in range(ledger.steps * ledger.units_per_step):
        for _ in range(2 if number == twice else int(number != leave_out)):
            unit = unit_of(ledger, number, reason=reason if number == 1 else "")
            trail.add(number // ledger.units_per_step, unit)
    commit = Commit(ledger.steps, attempt.number, 1, {}, keep(run, trail), [])
    run.write_json(vars(commit), "checkpoints", commit.name, "commit.json")
