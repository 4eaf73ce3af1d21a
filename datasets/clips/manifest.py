"""The manifest: one row per video (or span of one), the only thing training knows about a data set.

Format v1 is a Parquet file. Columns: `video_id` (path relative to `root`), `size`, `etag`,
`label`, `labels`, `split`, `start_s`, `end_s`, `boxes`, then what the probe found (container,
codec, size, rate, ...). Rows are sorted by (video_id, start_s), so that a row's number is its name
for the whole life of a run. `root`, the schema version, the class names, and the hash are in the
file's metadata.

The hash (`manifest_hash`) covers what a row *is* (video_id, size), means (label, labels, boxes, split), and spans
(start_s, end_s). It covers neither `root` nor etags nor probe columns: moving a data set from disk
to a bucket keeps it, and so does probing it again.

Classes are the sorted label names, and a label's index is its place there. Names that are all
whole numbers (the authors' lists) are their own indices: classes are then 0 .. largest, whether or
not each occurs.

Look-up: `Manifest.local_table` keeps one memory-mapped Arrow file per node with the columns
training needs, named by the hash and shared by all processes; a row becomes a `Video` record in
about 30 us.
"""

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clips import storage
from clips.local_table import LocalTable, Video
from clips.manifest_hash import table_hash

SCHEMA_VERSION = 1

_BOX = pa.struct(
    [
        ("time_s", pa.float64()),
        *((side, pa.float32()) for side in ("x1", "y1", "x2", "y2")),
        ("labels", pa.list_(pa.string())),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        ("etag", pa.string()),
        ("label", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("split", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("boxes", pa.list_(_BOX)),
        ("container", pa.string()),
        ("codec", pa.string()),
        ("pixel_format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rotation", pa.int32()),
        ("fps", pa.float64()),
        ("frames", pa.int64()),
        ("duration_s", pa.float64()),
        ("keyframe_spacing", pa.int32()),
    ]
)
"""The columns of version 1. Width and height are as displayed, after the rotation."""

_KEY = "tubelet.manifest"


@dataclass(frozen=True)
class Manifest:
    """A data set in memory: build one with `Manifest.build`, read one with `read_manifest`."""

    root: str
    """Where the videos are: a local folder or a URI."""
    table: pa.Table
    """The rows, `SCHEMA`, sorted by (video_id, start_s)."""
    classes: tuple[str, ...]
    """Class names; a label's index is its place here."""
    hash: str
    """SHA-256 over identity, labels, and spans, as hex."""
    uri: str | None = None
    """Where it was read from or written to."""

    @classmethod
    def build(cls, rows: Iterable[Mapping[str, Any]] | pa.Table, *, root: str) -> Self:
        """Sort and check rows (columns of `SCHEMA`; missing ones become null) into a manifest.

        Raises:
            ValueError: No rows, unknown columns, or two rows for the same video and start.
        """
        table = rows if isinstance(rows, pa.Table) else _table_of(list(rows))
        table = _conformed(table)
        if table.num_rows == 0:
            raise ValueError("a manifest needs at least one row")
        table = table.take(_sort_order(table)).combine_chunks()
        _check_unique(table)
        return cls(storage.absolute(root), table, _class_names(table), table_hash(table))

    def __len__(self) -> int:
        return self.table.num_rows

    def video(self, row: int) -> Video:
        """Return the record of one row."""
        return self._local.video(row)

    @functools.cached_property
    def _local(self) -> LocalTable:
        return LocalTable.of(self.table, root=self.root, classes=self.classes)

    def local_table(self, cache_dir: str) -> LocalTable:
        """Return the rows as a memory-mapped file in `cache_dir`, made if this node has none yet.

        The result pickles as a small reference; another node makes its own copy from the
        manifest's file.
        """
        return LocalTable.open(
            cache_dir, hash=self.hash, root=self.root, classes=self.classes, manifest=self
        )

    # --- choosing rows -------------------------------------------------------------------------

    def select(self, *, split: str | None = None) -> np.ndarray:
        """Return the rows (int64, ascending) of `split`; None takes all.

        Raises:
            ValueError: No row has that split; the message lists those there are.
        """
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        column = self.table["split"].to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(column == split).astype(np.int64)
        if not len(rows):
            known = sorted({str(s) for s in column if s is not None})
            raise ValueError(
                f"no row of the manifest {self._named()} has split {split!r}; "
                + (f"splits there: {', '.join(known)}" if known else "its rows have no split")
            )
        return rows

    def hold_out(self, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """Split the rows by a hash of their video_id into (training, held-out).

        A video's side depends on its name alone: adding videos moves none, and spans of one video
        stay together.
        """
        held = np.array([held_out(v, fraction) for v in self.table["video_id"].to_pylist()], bool)
        return np.flatnonzero(~held).astype(np.int64), np.flatnonzero(held).astype(np.int64)

    def few_labels(self, rows: np.ndarray, *, per_class: int, seed: int) -> np.ndarray:
        """Return `per_class` of `rows` for every class, drawn by `seed`, ascending.

        Raises:
            ValueError: A class has fewer labelled rows than asked for.
        """
        labels = self.label_indices()[rows]
        chosen: list[np.ndarray] = []
        for index, name in enumerate(self.classes):
            members = rows[labels == index]
            if len(members) < per_class:
                raise ValueError(
                    f"{per_class} labels per class were asked for, but class {name!r} has "
                    f"{len(members)} rows; the manifest is {self._named()}"
                )
            chosen.append(_drawn(members, per_class, seed=seed, stream=index))
        return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)

    def label_indices(self) -> np.ndarray:
        """Return int64 [rows]: the class index of each row, -1 where it has none."""
        place = {name: i for i, name in enumerate(self.classes)}
        return np.array(
            [-1 if name is None else place[name] for name in self.table["label"].to_pylist()],
            np.int64,
        )

    def _named(self) -> str:
        return storage.redact(self.uri) if self.uri else f"of {storage.redact(self.root)}"


def write_manifest(manifest: Manifest, uri: str) -> Manifest:
    """Write `manifest` to `uri` in one step and return it with that address."""
    meta = {
        "schema_version": SCHEMA_VERSION,
        "root": manifest.root,
        "classes": list(manifest.classes),
        "hash": manifest.hash,
    }
    table = manifest.table.replace_schema_metadata({_KEY: json.dumps(meta)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=100_000)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())
    return Manifest(manifest.root, manifest.table, manifest.classes, manifest.hash, uri)


def read_manifest(uri: str) -> Manifest:
    """Read a manifest.

    Raises:
        ValueError: Nothing there, not a manifest, a newer format, or content that its own hash
            denies.
    """
    data = pa.py_buffer(storage.read_bytes(uri))
    name = storage.redact(uri)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise _not_a_manifest(name) from error
    text = (file.schema_arrow.metadata or {}).get(_KEY.encode())
    if text is None:
        raise _not_a_manifest(name)
    meta = json.loads(text)
    if meta["schema_version"] > SCHEMA_VERSION:
        raise ValueError(
            f"{name} is a manifest of format {meta['schema_version']}; this version reads up to "
            f"{SCHEMA_VERSION}. Update tubelet, or write it again with jobs/prepare.py"
        )
    table = _conformed(file.read()).combine_chunks()
    if table_hash(table) != meta["hash"]:
        raise ValueError(
            f"{name} was changed after it was written: its rows no longer have its hash. "
            "Write it again with jobs/prepare.py"
        )
    return Manifest(meta["root"], table, tuple(meta["classes"]), meta["hash"], uri)


def _not_a_manifest(name: str) -> ValueError:
    return ValueError(
        f"{name} is not a manifest; make one with: python jobs/prepare.py SOURCE manifest={name}"
    )


def held_out(video_id: str, fraction: float) -> bool:
    """Return whether a video belongs to the held-out `fraction`, by a hash of its name."""
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"split is {fraction}; it must be at least 0 and less than 1")
    digest = hashlib.blake2b(video_id.encode(), digest_size=8, person=b"clips.split").digest()
    return int.from_bytes(digest, "little") < int(fraction * 2.0**64)


def _table_of(rows: list[Mapping[str, Any]]) -> pa.Table:
    unknown = sorted({key for row in rows for key in row} - set(SCHEMA.names))
    if unknown:
        raise ValueError(
            f"unknown manifest columns {', '.join(unknown)}; allowed: {', '.join(SCHEMA.names)}"
        )
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)


