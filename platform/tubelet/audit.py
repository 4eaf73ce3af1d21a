"""The audit trail: what every worker received, and the proof that nothing was lost or repeated.

Each rank keeps the clips of its training units until they are saved, as a Parquet file that the commit lists.
``verify`` follows the lineage of the run's checkpoints and compares what was consumed with what the ledger plans.
"""

import io
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clips import storage
from tubelet.feed import Unit
from tubelet.ledger import Ledger
from tubelet.run_directory import RunDirectory

_SCHEMA = pa.schema(
    [
        ("attempt", pa.int32()),
        ("step", pa.int64()),
        ("rank", pa.int32()),
        ("unit", pa.int64()),
        ("position", pa.int64()),
        ("epoch", pa.int32()),
        ("row", pa.int64()),
        ("visit", pa.int32()),
        ("copy", pa.int32()),
        ("valid", pa.bool_()),
        ("padding", pa.bool_()),
        ("reason", pa.string()),
    ]
)
_FILE = re.compile(r"step_(\d{10,})-a(\d{5,})-r\d{5,}\.parquet")
"""Its last step and its attempt. Anything else there is a file that a killed worker was writing."""


class AuditTrail:
    """One rank's record of the units it trained on since the last commit."""

    def __init__(self, *, attempt: int, rank: int) -> None:
        self._attempt, self._rank = attempt, rank
        self._tables: list[pa.Table] = []
        self._last_step = 0

    def add(self, step: int, unit: Unit) -> None:
        """Note a unit of training step ``step`` (from 0); dummies leave no trace."""
        if not unit.source:
            return
        source, count = unit.source, len(unit.source["row"])
        columns: dict[str, Any] = {
            "attempt": np.full(count, self._attempt),
            "step": np.full(count, step),
            "rank": np.full(count, self._rank),
            "unit": np.full(count, unit.number),
            **{n: source[n] for n in ("position", "epoch", "row", "visit", "copy", "valid")},
            "padding": ~source["valid"] & (source["reason"] == ""),
            "reason": source["reason"],
        }
        self._tables.append(pa.table({n: pa.array(columns[n], t) for n, t in _fields()}))
        self._last_step = step + 1

    def take(self) -> dict[str, bytes]:
        """What was noted since the last call, as a file of ``audit/``: name and content; nothing when there is none."""
        if not self._tables:
            return {}
        name = f"step_{self._last_step:010d}-a{self._attempt:05d}-r{self._rank:05d}.parquet"
        buffer = io.BytesIO()
        pq.write_table(pa.concat_tables(self._tables), buffer)
        self._tables = []
        return {name: buffer.getvalue()}


@dataclass(frozen=True)
class AuditReport:
    """Whether a run consumed what it should have, up to its newest checkpoint."""

    step: int
    """Steps done in the lineage."""
    expected: int
    """Positions that these steps hold."""
    consumed: int
    lost: list[int]
    """Positions that no step of the lineage consumed."""
    repeated: list[int]
    """Positions consumed more than once, or not planned at all."""
    bad: list[str]
    """Reasons of the clips that kept their place but could not be decoded."""

    @property
    def exact(self) -> bool:
        """Nothing lost, nothing repeated."""
        return not self.lost and not self.repeated

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.step} steps, {self.consumed} of {self.expected} positions consumed,"
            f" {len(self.lost)} lost, {len(self.repeated)} repeated, {len(self.bad)} clips undecodable"
        )


def consumed(run: RunDirectory) -> pa.Table:
    """The clips that the lineage of the run's checkpoints consumed, padding left out."""
    files = list(filter(None, map(_FILE.fullmatch, storage.list_names(run.path("audit")))))
    tables = [_SCHEMA.empty_table()]
    for attempt, last_step in run.lineage():
        own = [f[0] for f in files if int(f[2]) == attempt.number and int(f[1]) <= last_step]
        for name in sorted(own):
            tables.append(pq.read_table(io.BytesIO(storage.read_bytes(run.path("audit", name)))))
    table = pa.concat_tables(tables)
    return table.filter(~pc.field("padding"))


def verify(run: RunDirectory, *, ledger: Ledger, copies: int) -> AuditReport:
    """Compare what a run's lineage consumed with what its ledger plans for the steps done.

    Args:
        run: the run.
        ledger: its plan.
        copies: clips per visit.
    """
    lineage = run.lineage()
    step = lineage[-1][1] if lineage else 0
    table = consumed(run)
    counts = Counter(zip(table["position"].to_pylist(), table["copy"].to_pylist(), strict=True))
    expected = [p for p in range(step * ledger.batch) if ledger.is_valid(p)]
    lost = [p for p in expected if any(counts[p, c] == 0 for c in range(copies))]
    planned = set(expected)
    repeated = sorted({p for (p, _), n in counts.items() if n > 1 or p not in planned})
    reasons = [r for r in table["reason"].to_pylist() if r]
    return AuditReport(step, len(expected), len({p for p, _ in counts}), lost, repeated, reasons)


def _fields() -> list[tuple[str, pa.DataType]]:
    return [(f.name, f.type) for f in _SCHEMA]
