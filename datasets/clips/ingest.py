"""From a place with videos to a manifest: find, probe, keep or reject with a reason.

Sources: a folder or a bucket prefix (every file with a video's name, at any depth), class folders
(`<class>/video.mp4`, also below `train/`, `val/`, `test/`, which become the split), a single
video, and list files: the authors' `path label` (V1) and `path start total` (V2) lines, or a CSV
with a header.

A video is kept if its first and its middle frame decode, in whatever container its bytes really
are. Everything else is rejected with one of the reasons of `DecodeError`, plus `one_frame`:
nothing moves in it. Nothing is dropped in silence: kept + rejected = found.

All of this is pure, but for reading files; `clips.pipeline` spreads it over a Ray cluster.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clips import storage
from clips.decode import DEFAULT_DECODE, DecodeConfig, DecodeError
from clips.lists import read_list
from clips.manifest import held_out

if TYPE_CHECKING:
    from clips.decode.pyav import PyavReader

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts"),
    *(".flv", ".wmv", ".3gp", ".ogv", ".gif", ".h264", ".hevc", ".ivf", ".vob"),
)
LIST_SUFFIXES = (".csv", ".txt", ".list")
Labels = Literal["none", "folders"]

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validation": "val",
    "valid": "val",
    "test": "test",
}


@dataclass(frozen=True)
class Entry:
    """A video that was found, before anybody looked inside."""

    video_id: str
    """Path relative to the root."""
    size: int
    etag: str | None = None
    label: str | None = None
    split: str | None = None
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Found:
    """All videos of a source."""

    root: str
    entries: tuple[Entry, ...]
    missing: tuple["Rejected", ...] = ()
    """Files that a list names but that are not there."""

    def __len__(self) -> int:
        return len(self.entries) + len(self.missing)


@dataclass(frozen=True)
class Probe:
    """What a look inside found; the probe columns of the manifest."""

    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation: int
    fps: float
    frames: int
    duration_s: float
    keyframe_spacing: int


@dataclass(frozen=True)
class Rejected:
    """A file that cannot be used, and why."""

    video_id: str
    reason: str
    """A kind of `DecodeError`, `one_frame`, `missing`, or `crashed`."""
    message: str


# --- finding ---------------------------------------------------------------------------------


def find_videos(source: str, *, labels: Labels = "none", root: str | None = None) -> Found:
    """Return the videos of a folder, a bucket prefix, a single file, or a list file.

    Args:
        source: The place.
        labels: `folders` takes the label from the first folder below the source (or below `train`,
            `val`, `test`). List files bring their own labels.
        root: For list files: the folder that their paths are relative to (default: the list's own
            folder).

    Raises:
        ValueError: No such place, no videos there, or mistakes in a list file: each with its line.
    """
    if labels not in ("none", "folders"):
        raise ValueError(f"labels is {labels!r}; allowed: none, folders")
    source = storage.absolute(source)
    suffix = os.path.splitext(source)[1].lower()
    if suffix in LIST_SUFFIXES and not storage.is_folder(source):
        return _from_list(source, root=root)
    if root is not None:
        raise ValueError(
            f"root goes with a list file ({', '.join(LIST_SUFFIXES)}), and {_shown(source)} is none"
        )
    if suffix in VIDEO_SUFFIXES and not storage.is_folder(source):
        info = storage.stat(source)
        return Found(source.rpartition("/")[0], (Entry(info.path, info.size, info.etag),))
    return _from_folder(source, labels=labels)


def _from_folder(source: str, *, labels: Labels) -> Found:
    entries: list[Entry] = []
    others = 0
    for file in storage.list_files(source):
        parts = file.path.split("/")
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        if os.path.splitext(file.path)[1].lower() not in VIDEO_SUFFIXES:
            others += 1
            continue
        split, label = (
            _folder_label(parts[:-1], source=source, path=file.path)
            if labels == "folders"
            else (None, None)
        )
        entries.append(Entry(file.path, file.size, file.etag, label=label, split=split))
    if not entries:
        what = f"{others} other files, but no video" if others else "no files"
        raise ValueError(
            f"no videos found in {_shown(source)}: it holds {what}; "
            f"videos end in {', '.join(VIDEO_SUFFIXES)}"
        )
    return Found(source, tuple(entries))


def _folder_label(folders: list[str], *, source: str, path: str) -> tuple[str | None, str]:
    split = _SPLITS.get(folders[0].lower()) if folders else None
    below = folders[1:] if split else folders
    if not below:
        raise ValueError(
            f"labels=folders: {path} lies in no class folder of {_shown(source)}; "
            "put it in CLASS/ (or train/CLASS/), or use labels=none"
        )
    return split, below[0]


def _from_list(source: str, *, root: str | None) -> Found:
    """Give every listed path its size; paths are relative to `root` unless they are absolute."""
    rows = read_list(source)
    base = storage.absolute(root) if root is not None else source.rpartition("/")[0]
    full = [
        row.path if "://" in row.path or os.path.isabs(row.path) else storage.join(base, row.path)
        for row in rows
    ]
    if any(not path.startswith(f"{base}/") for path in full):
        base = _common_folder(full)
    stat = _local_stat if storage.is_local(base) else _listed_stat(base)
    entries: list[Entry] = []
    missing: list[Rejected] = []
    for row, path in zip(rows, full, strict=True):
        video_id = path[len(base) + 1 :]
        info = stat(path)
        if info is None:
            missing.append(Rejected(video_id, "missing", "the list names it, but it is not there"))
        else:
            spans = {"start_s": row.start_s, "end_s": row.end_s}
            entries.append(Entry(video_id, info.size, info.etag, row.label, row.split, **spans))
    return Found(base, tuple(entries), tuple(missing))


def _common_folder(paths: Sequence[str]) -> str:
    """Return the deepest folder or prefix that all paths share."""
    shared = [path.split("/")[:-1] for path in (min(paths), max(paths))]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*shared, strict=False))
    base = "/".join(part for part, _ in same)
    if not base or base.endswith(":/"):
        raise ValueError(
            "the listed paths have no folder or bucket in common "
            f"({_shown(paths[0])}, {_shown(paths[-1])}); put them below one root"
        )
    return base


def _local_stat(path: str) -> storage.FileInfo | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return storage.FileInfo(path, found.st_size, None)


def _listed_stat(base: str) -> Callable[[str], storage.FileInfo | None]:
    """Look up objects in one listing of `base`: a request per thousand, not per object."""
    listing = {storage.join(base, info.path): info for info in storage.list_files(base)}
    return listing.get


def _shown(place: str) -> str:
    return storage.redact(place)


# --- probing ---------------------------------------------------------------------------------


def probe(
    source: str | bytes, *, decode: DecodeConfig = DEFAULT_DECODE, size: int | None = None
) -> Probe:
    """Look inside a video, at a path or URI or in memory; its first and its middle frame are decoded as proof.

    `size` is the length of a remote object, where it is known.

    Raises:
        DecodeError: It cannot be used; the kind says why.
    """
    from clips.decode.pyav import PyavReader  # here, because finding videos needs no FFmpeg

    with PyavReader(source, config=decode, size=size) as reader:
        return probe_opened(reader)


def probe_opened(reader: "PyavReader") -> Probe:
    """Look inside a video that is open already; see `probe`."""
    proof = np.array([0, reader.frames // 2])
    (pictures,) = reader.read([proof])
    info = reader.info
    return Probe(
        container=info.container,
        codec=info.codec,
        pixel_format=info.pixel_format,
        width=pictures.shape[2],
        height=pictures.shape[1],
        rotation=reader.rotation,
        fps=reader.fps,
        frames=reader.frames,
        duration_s=reader.frames / reader.fps,
        keyframe_spacing=info.keyframe_spacing,
    )


def examine(
    entry: Entry, *, root: str, decode: DecodeConfig = DEFAULT_DECODE
) -> dict[str, Any] | Rejected:
    """Return the manifest's row for a video, or why there is none."""
    try:
        uri = storage.join(root, entry.video_id)
        found = probe(uri, decode=decode, size=entry.size)
    except DecodeError as error:
        return Rejected(entry.video_id, error.kind, error.message)
    if found.frames < 2:
        return Rejected(entry.video_id, "one_frame", "it holds a single frame: nothing moves")
    if entry.start_s is not None and entry.start_s >= found.duration_s:
        return Rejected(
            entry.video_id,
            "missing_frames",
            f"its span starts at {entry.start_s:g} s, but the video lasts {found.duration_s:.1f} s",
        )
    return {**asdict(entry), **asdict(found)}


def assign_splits(rows: Iterable[dict[str, Any]], *, fraction: float) -> list[dict[str, Any]]:
    """Return rows with `split` set to train or val by a hash of the video_id.

    Splits that rows have already are kept.
    """
    return [
        row
        if row.get("split")
        else {**row, "split": "val" if held_out(row["video_id"], fraction) else "train"}
        for row in rows
    ]


def write_rejected(rejected: Sequence[Rejected], uri: str) -> None:
    """Write the list of rejected files as Parquet: video_id, reason, message."""
    schema = pa.schema([(name, pa.string()) for name in ("video_id", "reason", "message")])
    write_records(rejected, schema, uri)


def write_records(records: Sequence[Any], schema: pa.Schema, uri: str) -> None:
    """Write dataclass instances as Parquet, a column for each field."""
    table = pa.Table.from_pylist([asdict(record) for record in records], schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def read_rejected(uri: str) -> list[Rejected]:
    """Read what `write_rejected` wrote."""
    table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
    return [Rejected(**row) for row in table.to_pylist()]
