"""Row number -> video record, for millions of rows, shared by the processes of a node.

The columns that training needs are kept in one Arrow IPC file per node, named by the manifest's
hash, which every process maps into memory: the operating system holds one copy, whatever the
number of workers. The first process that needs it makes the file, portion by portion, while others
wait; it is written beside its final name and moved there, so that none ever reads half.

A `LocalTable` pickles as its address (manifest, hash, folder), not its rows; unpickling on another
node maps that node's file, or makes it from the manifest's. A process that gets it again with every
task maps it once.
"""

import bisect
import contextlib
import fcntl
import functools
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.compute

from clips import storage

if TYPE_CHECKING:
    from clips.manifest import Manifest

pc: Any = pyarrow.compute  # made at run time: no type checker sees its functions

_VERSION = 3
_PLAIN = (
    *("video_id", "size", "start_s", "end_s", "frames", "fps", "duration_s", "width", "height"),
    *("etag", "container", "offset"),
)


@dataclass(frozen=True)
class Video:
    """One row of a manifest: a video, or a span of one."""

    uri: str
    video_id: str
    row: int
    size: int
    label: int | None
    """Class index, if the row has a single label."""
    labels: tuple[int, ...]
    """Class indices, if the row has several."""
    start_s: float | None
    end_s: float | None
    frames: int | None
    fps: float | None
    duration_s: float | None
    width: int | None
    height: int | None
    etag: str | None = None
    container: str | None = None
    """`frames`: a folder of pictures."""
    offset: int | None = None
    """Of a member of a tar shard (`<shard>.tar/<member>`): where its `size` bytes begin."""


class LocalTable:
    """Random access to the rows of a manifest; see the module's text."""

    def __init__(
        self,
        table: pa.Table,
        *,
        root: str,
        classes: tuple[str, ...],
        address: tuple[str, str, str | None] | None = None,
    ) -> None:
        """Wrap `table`; use `of` or `open`."""
        self.root = root
        self.classes = classes
        self._address = address
        batches = table.to_batches()
        self._pieces = [dict(zip(b.schema.names, b.columns, strict=True)) for b in batches]
        self._starts = [0, *itertools.accumulate(b.num_rows for b in batches)][: len(batches)]
        self._rows = table.num_rows

    @classmethod
    def of(cls, table: pa.Table, *, root: str, classes: tuple[str, ...]) -> Self:
        """Return the look-up of a manifest's table, in this process's memory."""
        return cls(_lookup(table.select(_NEEDED), classes), root=root, classes=classes)

    @classmethod
    def open(
        cls,
        cache_dir: str,
        *,
        hash: str,
        root: str,
        classes: tuple[str, ...],
        manifest: "Manifest | str | None",
    ) -> Self:
        """Map the file of `hash` in `cache_dir`; where there is none, make it from `manifest`.

        Raises:
            ValueError: There is no file yet and no manifest to make it from, or the manifest at
                that address is another one by now.
        """
        path = Path(cache_dir) / f"{hash}-v{_VERSION}.arrow"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone_in(path.parent):
                if not path.exists():
                    portions = _portions(manifest, hash=hash, cache_dir=cache_dir)
                    _write(path, (_lookup(portion, classes) for portion in portions))
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        uri = manifest if manifest is None or isinstance(manifest, str) else manifest.uri
        return cls(table, root=root, classes=classes, address=(str(cache_dir), hash, uri))

    def __len__(self) -> int:
        return self._rows

    def video(self, row: int) -> Video:
        """Return the record of one row."""
        assert 0 <= row < self._rows, (row, self._rows)
        row = int(row)
        number = bisect.bisect_right(self._starts, row) - 1
        columns, place = self._pieces[number], row - self._starts[number]
        plain: dict[str, Any] = {name: columns[name][place].as_py() for name in _PLAIN}
        return Video(
            uri=storage.join(self.root, plain["video_id"]),
            row=row,
            label=columns["label"][place].as_py(),
            labels=tuple(columns["labels"][place].as_py() or ()),
            **plain,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if self._address is None:
            raise TypeError("a look-up in memory does not travel; use Manifest.local_table")
        return _reopen, (*self._address, self.root, self.classes)


@functools.lru_cache(maxsize=16)
def _reopen(
    cache_dir: str, hash: str, uri: str | None, root: str, classes: tuple[str, ...]
) -> LocalTable:
    return LocalTable.open(cache_dir, hash=hash, root=root, classes=classes, manifest=uri)


_NEEDED = [*_PLAIN, "label", "labels"]


def _portions(
    manifest: "Manifest | str | None", *, hash: str, cache_dir: str
) -> Iterator[pa.Table]:
    """The rows of a manifest in bounded portions, checked to be those of `hash`."""
    if manifest is None:
        raise ValueError(
            f"{cache_dir} holds no table for the manifest {hash[:12]}, and that manifest was never "
            "written to a file; write it with write_manifest first"
        )
    if not isinstance(manifest, str):
        assert manifest.hash == hash, (manifest.hash, hash)
        yield from manifest.rows.portions(_NEEDED)
        return
    from clips.manifest_file import (
        ManifestFile,
    )  # the two files know each other; this side only here

    file = ManifestFile(manifest)
    if file.hash != hash:
        raise ValueError(
            f"{storage.redact(manifest)} is another manifest by now: its hash is "
            f"{file.hash[:12]}, this run was started with {hash[:12]}"
        )
    file.check()
    yield from file.portions(_NEEDED)


def _lookup(table: pa.Table, classes: tuple[str, ...]) -> pa.Table:
    """Return the columns of a `Video`, labels as class indices."""
    known = pa.array(classes, pa.string())
    columns = {name: table[name] for name in _PLAIN}
    columns["label"] = pc.index_in(table["label"], value_set=known)
    pieces = [_indices(piece, known) for piece in table["labels"].chunks]
    columns["labels"] = pa.chunked_array(pieces, pa.list_(pa.int32()))
    return pa.table(columns)


def _indices(labels: pa.ListArray, known: pa.Array) -> pa.Array:
    """Lists of names as lists of their places; null stays null."""
    lengths = labels.value_lengths().fill_null(0).to_numpy()
    ends = pa.array([0, *lengths.cumsum()], pa.int32())
    places = pc.index_in(labels.flatten(), value_set=known)
    return pa.ListArray.from_arrays(ends, places, mask=labels.is_null())


def _write(path: Path, portions: Iterable[pa.Table]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        with contextlib.ExitStack() as open_files:
            writer = None
            for portion in portions:
                if writer is None:
                    sink = open_files.enter_context(pa.OSFile(name, "wb"))
                    writer = open_files.enter_context(pa.ipc.new_file(sink, portion.schema))
                writer.write_table(portion.combine_chunks())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes (and threads) of this machine out until it is done; a death lets them in."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
