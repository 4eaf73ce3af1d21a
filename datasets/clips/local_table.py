"""Row number -> video record, for millions of rows, shared by the processes of a node.

The columns that training needs are kept in one Arrow IPC file per node, named by the manifest's
hash, which every process maps into memory: the operating system holds one copy, whatever the
number of workers. The file is written beside its final name and moved there, so that processes
that start together may all make it and none reads half.

A `LocalTable` pickles as its address (manifest, hash, folder), not its rows; unpickling on another
node maps that node's file, or makes it from the manifest.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from clips import storage

if TYPE_CHECKING:
    from clips.manifest import Manifest

_VERSION = 1
_PLAIN = ("video_id", "size", "start_s", "end_s", "frames", "fps", "duration_s", "width", "height")


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
        self._columns = {
            name: table[name].chunk(0) if table.num_rows else table[name]
            for name in table.column_names
        }
        self._rows = table.num_rows

    @classmethod
    def of(cls, table: pa.Table, *, root: str, classes: tuple[str, ...]) -> Self:
        """Return the look-up of a manifest's table, in this process's memory."""
        return cls(_lookup(table, classes), root=root, classes=classes)

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
            _write(path, _lookup(_fetched(manifest, hash=hash, cache_dir=cache_dir).table, classes))
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
        plain: dict[str, Any] = {name: self._columns[name][row].as_py() for name in _PLAIN}
        return Video(
            uri=storage.join(self.root, plain["video_id"]),
            row=row,
            label=self._columns["label"][row].as_py(),
            labels=tuple(self._columns["labels"][row].as_py() or ()),
            **plain,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if self._address is None:
            raise TypeError("a look-up in memory does not travel; use Manifest.local_table")
        return _reopen, (*self._address, self.root, self.classes)


def _reopen(
    cache_dir: str, hash: str, uri: str | None, root: str, classes: tuple[str, ...]
) -> LocalTable:
    return LocalTable.open(cache_dir, hash=hash, root=root, classes=classes, manifest=uri)


def _fetched(manifest: "Manifest | str | None", *, hash: str, cache_dir: str) -> "Manifest":
    from clips.manifest import read_manifest  # the two files know each other; this side only here

    if manifest is None:
        raise ValueError(
            f"{cache_dir} holds no table for the manifest {hash[:12]}, and that manifest was never "
            "written to a file; write it with write_manifest first"
        )
    found = read_manifest(manifest) if isinstance(manifest, str) else manifest
    if found.hash != hash:
        raise ValueError(
            f"{storage.redact(str(manifest))} is another manifest by now: its hash is "
            f"{found.hash[:12]}, this run was started with {hash[:12]}"
        )
    return found


def _lookup(table: pa.Table, classes: tuple[str, ...]) -> pa.Table:
    """Return the columns of a `Video`, labels as class indices, each column in one piece."""
    place = {name: i for i, name in enumerate(classes)}
    columns = {name: table[name] for name in _PLAIN}
    columns["label"] = pa.chunked_array(
        [pa.array([place.get(name) for name in table["label"].to_pylist()], pa.int32())]
    )
    several = [None if s is None else [place[n] for n in s] for s in table["labels"].to_pylist()]
    columns["labels"] = pa.chunked_array([pa.array(several, pa.list_(pa.int32()))])
    return pa.table(columns).combine_chunks()


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        with pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=max(1, table.num_rows))
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
