"""Where videos are: a folder, a bucket, a file, or a list, walked through into entries.

Sources: a folder or a bucket prefix (every file with a video's name, at any depth), class folders
(`<class>/video.mp4`, also below `train/`, `val/`, `test/`, which become the split), a single video,
and list files: the authors' `path label` (V1) and `path start total` (V2) lines, or a CSV with a header.
What a list names may lie anywhere, also on web servers; where the places have no folder in common,
the root is empty and each address stands for itself.

An entry is what is known before anybody looks inside: path, size, etag, label, split, span. Entries are
walked through, sorted, and kept in files beyond a few hundred thousand (`sorting`), so that ten million need
no memory. What a list names but is not there becomes an entry with a reason.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Literal, TypeVar

import pyarrow as pa

from clips import frames, shards, storage
from clips.addresses import refuse_secrets
from clips.ingest import Entry, Rejected
from clips.lists import Mistakes, read_list
from clips.lookups import files_below, in_turn, is_folder, looked_up
from clips.manifest import SCHEMA
from clips.sorting import SortedRows
from clips.storage import FileInfo

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts"),
    *(".flv", ".wmv", ".3gp", ".ogv", ".gif", ".h264", ".hevc", ".ivf", ".vob"),
)
LIST_SUFFIXES = (".csv", ".txt", ".list")
Labels = Literal["none", "folders"]
Count = Callable[[int], None]
T = TypeVar("T")

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validation": "val",
    "valid": "val",
    "test": "test",
}
_TOLD_EVERY = 10_000

_FIELDS = tuple(field.name for field in fields(Entry))
_values = attrgetter(*_FIELDS)
ENTRIES = pa.schema(
    [SCHEMA.field(name).with_nullable(True) for name in _FIELDS]
    + [("reason", pa.string()), ("message", pa.string())]
)
"""Columns of entries that are walked through: those of `Entry`, and why one cannot be looked at (null: it can)."""
Row = tuple[Entry, str | None, str | None]
"""An entry, and why it cannot be looked at: reason and message, or None."""


@dataclass(frozen=True)
class Found:
    """All videos of a source."""

    root: str
    """Folder or prefix of all; empty where they have none in common."""
    rows: SortedRows
    """Columns `ENTRIES`, sorted by (video_id, start_s)."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Those that can be looked at, all at once: for few."""
        return tuple(entry for entry, reason, _ in entries_in(self.rows) if reason is None)

    @property
    def missing(self) -> tuple[Rejected, ...]:
        """Those that a list names but that cannot be had."""
        return tuple(
            Rejected(entry.video_id, reason, message or "")
            for entry, reason, message in entries_in(self.rows)
            if reason is not None
        )


def entries_in(rows: SortedRows) -> Iterator[Row]:
    """Yield entries in order, each with why it cannot be looked at (reason and message, or None)."""
    for *values, reason, message in rows.rows():
        yield Entry(*values), reason, message


def find_videos(
    source: str,
    *,
    labels: Labels = "none",
    root: str | None = None,
    progress: Count | None = None,
) -> Found:
    """Return the videos of a folder, a bucket prefix, a single file, or a list file.

    Args:
        source: The place.
        labels: `folders` takes the label from the first folder below the source (or below `train`,
            `val`, `test`). List files bring their own labels.
        root: For list files: the folder that their paths are relative to (default: the list's own
            folder).
        progress: Called with the number of files seen, after every ten thousand.

    Raises:
        ValueError: No such place, no videos there, an address with a secret in it, or mistakes in a
            list file: each with its line.
    """
    if labels not in ("none", "folders"):
        raise ValueError(f"labels is {labels!r}; allowed: none, folders")
    refuse_secrets(source, what="source")
    refuse_secrets(root or "", what="root")
    source = storage.absolute(source)
    suffix = os.path.splitext(source)[1].lower()
    if suffix in LIST_SUFFIXES and not is_folder(source):
        return _from_list(source, root=root, progress=progress)
    if root is not None:
        raise ValueError(
            f"root goes with a list file ({', '.join(LIST_SUFFIXES)}), and {_shown(source)} is none"
        )
    if suffix in (*VIDEO_SUFFIXES, shards.SUFFIX) and not is_folder(source):
        folder, _, name = source.rpartition("/")
        info = storage.stat(source)
        file = FileInfo(name, info.size, info.etag)
        return _gathered(folder, entries_of(file, source=folder, labels="none"))
    return _from_folder(source, labels=labels, progress=progress)


def entries_of(file: FileInfo, *, source: str, labels: Labels) -> list[Row]:
    """Return what a listed file is: a video, a folder of frames, the videos of a shard, or nothing that is known.

    Args:
        file: Its path is relative to `source`.
        source: The listed folder or prefix.
        labels: See `find_videos`; what stands beside a video in a shard comes first.

    Raises:
        ValueError: It lies in no class folder, and should.
    """
    folder, shard = isinstance(file, frames.Folder), file.path.lower().endswith(shards.SUFFIX)
    if not (folder or shard or _is_video(file.path)):
        return []
    split = label = None
    if labels == "folders":
        split, label = _folder_label(file.path.split("/")[:-1], source=source, path=file.path)
    entry = Entry(file.path, file.size, file.etag, label=label, split=split)
    if shard:
        return _in_shard(entry, source)
    return [(replace(entry, container="frames") if folder else entry, None, None)]


