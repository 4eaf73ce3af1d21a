"""From a source to a manifest, in three steps that each may be repeated: compare, look, settle.

1. `compare` walks through the entries of the source and what earlier scans know of them, and notes which
   videos have to be looked at: new ones, and those whose size or etag has changed.
2. `look` has them looked at (on Ray: `clips.pipeline`) and keeps what is found in parts beside the manifest. A
   scan that ends here, by Ctrl-C, by kill -9, by a storage that is gone, goes on from its parts.
3. `settling.settle` walks through both once more, cuts spans, assigns splits, and writes manifest and rejected
   files.

Entries and results come sorted and side by side; ten million need no more memory than ten thousand.
"""

import functools
import heapq
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from clips import storage
from clips.addresses import refuse_secrets
from clips.catalog import Name as DataSetName
from clips.catalog import catalogue
from clips.decode import DecodeConfig
from clips.earlier import (
    OF_THE_MOMENT,
    PROBED,
    Parts,
    Result,
    manifest_before,
    result_of,
    results_before,
    results_in,
    side_by_side,
)
from clips.ingest import Entry, Examine, Recheck, Rejected, examine_content
from clips.sorting import SortedRows
from clips.sources import ENTRIES, Count, Found, Labels, counted, entries_in, find_videos
from clips.storage import StorageError

_READ_BYTES_S = 1e6  # slower than a store that works
_SILENCE_S = 60.0  # of a store, which then says itself that it fails


