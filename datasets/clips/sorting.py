"""Rows sorted by video and start, however many: in memory while they are few, else in files that are merged.

Rows come one by one or as tables and are kept in runs of `RUN_ROWS`, each sorted, the finished ones on
local disk. Where the runs follow one another (a listing comes in order) they are read one after the
other; else they are merged, block by block. Memory: two runs while writing, a block of `BLOCK_ROWS` of
each run while merging. The order is that of the UTF-8 bytes of `video_id`, which is that of Python's
strings, then of `start_s`, null first; equal rows stay in the order they came in.
"""

import bisect
import itertools
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

RUN_ROWS = 200_000
BLOCK_ROWS = 2048
_CHUNK_ROWS = 8192  # of Python objects, before they become a table

Key = tuple[str, float]
pc: Any = pyarrow.compute  # made at import: type checkers see none of it


class SortedRows:
    """Collects rows of a schema that has `video_id`, and perhaps `start_s`, and gives them back in order."""

    def __init__(self, schema: pa.Schema, *, run_rows: int = RUN_ROWS) -> None:
        """Start without rows; `run_rows` are kept in memory."""
        self.schema = schema
        self._by_start = "start_s" in schema.names
        self._run_rows = run_rows
        self._chunk: list[Sequence[Any]] = []
        self._tables: list[pa.Table] = []
        self._in_tables = 0
        self._runs: list[pa.Table | str] = []
        self._ends: list[tuple[Key, Key]] = []
        self._folder: str | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, row: Sequence[Any]) -> None:
        """Add one row: its values in the order of the schema."""
        self._chunk.append(row)
        self._count += 1
        if len(self._chunk) >= _CHUNK_ROWS:
            self._gather()

    def add(self, table: pa.Table) -> None:
        """Add rows of the schema."""
        self._gather()
        self._count += table.num_rows
        self._keep(table)

    def tables(self) -> Iterator[pa.Table]:
        """Yield all rows in order, in tables of bounded length; they can be read any number of times."""
        self._gather()
        self._end_run()
        if self._in_order():
            for run in self._runs:
                yield from _blocks(run)
        else:
            yield from self._merged()

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield all rows in order, their values in the order of the schema."""
        for table in self.tables():
            yield from rows_of(table)

    def ends(self) -> tuple[str, str]:
        """Return the first and the last `video_id`; there must be rows."""
        self._gather()
        self._end_run()
        return min(self._ends)[0][0], max(last for _, last in self._ends)[0]

    # --- runs ----------------------------------------------------------------------------------

    def _gather(self) -> None:
        if self._chunk:
            table = rows_table(self._chunk, self.schema)
            self._chunk = []
            self._keep(table)

    def _keep(self, table: pa.Table) -> None:
        if table.num_rows:
            self._tables.append(table)
            self._in_tables += table.num_rows
        if self._in_tables >= self._run_rows:
            self._end_run()
            self._to_disk()

    def _end_run(self) -> None:
        if self._tables:
            run = self._sorted(pa.concat_tables(self._tables))
            self._tables, self._in_tables = [], 0
            self._runs.append(run)
            self._ends.append((self._key(run, 0), self._key(run, run.num_rows - 1)))

    def _to_disk(self) -> None:
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="clips-rows-")
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        for number, run in enumerate(self._runs):
            if isinstance(run, str):
                continue
            path = os.path.join(self._folder, f"{number:06d}.arrow")
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            with (
                pa.OSFile(path, "wb") as sink,
                pa.ipc.new_stream(sink, self.schema, options=options) as file,
            ):
                file.write_table(run, max_chunksize=BLOCK_ROWS)
            self._runs[number] = path

    def _in_order(self) -> bool:
        pairs = itertools.pairwise(self._ends)
        return all(before[1] <= after[0] for before, after in pairs)

    def _sorted(self, table: pa.Table) -> pa.Table:
        order = pc.sort_indices(self._keys(table), sort_keys=_ORDER[: 1 + 2 * self._by_start])
        if not np.array_equal(order, np.arange(table.num_rows)):
            table = table.take(order)
        return table.combine_chunks()

    def _keys(self, table: pa.Table) -> pa.Table:
        """The columns to sort by; Arrow has no one way, over its versions, to put nulls first."""
        keys = {"video_id": table["video_id"]}
        if self._by_start:
            keys["given"] = pc.is_valid(table["start_s"])
            keys["start_s"] = pc.fill_null(table["start_s"], 0.0)
        return pa.table(keys)

    def _key(self, table: pa.Table, row: int) -> Key:
        start = table["start_s"][row].as_py() if self._by_start else None
        return table["video_id"][row].as_py(), -math.inf if start is None else start

    # --- merging -------------------------------------------------------------------------------

    def _merged(self) -> Iterator[pa.Table]:
        """Take from every run what is not beyond the smallest of the last keys in sight, sort that, go on."""
        runs = [_blocks(run) for run in self._runs]
        heads = [next(run) for run in runs]
        while heads:
            lasts = [self._key(head, head.num_rows - 1) for head in heads]
            bound = min(lasts)
            taken: list[pa.Table] = []
            for place, head in enumerate(heads):
                # Rows equal to the bound may follow in its own run, and come before those of later runs.
                cut = bisect.bisect_right if place <= lasts.index(bound) else bisect.bisect_left
                count = cut(
                    range(head.num_rows), bound, key=lambda row, head=head: self._key(head, row)
                )
                taken.append(head.slice(0, count))
                heads[place] = head.slice(count)
            yield self._sorted(pa.concat_tables(taken))
            for place, head in enumerate(heads):
                if not head.num_rows:
                    heads[place] = next(runs[place], head)
            alive = [place for place, head in enumerate(heads) if head.num_rows]
            runs, heads = [runs[p] for p in alive], [heads[p] for p in alive]


_ORDER = [("video_id", "ascending"), ("given", "ascending"), ("start_s", "ascending")]


def rows_table(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Return a table of rows, each with its values in the order of the schema; there must be rows."""
    columns = [
        pa.array(values, field.type)
        for field, values in zip(schema, zip(*rows, strict=True), strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def rows_of(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table as tuples."""
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


def _blocks(run: pa.Table | str) -> Iterator[pa.Table]:
    if isinstance(run, str):
        with pa.OSFile(run, "rb") as source, pa.ipc.open_stream(source) as file:
            for batch in file:
                yield pa.Table.from_batches([batch])
    else:
        for start in range(0, run.num_rows, BLOCK_ROWS):
            yield run.slice(start, BLOCK_ROWS)