def _is_video(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES


def _in_shard(shard: Entry, source: str) -> list[Row]:
    """The videos of a shard, each with the shard's etag."""
    place = storage.join(source, shard.video_id)
    try:
        found = shards.members(place, size=shard.size, suffixes=VIDEO_SUFFIXES)
    except shards.NotAShard as error:
        return [(shard, "corrupt", str(error))]
    if not found:
        return [(shard, "empty", "no video is in this shard")]
    return [
        (
            replace(
                shard,
                video_id=f"{shard.video_id}/{member.name}",
                size=member.size,
                offset=member.offset,
                label=member.label or shard.label,
            ),
            None,
            None,
        )
        for member in found
    ]


def _gathered(root: str, found: Iterable[Row]) -> Found:
    rows = SortedRows(ENTRIES)
    for entry, reason, message in found:
        rows.append((*_values(entry), reason, message))
    return Found(root, rows)


# --- folders ---------------------------------------------------------------------------------


def _from_folder(source: str, *, labels: Labels, progress: Count | None) -> Found:
    others = 0

    def seen() -> Iterator[FileInfo]:
        for file in counted(files_below(source), progress):
            parts = file.path.split("/")
            if not any(part.startswith(".") or part == "__MACOSX" for part in parts):
                yield file

    def walk() -> Iterator[Row]:
        nonlocal others
        look = functools.partial(entries_of, source=source, labels=labels)
        for found in in_turn(
            look, frames.with_folders(seen(), is_video=_is_video), _is_remote_shard
        ):
            others += not found
            yield from found

    def _is_remote_shard(file: FileInfo) -> bool:
        return file.path.lower().endswith(shards.SUFFIX) and not storage.is_local(source)

    found = _gathered(source, walk())
    if not len(found):
        what = f"{others} other files, but no video" if others else "no files"
        raise ValueError(
            f"no videos found in {_shown(source)}: it holds {what}; "
            f"videos end in {', '.join(VIDEO_SUFFIXES)}"
        )
    return found


def _folder_label(folders: list[str], *, source: str, path: str) -> tuple[str | None, str]:
    split = _SPLITS.get(folders[0].lower()) if folders else None
    below = folders[1:] if split else folders
    if not below:
        raise ValueError(
            f"labels=folders: {path} lies in no class folder of {_shown(source)}; "
            "put it in CLASS/ (or train/CLASS/), or use labels=none"
        )
    return split, below[0]


def counted(items: Iterable[T], progress: Count | None) -> Iterator[T]:
    """Yield the items, and tell `progress` how many there were after every ten thousand."""
    for number, item in enumerate(items, 1):
        if progress is not None and number % _TOLD_EVERY == 0:
            progress(number)
        yield item


# --- lists -----------------------------------------------------------------------------------

_LISTED = pa.schema(
    [
        *(SCHEMA.field(n) for n in ("video_id", "start_s", "end_s", "label", "split", "frames")),
        ("line", pa.int64()),
    ]
)


def _from_list(source: str, *, root: str | None, progress: Count | None) -> Found:
    """Give every listed path its size; paths are relative to `root` unless they are absolute."""
    base = storage.absolute(root) if root is not None else source.rpartition("/")[0]
    listed = SortedRows(_LISTED)
    for row in read_list(source):
        path = row.path
        if "://" not in path:
            path = path if os.path.isabs(path) else storage.join(base, path)
        listed.append((path, row.start_s, row.end_s, row.label, row.split, row.frames, row.line))
    _check_unique(source, listed, base)
    if not all(path.startswith(f"{base}/") for path in listed.ends()):
        base = common_folder(*listed.ends())
    cut = len(base) + 1 if base else 0
    rows = SortedRows(ENTRIES)
    there = 0
    groups = itertools.groupby(listed.rows(), key=lambda row: row[0])
    paths, groups = itertools.tee((path, list(group)) for path, group in groups)
    found = looked_up(
        ((path, group[0][5] is not None) for path, group in paths), base, count=len(listed)
    )
    for (path, group), (info, reason, message) in zip(
        groups, counted(found, progress), strict=True
    ):
        there += reason is None
        size, etag = (info.size, info.etag) if info else (None, None)
        container = "frames" if isinstance(info, frames.Folder) else None
        for _, start_s, end_s, label, split, count, _ in group:
            spans = {"start_s": start_s, "end_s": end_s}
            entry = Entry(path[cut:], size, etag, label, split, **spans)  # pyright: ignore[reportArgumentType]
            entry = replace(entry, container=container, frames=count)
            rows.append((*_values(entry), reason, message))
    if not there:
        if storage.is_local(base) and not os.path.isdir(base):
            storage.stat(base)  # the disk is gone: its error says so
        raise ValueError(
            f"none of the {len(rows)} files that {_shown(source)} names can be had, the first is "
            f"{_shown(listed.ends()[0])}; root= is the folder that its paths start from"
        )
    return Found(base, rows)


def _check_unique(source: str, listed: SortedRows, base: str) -> None:
    mistakes = Mistakes(source)
    for before, after in itertools.pairwise(listed.rows()):
        if before[:2] == after[:2]:
            path = after[0].removeprefix(f"{base}/")
            mistakes.add(after[-1], f"{path!r} stands on line {before[-1]} already")
    mistakes.check()


def common_folder(first: str, last: str) -> str:
    """Return the deepest folder or prefix that all sorted paths share, from the first to the last of them; or none."""
    shared = [path.split("/")[:-1] for path in (first, last)]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*shared, strict=False))
    base = "/".join(part for part, _ in same)
    return "" if base.endswith(":/") or base.endswith(":") else base


def _shown(place: str) -> str:
    return storage.redact(place)
