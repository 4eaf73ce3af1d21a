"""Which videos a run could not decode, why, and from which step on it no longer tries.

Every clip that cannot be decoded keeps its place with weight zero; here is what is known of its video. Most such files
fail within milliseconds and are simply tried at each visit: damage in one place leaves clips elsewhere whole. A file
that costs a process (it crashes its decoder, hangs, eats memory) is out from the epoch after the one it did it in.

So that a run is the same whatever dies in between, being out is a function of the step: ``from_step`` follows from the
step of the first failure. Decoding tasks may know of it or not (another node met the file); the feed gives a clip of a
video that is out no weight in either case. What was found is shared by all ranks where an epoch ends and at every
commit, and travels with the checkpoint of its name: a resumed run knows what the run knew at that step.
"""

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from clips import HARMFUL, LocalTable, MixedTable, storage
from clips.ingest import write_records
from tubelet.items import Batch, is_out, quarantined
from tubelet.ledger import Ledger
from tubelet.run_directory import RunDirectory
from tubelet.timetable import Item

_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("video_id", pa.string()),
        ("reason", pa.string()),
        ("stage", pa.string()),
        ("message", pa.string()),
        ("clips", pa.int64()),
        ("first_step", pa.int64()),
        ("from_step", pa.int64()),
        ("held_out", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Entry:
    """A video that could not be decoded at least once."""

    row: int
    video_id: str
    reason: str
    """A kind of ``clips.DecodeError``."""
    stage: str
    """``opening``, ``decoding``, or ``process``: its decoder's process did not survive it."""
    message: str
    clips: int
    """Clips lost so far."""
    first_step: int
    from_step: int | None
    """Not tried again from this step on; None: tried at every visit."""
    held_out: bool
    """Of the videos that evaluations look at."""


@dataclass(frozen=True, order=True)
class Failure:
    """One clip that could not be decoded; sorts in the order of the run, whoever received it."""

    step: int
    position: int
    copy: int
    row: int
    video_id: str
    reason: str
    stage: str
    message: str
    held_out: bool


class Quarantine:
    """One rank's view: what all ranks share, and what this one has met since."""

    def __init__(self, ledger: Ledger, entries: Iterable[Entry] = ()) -> None:
        self._ledger = ledger
        self.entries = {entry.row: entry for entry in entries}
        self._out = known_out(self.entries.values())
        self._unshared: list[Failure] = []

    @property
    def clips(self) -> int:
        """Training clips lost, as far as shared."""
        return sum(entry.clips for entry in self.entries.values() if not entry.held_out)

    def admit(self, item: Item, source: Batch, table: LocalTable | MixedTable) -> None:
        """Take the weight from a unit's clips of videos that are out, and note those that failed.

        Args:
            item: the unit's.
            source: its columns, which are changed.
            table: names the rows.
        """
        step, reasons = item.step, source["reason"]
        for place, row in enumerate(source["row"].tolist()):
            if source["valid"][place] and is_out(row, step, self._out):
                error = quarantined()
                source["valid"][place] = False
                source["kind"][place], source["stage"][place] = error.kind, error.stage
                reasons[place] = f"{table.video(row).video_id}: {error}"
        for place in [i for i, reason in enumerate(reasons) if reason]:
            row = int(source["row"][place])
            name = table.video(row).video_id
            self._unshared.append(
                Failure(
                    step=step,
                    position=int(source["position"][place]),
                    copy=int(source["copy"][place]),
                    row=row,
                    video_id=name,
                    reason=str(source["kind"][place]),
                    stage=str(source["stage"][place]),
                    message=str(reasons[place]).removeprefix(f"{name}: "),
                    held_out=item.held_out,
                )
            )

    def take_unshared(self) -> list[Failure]:
        """Hand over what this rank has met since the last time."""
        mine, self._unshared = self._unshared, []
        return mine

    def add(self, failures: Iterable[Failure]) -> None:
        """Take in what all ranks have met; the same list on every rank."""
        self.entries = merged(self.entries, failures, self._ledger)
        self._out = known_out(self.entries.values())


def merged(
    entries: Mapping[int, Entry], failures: Iterable[Failure], ledger: Ledger
) -> dict[int, Entry]:
    """Entries by row after some more failures, in whatever order those come."""
    found = dict(entries)
    for failure in sorted(failures):
        row, harmful = failure.row, failure.reason in HARMFUL
        known = found.get(row)
        if known is not None:
            found[row] = known = replace(known, clips=known.clips + 1)
            if known.from_step is not None or not harmful:
                continue
        found[row] = Entry(
            row=row,
            video_id=failure.video_id,
            reason=failure.reason,
            stage=failure.stage,
            message=failure.message,
            clips=known.clips if known else 1,
            first_step=known.first_step if known else failure.step,
            from_step=ledger.epoch_after(failure.step) if harmful else None,
            held_out=failure.held_out,
        )
    return found


# --- in the run's folder ---------------------------------------------------------------------


def write(run: RunDirectory, name: str, entries: Iterable[Entry]) -> None:
    """Keep the entries as they are at a checkpoint; before its commit, and nothing when there are none."""
    rows = sorted(entries, key=lambda entry: entry.row)
    if rows:
        write_records(rows, _SCHEMA, uri_of(run, name))


def read(run: RunDirectory, name: str | None) -> list[Entry]:
    """The entries at a checkpoint; none at the beginning of a run."""
    if name is None or not storage.exists(uri_of(run, name)):
        return []
    table = pq.read_table(io.BytesIO(storage.read_bytes(uri_of(run, name))))
    return [Entry(**row) for row in table.to_pylist()]


def uri_of(run: RunDirectory, name: str) -> str:
    """Where the entries at a checkpoint are kept."""
    return run.path("quarantine", f"{name}.parquet")


def summary(entries: Iterable[Entry]) -> str:
    """How many videos, for which reasons, in a line for people."""
    counts = Counter(entry.reason for entry in entries).most_common()
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts)
    return f"{sum(count for _, count in counts)} videos could not be decoded ({reasons})"


def known_out(entries: Iterable[Entry]) -> dict[int, int]:
    """Row -> step from which it is out: what decoding tasks need."""
    return {e.row: e.from_step for e in entries if e.from_step is not None}