@dataclass(frozen=True)
class PrepareConfig:
    """What to make a manifest of (the arguments of jobs/prepare.py)."""

    source: str
    """Folder, s3:// or gs:// prefix, single video, or list file (.csv, .txt, .list)."""
    manifest: str
    """Where to write the manifest (Parquet); the rejected files are listed beside it."""
    dataset: DataSetName | None = None
    """The source is the folder of this published data set's videos; ``annotations`` say which, with class and split."""
    annotations: str | None = None
    """Folder or prefix of the data set's official annotation files."""
    fold: int = 1
    """Which of a data set's splits: UCF101 and HMDB51 have three."""
    labels: Labels = "none"
    """`folders` takes labels from class folders. List files bring their own."""
    root: str | None = None
    """For list files: the folder their paths are relative to; null means the list's own folder."""
    split: float = 0.0
    """Share of the videos marked `val` by a hash of their name, the others `train`; 0 marks
    none."""
    clips_per_minute: float = 0.0
    """Cut long videos into spans of equal length, so many rows a minute (at least one a video); 0 cuts none."""
    clip_frames: int = 64
    """Frames from the first to the last of a clip (16 at stride 4): no span is cut shorter."""
    content_hash: bool = False
    """Read all bytes of every video and keep their hash for an etag: slow, but sees every change."""
    retry_rejected: bool = False
    """Look again at the files that were rejected before, changed or not."""
    fresh: bool = False
    """Look again at all files, known or not."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)

    def __post_init__(self) -> None:
        if not 0.0 <= self.split < 1.0:
            raise ValueError(f"split is {self.split}; it must be at least 0 and less than 1")
        if not 0.0 <= self.clips_per_minute <= 6000:
            raise ValueError(
                f"clips_per_minute is {self.clips_per_minute}; it must be 0 (whole videos) to 6000"
            )
        if self.clip_frames < 2:
            raise ValueError(f"clip_frames is {self.clip_frames}; it must be at least 2")
        check_name(self.manifest)
        if (self.dataset is None) != (self.annotations is None):
            raise ValueError(
                "dataset names a published data set and annotations the folder of its official files: "
                "each needs the other"
            )
        if self.dataset is not None and (self.labels != "none" or self.split or self.root):
            raise ValueError(
                "dataset brings its own labels and splits: leave labels, split and root out"
            )
        for name in ("source", "root", "manifest", "annotations"):
            refuse_secrets(getattr(self, name) or "", what=name)


def check_name(manifest: str) -> None:
    """Raise a ValueError unless this can be the name of a manifest."""
    if not manifest.endswith(".parquet"):
        raise ValueError(f"manifest is {manifest!r}; its name must end in .parquet")


@dataclass(frozen=True)
class Progress:
    """How far the work on the files is."""

    kept: int
    rejected: int

    @property
    def done(self) -> int:
        """Files looked at."""
        return self.kept + self.rejected


@dataclass(frozen=True)
class Plan:
    """What is to be looked at."""

    found: Found
    todo: SortedRows
    """A row for each video."""
    videos: int
    """In all, without those that a list names but that are not there."""
    resumed: int
    """Of which an interrupted scan has results."""

    @property
    def known(self) -> int:
        """Videos that need no look: nothing has changed since the last manifest."""
        return self.videos - self.resumed - len(self.todo)

    def summary(self) -> str:
        """What there is and what is left to do, in a line for people."""
        parts = [f"{self.known} known and unchanged"] if self.known else []
        if self.resumed:
            parts.append(f"{self.resumed} done by the scan that was interrupted")
        return f"{self.videos} videos: {', '.join([*parts, f'{len(self.todo)} to look at'])}"


class ScanStopped(StorageError):
    """A storage that failed in the middle of the work; what was done is kept."""


# --- finding ---------------------------------------------------------------------------------


def listed(
    config: PrepareConfig, *, progress: Count | None = None
) -> tuple[PrepareConfig, list[str]]:
    """With a published data set for its source: the same with its list, beside the manifest, and what to know of it.

    Raises:
        ValueError: As `catalogue` says, or the manifest cannot be written.
    """
    if config.dataset is None or config.annotations is None:
        return config, []
    check_target(config)
    made = catalogue(
        config.dataset,
        annotations=config.annotations,
        videos=config.source,
        fold=config.fold,
        progress=progress,
    )
    place = f"{config.manifest.removesuffix('.parquet')}.list.csv"
    storage.write_bytes(place, made.listing)
    root, nothing = config.source, {"dataset": None, "annotations": None}
    return replace(config, source=place, root=root, **nothing), made.notes


def find(config: PrepareConfig, *, progress: Count | None = None) -> Found:
    """Return the videos of the source; needs no Ray, so mistakes show before it starts.

    Args:
        config: Source and target.
        progress: Called with the number of files seen so far.

    Raises:
        ValueError: Nothing found, mistakes in a list file, an unreadable place, or a manifest that cannot be written.
    """
    check_target(config)
    return find_videos(config.source, labels=config.labels, root=config.root, progress=progress)


def check_target(config: PrepareConfig) -> None:
    """Raise a ValueError now if the manifest cannot be written later; leaves nothing behind."""
    place = config.manifest
    if storage.is_local(place):
        _check_folder(storage.local_path(place))
    else:
        trial = f"{place.removesuffix('.parquet')}.parts/{uuid.uuid4().hex[:16]}.trial"
        storage.write_bytes(trial, b"")
        storage.remove(trial)
    manifest_before(place, fresh=config.fresh)


def _check_folder(path: str) -> None:
    if os.path.isdir(path):
        raise ValueError(f"manifest: {path} is a folder; name a file in it")
    folder = os.path.dirname(path)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)  # those that are missing will be made
    if not os.path.isdir(folder):
        raise ValueError(f"manifest: {path} cannot be written: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"manifest: {path} cannot be written: no permission to write in {folder}")


# --- comparing -------------------------------------------------------------------------------

_TO_LOOK_AT = pa.schema(
    [*(ENTRIES.field(name) for name in ENTRIES.names[:-2]), ("known", pa.string())]
)


def compare(config: PrepareConfig, found: Found, *, progress: Count | None = None) -> Plan:
    """Return which videos have to be looked at.

    Args:
        config: Source and target.
        found: What `find` gave.
        progress: Called with the number of videos, after every ten thousand.
    """
    todo = SortedRows(_TO_LOOK_AT)
    videos = resumed = 0
    for entries, results in counted(known_of(config, found), progress):
        if not entries or entries[0][1] is not None:
            continue
        videos += 1
        entry = entries[0][0]
        held = holding(config, entry, results)
        if held is None:
            known = _seen(results) if config.content_hash and not config.fresh else None
            todo.append((*_of_the_video(entry), known))
        else:
            resumed += held.recent
    return Plan(found, todo, videos, resumed)


def known_of(config: PrepareConfig, found: Found) -> Iterator[Any]:
    """Yield entries and results of each video, both lists perhaps empty; results of this scan first."""
    recent = results_in(parts_of(config, found).read())
    before = results_before(config.manifest, root=found.root, fresh=config.fresh)
    results = heapq.merge(recent, before, key=lambda result: result.video_id)
    return side_by_side(entries_in(found.rows), results)


def parts_of(config: PrepareConfig, found: Found) -> Parts:
    """Return the folder of this scan's results."""
    asked = 2 if config.fresh else 1 if config.retry_rejected else 0
    return Parts(config.manifest, root=found.root, asked=asked, by_content=config.content_hash)


