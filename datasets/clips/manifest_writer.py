"""A manifest written as its rows come, in order: ten million cost a portion's memory, not their own.

The file is byte for byte what `manifest.write_manifest` makes of the same rows, hash included. The hash
covers the columns one after another, and it stands in the file; so the rows first go to a file on local
disk, whose columns are read for the hash, and from there, row group by row group, to their place.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clips.manifest import ROW_GROUP, SCHEMA, class_names, file_metadata, listed_twice
from clips.manifest_hash import rows_hash
from clips.sorting import rows_table
from clips.whole_files import whole_file

_CHUNK_ROWS = 8192  # of Python objects, before they become a table
_ID, _START = SCHEMA.names.index("video_id"), SCHEMA.names.index("start_s")
_LABEL, _LABELS = SCHEMA.names.index("label"), SCHEMA.names.index("labels")


@dataclass(frozen=True)
class Written:
    """A manifest that was written."""

    uri: str
    root: str
    rows: int
    classes: tuple[str, ...]
    hash: str


class ManifestWriter:
    """Takes the rows of a manifest in order; see the module's text."""

    def __init__(self) -> None:
        """Start without rows."""
        self._folder = tempfile.mkdtemp(prefix="clips-manifest-")
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._path = os.path.join(self._folder, "rows.parquet")
        self._file = pq.ParquetWriter(self._path, SCHEMA, compression="lz4")
        self._chunk: list[Sequence[Any]] = []
        self._tables: list[pa.Table] = []
        self._waiting = 0
        self._last: tuple[str, float] | None = None
        self._names: set[str] = set()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, row: Sequence[Any]) -> None:
        """Add a row: its values in the order of `SCHEMA`.

        Raises:
            ValueError: The same video and start as the row before.
        """
        start = row[_START]
        key = (row[_ID], -1.0 if start is None else start)
        if self._last is not None and key <= self._last:
            assert key == self._last, f"rows out of order: {key} after {self._last}"
            raise listed_twice(row[_ID], start)
        self._last = key
        if row[_LABEL] is not None:
            self._names.add(row[_LABEL])
        self._names.update(row[_LABELS] or ())
        self._chunk.append(row)
        self._count += 1
        if len(self._chunk) >= _CHUNK_ROWS:
            self._gather()

    def finish(self, uri: str, *, root: str) -> Written:
        """Write the manifest to `uri`, whole or not at all; nothing can be added afterwards.

        Args:
            uri: Place of the manifest.
            root: Where the videos are; empty if each row has a whole address.

        Raises:
            StorageError: The place cannot be written.
        """
        assert self._count, "a manifest needs at least one row"
        self._gather()
        self._write_groups(everything=True)
        self._file.close()
        classes = class_names(self._names)
        rows = pq.ParquetFile(self._path)
        hash = rows_hash(lambda name: _column(rows, name))
        schema = SCHEMA.with_metadata(file_metadata(root=root, classes=classes, hash=hash))
        with (
            whole_file(uri) as path,
            pq.ParquetWriter(path, schema, compression="zstd") as file,
        ):
            for number in range(rows.num_row_groups):
                group = rows.read_row_group(number).replace_schema_metadata(schema.metadata)
                file.write_table(group.combine_chunks(), row_group_size=ROW_GROUP)
        rows.close()
        return Written(uri, root, self._count, classes, hash)

    def _gather(self) -> None:
        if self._chunk:
            table = rows_table(self._chunk, SCHEMA)
            self._chunk = []
            self._tables.append(table)
            self._waiting += table.num_rows
        if self._waiting >= ROW_GROUP:
            self._write_groups(everything=False)

    def _write_groups(self, *, everything: bool) -> None:
        table = pa.concat_tables(self._tables) if self._tables else SCHEMA.empty_table()
        while table.num_rows >= ROW_GROUP or (everything and table.num_rows):
            self._file.write_table(table.slice(0, ROW_GROUP).combine_chunks(), ROW_GROUP)
            table = table.slice(ROW_GROUP)
        self._tables, self._waiting = [table], table.num_rows


def _column(rows: pq.ParquetFile, name: str) -> Iterator[pa.Array]:
    for batch in rows.iter_batches(columns=[name]):
        yield batch.column(0)