def _conformed(table: pa.Table) -> pa.Table:
    """Return the columns of `SCHEMA`, in order; those a table lacks are null."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _sort_order(table: pa.Table) -> np.ndarray:
    """Rows by (video_id as bytes, start_s with null first)."""
    ids = table["video_id"].to_pylist()
    starts = [-math.inf if s is None else s for s in table["start_s"].to_pylist()]
    return np.array(
        sorted(range(len(ids)), key=lambda i: (ids[i].encode(), starts[i])), dtype=np.int64
    )


def _check_unique(table: pa.Table) -> None:
    names = list(zip(table["video_id"].to_pylist(), table["start_s"].to_pylist(), strict=True))
    for before, after in itertools.pairwise(names):
        if before == after:
            raise ValueError(
                f"video {after[0]!r} is listed twice"
                + (f" with start {after[1]:g} s" if after[1] is not None else "")
                + "; a manifest holds every (video, start) once"
            )


def _class_names(table: pa.Table) -> tuple[str, ...]:
    names = {name for name in table["label"].to_pylist() if name is not None}
    names |= {name for several in table["labels"].to_pylist() if several for name in several}
    if names and all(
        name.isascii() and name.isdigit() and str(int(name)) == name for name in names
    ):
        return tuple(str(i) for i in range(max(map(int, names)) + 1))
    return tuple(sorted(names))


def _drawn(members: np.ndarray, count: int, *, seed: int, stream: int) -> np.ndarray:
    """Return the `count` members with the smallest Philox words of (seed, stream)."""
    words = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(len(members))
    return members[np.argsort(words, kind="stable")[:count]]
