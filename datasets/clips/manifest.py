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
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from clips import storage
from clips.local_table import LocalTable, Video
from clips.manifest_hash import portions, table_hash
from clips.manifest_rows import Rows, TableRows

pc: Any = pyarrow.compute  # made at run time: no type checker sees its functions

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
        ("offset", pa.int64()),
    ]
)
"""The columns of version 1. Width and height are as displayed, after the rotation. `offset` is where a member of a tar
shard begins in it (adr/0007); null for files of their own."""

_KEY = "tubelet.manifest"
ROW_GROUP = 100_000
"""Rows of a row group of the file."""


@dataclass(frozen=True, eq=False)
class Manifest:
    """A data set: build one with `Manifest.build`, read one with `manifest_file.read_manifest`."""

    root: str
    """Where the videos are: a local folder or a URI."""
    rows: Rows
    """The rows, `SCHEMA`, sorted by (video_id, start_s): in memory, or in the file they were read from."""
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
        table = conformed(table)
        if table.num_rows == 0:
            raise ValueError("a manifest needs at least one row")
        table = _sorted(table)
        _check_unique(table)
        root = storage.absolute(root) if root else ""  # empty: every row has a whole address
        return cls(root, TableRows(table), _class_names(table), table_hash(table))

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Manifest)
            and (self.root, self.classes, self.hash) == (other.root, other.classes, other.hash)
            and self.uri == other.uri
            and self.table.equals(other.table)
        )

    @functools.cached_property
    def table(self) -> pa.Table:
        """All rows and columns in memory; 250 MB for a million."""
        return self.rows.table()

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
        rows = self.in_split(split)
        if not len(rows):
            raise ValueError(
                f"no row of the manifest {self._named()} has split {split!r}; "
                + (
                    f"splits there: {', '.join(self.splits)}"
                    if self.splits
                    else "its rows have no split"
                )
            )
        return rows

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that rows have, sorted."""
        names = {n for piece in self.rows.column("split") for n in piece.unique().to_pylist()}
        return tuple(sorted(names - {None}))

    def in_split(self, *names: str | None) -> np.ndarray:
        """Return the rows (int64, ascending) of these splits, if any; None stands for no split."""
        wanted = pa.array(names, pa.string())
        found = [pc.is_in(piece, value_set=wanted) for piece in self.rows.column("split")]
        return _places(pa.chunked_array(found))

    def hold_out(self, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """Split the rows by a hash of their video_id into (training, held-out).

        A video's side depends on its name alone: adding videos moves none, and spans of one video
        stay together.
        """
        held = np.concatenate(
            [_held_out(ids.to_pylist(), fraction) for ids in portions(self.rows.column("video_id"))]
        )
        return np.flatnonzero(~held).astype(np.int64), np.flatnonzero(held).astype(np.int64)

    def few_labels(self, rows: np.ndarray, *, per_class: int, seed: int) -> np.ndarray:
        """Return `per_class` of `rows` for every class, drawn by `seed`, ascending.

        Raises:
            ValueError: A class has fewer labelled rows than asked for.
        """
        labels = self.label_indices()[rows]
        order = np.argsort(labels, kind="stable")
        by_class = rows[order]
        bounds = np.searchsorted(labels[order], np.arange(len(self.classes) + 1))
        chosen: list[np.ndarray] = []
        for index, name in enumerate(self.classes):
            members = by_class[bounds[index] : bounds[index + 1]]
            if len(members) < per_class:
                raise ValueError(
                    f"{per_class} labels per class were asked for, but class {name!r} has "
                    f"{len(members)} rows; the manifest is {self._named()}"
                )
            chosen.append(_drawn(members, per_class, seed=seed, stream=index))
        return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)

    def label_indices(self) -> np.ndarray:
        """Return int64 [rows]: the class index of each row, -1 where it has none."""
        known = pa.array(self.classes, pa.string())
        found = [pc.index_in(piece, value_set=known) for piece in self.rows.column("label")]
        return pa.chunked_array(found).fill_null(-1).to_numpy().astype(np.int64)

    def label_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (rows, class indices), int64, sorted: each label of each row once, be it in `label` or `labels`."""
        single = self.label_indices()
        rows, classes = [np.flatnonzero(single >= 0)], [single[single >= 0]]
        known, first = pa.array(self.classes, pa.string()), 0
        for piece in self.rows.column("labels"):
            rows.append(first + pc.list_parent_indices(piece).to_numpy())
            classes.append(pc.index_in(pc.list_flatten(piece), value_set=known).to_numpy())
            first += len(piece)
        pairs = np.concatenate(rows) * len(self.classes) + np.concatenate(classes)
        return np.divmod(np.unique(pairs.astype(np.int64)), max(1, len(self.classes)))

    def _named(self) -> str:
        return storage.redact(self.uri) if self.uri else f"of {storage.redact(self.root)}"