def _of_the_video(entry: Entry) -> Iterator[Any]:
    """The values of an entry that are the video's: not what the source says of label, split, and span."""
    return (None if name in _SAID else value for name, value in vars(entry).items())


def holding(config: PrepareConfig, entry: Entry, results: Iterable[Result]) -> Result | None:
    """Return the result that makes a look unnecessary."""
    for result in results:
        if not result.is_of(entry) or (result.found is None and result.reason is None):
            continue
        if result.recent:
            return result
        if config.fresh or config.content_hash or result.reason in OF_THE_MOMENT:
            continue
        if not (config.retry_rejected and result.reason):
            return result
    return None


def _seen(results: Iterable[Result]) -> str | None:
    """The last result with a hash of the content, as JSON."""
    for result in results:
        told = result.found is not None or result.reason is not None
        if told and (result.etag or "").startswith("blake2b:"):
            return json.dumps([result.etag, result.found, result.reason, result.message])
    return None


_SAID = ("label", "split", "start_s", "end_s")


# --- looking ---------------------------------------------------------------------------------

Item = Entry | Recheck
Spread = Callable[..., Iterable[list[tuple[Any, dict[str, Any] | Rejected]]]]
"""Does work on many items: see `clips.pipeline.spread`."""


def look(
    config: PrepareConfig,
    plan: Plan,
    *,
    spread: Spread,
    examine: Examine,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Look inside the videos of a plan, and keep the results in parts beside the manifest.

    Args:
        config: Source and target.
        plan: What to look at.
        spread: Does the work on many items, in any order.
        examine: The work on one.
        progress: Called after every batch.

    Raises:
        ScanStopped: The storage has failed; what was found is kept.
    """
    if not len(plan.todo):
        return
    how: dict[str, Any] = {"root": plan.found.root, "decode": config.decode}
    work = functools.partial(examine, **how)
    if config.content_hash:
        work = functools.partial(examine_content, examine=examine, **how)
    parts = parts_of(config, plan.found)
    kept = rejected = 0
    try:
        try:
            limit = _limit(config, plan.found.root)
            for pairs in spread(_items(config, plan), work, total=len(plan.todo), seconds=limit):
                results = [result_of(_entry(item), result) for item, result in pairs]
                rejected += sum(result.found is None for result in results)
                kept += sum(result.found is not None for result in results)
                parts.add(results)
                if progress is not None:
                    progress(Progress(kept, rejected))
        finally:
            parts.write()  # however it ends: Ctrl-C, too
    except StorageError as error:
        raise ScanStopped(
            error.kind,
            f"{error}; {parts.saved} of {len(plan.todo)} videos were looked at until then and are kept: "
            "the same command goes on from there",
        ) from error


def _items(config: PrepareConfig, plan: Plan) -> Iterator[Item]:
    for *values, known in plan.todo.rows():
        entry = Entry(*values)
        yield _recheck(config, entry, known) if config.content_hash else entry


def _recheck(config: PrepareConfig, entry: Entry, known: str | None) -> Recheck:
    if known is None:
        return Recheck(entry)
    etag, found, reason, message = json.loads(known)
    if reason is not None:
        again = config.retry_rejected or reason in OF_THE_MOMENT
        result = None if again else Rejected(entry.video_id, reason, message, etag)
        return Recheck(entry, etag, result)
    return Recheck(entry, etag, {**dict(zip(PROBED, found, strict=True)), "etag": etag})


def _entry(item: Item) -> Entry:
    return item if isinstance(item, Entry) else item.entry


def _limit(config: PrepareConfig, root: str) -> Callable[[Item], float]:
    """Seconds that a look at one item may take: a slow store must not pass for a video that hangs."""

    def limit(item: Item) -> float:
        entry = _entry(item)
        remote = not storage.is_local(storage.join(root, entry.video_id))
        reading = entry.size / _READ_BYTES_S if remote or config.content_hash else 0.0
        return config.decode.wall_seconds + reading + (_SILENCE_S if remote else 0.0)

    return limit