def write_manifest(manifest: Manifest, uri: str) -> Manifest:
    """Write `manifest` to `uri` in one step and return it with that address."""
    meta = file_metadata(root=manifest.root, classes=manifest.classes, hash=manifest.hash)
    table = manifest.table.replace_schema_metadata(meta)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())
    return replace(manifest, uri=uri)


def file_metadata(*, root: str, classes: Sequence[str], hash: str) -> dict[str, str]:
    """Return what a manifest's file says of itself."""
    meta = {
        "schema_version": SCHEMA_VERSION,
        "root": root,
        "classes": list(classes),
        "hash": hash,
    }
    return {_KEY: json.dumps(meta)}


def description(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any] | None:
    """Return what a Parquet file's metadata say of it as a manifest; None if it is none."""
    text = (metadata or {}).get(_KEY.encode())
    return None if text is None else json.loads(text)


def held_out(video_id: str, fraction: float) -> bool:
    """Return whether a video belongs to the held-out `fraction`, by a hash of its name."""
    return bool(_held_out([video_id], fraction)[0])


def _held_out(video_ids: list[str], fraction: float) -> np.ndarray:
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"split is {fraction}; it must be at least 0 and less than 1")
    hashes = b"".join(
        hashlib.blake2b(video_id.encode(), digest_size=8, person=b"clips.split").digest()
        for video_id in video_ids
    )
    return np.frombuffer(hashes, "<u8") < np.uint64(int(fraction * 2.0**64))


def class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the classes of labels that occur: sorted, or 0 .. largest if all are whole numbers."""
    found = set(names)
    if found and all(
        name.isascii() and name.isdigit() and str(int(name)) == name for name in found
    ):
        return tuple(str(i) for i in range(max(map(int, found)) + 1))
    return tuple(sorted(found))


def conformed(table: pa.Table) -> pa.Table:
    """Return the columns of `SCHEMA`, in order; those a table lacks are null."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _table_of(rows: list[Mapping[str, Any]]) -> pa.Table:
    unknown = sorted({key for row in rows for key in row} - set(SCHEMA.names))
    if unknown:
        raise ValueError(
            f"unknown manifest columns {', '.join(unknown)}; allowed: {', '.join(SCHEMA.names)}"
        )
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)


def _sorted(table: pa.Table) -> pa.Table:
    """Rows by (video_id as bytes, start_s with null first)."""
    keys = pa.table([table["video_id"], table["start_s"].fill_null(-math.inf)], ["id", "start"])
    order = pc.sort_indices(keys, sort_keys=[("id", "ascending"), ("start", "ascending")])
    return table.take(order)


def _check_unique(table: pa.Table) -> None:
    ids, starts = table["video_id"], table["start_s"]
    same_id = pc.equal(ids[1:], ids[:-1])
    same_start = pc.equal(starts[1:], starts[:-1]).fill_null(False)
    no_start = pc.and_(starts[1:].is_null(), starts[:-1].is_null())
    twice = _places(pc.and_(same_id, pc.or_(same_start, no_start)))
    if len(twice):
        video_id, start = (column[int(twice[0])].as_py() for column in (ids, starts))
        raise listed_twice(video_id, start)


def listed_twice(video_id: str, start: float | None) -> ValueError:
    """Return the error for two rows of the same video and start, in seconds."""
    return ValueError(
        f"video {video_id!r} is listed twice"
        + (f" with start {start:g} s" if start is not None else "")
        + "; a manifest holds every (video, start) once"
    )


def _class_names(table: pa.Table) -> tuple[str, ...]:
    several = pc.list_flatten(table["labels"])
    return class_names(
        name
        for column in (table["label"], several)
        for name in column.unique().drop_null().to_pylist()
    )


def _places(flags: pa.ChunkedArray) -> np.ndarray:
    """Where a condition holds (int64); null is no."""
    return np.flatnonzero(flags.fill_null(False).to_numpy()).astype(np.int64)


def _drawn(members: np.ndarray, count: int, *, seed: int, stream: int) -> np.ndarray:
    """Return the `count` members with the smallest Philox words of (seed, stream)."""
    words = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(len(members))
    return members[np.argsort(words, kind="stable")[:count]]
