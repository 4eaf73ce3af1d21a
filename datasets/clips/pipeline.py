"""Work on many files on a Ray cluster: a source becomes a manifest, a manifest a copy that decodes cheaply.

The only file here that imports Ray. The driver lists, hands out batches of files, and writes the manifest and the list
of rejected files at the end. It uses the Ray that the process is connected to.

A file cannot take the job down. One that crashes its process, or hangs beyond the time limit (a watchdog then ends the
process, whatever it is stuck in), loses its batch; the batch's files are then taken one by one, and the one that does
it again is rejected. A storage that fails is not the file's fault: its error ends the work.
"""

import faulthandler
import functools
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from clips import storage
from clips.decode import DecodeConfig
from clips.earlier import rejected_place, write_rejected
from clips.ingest import Entry, Examine, Recheck, Rejected, examine
from clips.manifest import SCHEMA, Manifest, write_manifest
from clips.preparation import (
    Plan,
    PrepareConfig,
    Progress,
    ScanStopped,
    check_name,
    compare,
    find,
    listed,
    look,
)
from clips.settling import Prepared, settle
from clips.shard_copies import Shard, deal, make_shard
from clips.sources import Found
from clips.transcode import Encoder, Quality, make_copy, write_quality

__all__ = [
    "Plan",
    "PrepareConfig",
    "Prepared",
    "Progress",
    "ScanStopped",
    "TranscodeConfig",
    "Transcoded",
    "compare",
    "find",
    "listed",
    "look_inside",
    "prepare",
    "settle",
    "transcode",
]

_log = logging.getLogger(__name__)

_LARGEST_BATCH = 32

_ENDED = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
)
Result = Any  # a row or why there is none; of a shard, a list of them
Item = Entry | Recheck | Shard
Work = Callable[[Any], Result]


@dataclass(frozen=True)
class TranscodeConfig:
    """What to copy, and where to (the arguments of jobs/transcode.py)."""

    source: str
    """Manifest of the videos to copy."""
    target: str
    """Folder or s3:// prefix for the copies, which keep their paths, or for the shards."""
    manifest: str
    """Where to write the copies' manifest (Parquet); rejected files and quality are listed beside it."""
    shard_mb: int | None = None
    """If set, copies go into tar shards (WebDataset's form), each of about so many MiB of sources."""
    encoder: Encoder = field(default_factory=Encoder)
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(seconds=600.0))
    """For reading the sources; `decode.seconds` bounds the whole work on one video."""

    def __post_init__(self) -> None:
        check_name(self.manifest)
        if self.shard_mb is not None and self.shard_mb < 1:
            raise ValueError(f"shard_mb is {self.shard_mb}; it must be at least 1, or null")
        if self.manifest == self.source:
            raise ValueError(
                "manifest is the source itself: give the copies' manifest another name"
            )


@dataclass(frozen=True)
class Transcoded:
    """What came of it."""

    manifest: Manifest
    rejected: tuple[Rejected, ...]
    rejected_uri: str
    quality: tuple[Quality, ...]
    """Of every copy, by the source's name."""
    quality_uri: str

    def summary(self) -> str:
        """Bytes and picture quality, in a line for people."""
        before, after = (sum(getattr(q, n) for q in self.quality) for n in ("source_size", "size"))
        worst = min(self.quality, key=lambda q: q.psnr_db)
        mean = sum(q.psnr_db for q in self.quality) / len(self.quality)
        there = sum(q.kept for q in self.quality)
        text = (
            f"{before / 2**20:,.1f} MiB became {after / 2**20:,.1f} MiB ({after / before:.2f} x); "
            f"PSNR {mean:.1f} dB in the mean, {worst.psnr_db:.1f} at worst ({worst.video_id})"
        )
        if there:
            text += f"; {there} copies were there already"
        return f"{text}; each in {storage.redact(self.quality_uri)}"


def prepare(
    config: PrepareConfig,
    *,
    found: Found | None = None,
    progress: Callable[[Progress], None] | None = None,
    examine: Examine = examine,
) -> Prepared:
    """Find and probe the videos of a source, those that are new or have changed, and write the manifest.

    Args:
        config: Source, target, and labels.
        found: What `find` gave for this configuration, if it was called already.
        progress: Called after every batch of videos that were looked at.
        examine: The probe of one entry; replaceable, so that tests can inject faults.

    Raises:
        ValueError: Nothing found, mistakes in a list file, an unreadable place, or no usable video
            at all.
        ScanStopped: The storage has failed in the middle; the same call goes on from there.
    """
    plan = compare(config, find(config) if found is None else found)
    look_inside(config, plan, progress=progress, examine=examine)
    return settle(config, plan)


def look_inside(
    config: PrepareConfig,
    plan: Plan,
    *,
    progress: Callable[[Progress], None] | None = None,
    examine: Examine = examine,
) -> None:
    """Do what a plan says is to be done, on Ray, which is not needed for nothing; see `preparation.look`."""
    look(config, plan, spread=spread, examine=examine, progress=progress)


def transcode(
    config: TranscodeConfig,
    *,
    source: Manifest,
    progress: Callable[[Progress], None] | None = None,
    make_copy: Examine = make_copy,
) -> Transcoded:
    """Write a copy of every video of a manifest, once, and the copies' manifest.

    Copies that an earlier, interrupted call has written are kept; those of other settings or of a source that has
    changed since are written anew. Labels, splits and spans are those of the source's rows.

    Args:
        config: Where to and how.
        source: The manifest at `config.source`.
        progress: Called after every batch.
        make_copy: The work on one video; replaceable, so that tests can inject faults.

    Raises:
        ValueError: The target is the source's own folder, or no video at all can be copied.
    """
    target = storage.absolute(config.target)
    if target == source.root:
        raise ValueError(
            f"target {storage.redact(target)} is where the sources are: name another place"
        )
    rows = source.table.to_pylist()
    entries = list({row["video_id"]: _video(row) for row in rows}.values())
    rejected_uri = rejected_place(config.manifest)
    quality_uri = f"{config.manifest.removesuffix('.parquet')}.quality.parquet"
    how: dict[str, Any] = {"encoder": config.encoder, "decode": config.decode}
    items: list[Any] = list(entries)
    work = functools.partial(make_copy, root=source.root, target=target, **how)
    if config.shard_mb is not None:
        items = list(deal(entries, megabytes=config.shard_mb))
        work = functools.partial(make_shard, root=source.root, target=target, **how)
    made, rejected = _collect(items, work, config.decode, rejected_uri, progress)
    if not made:
        raise ValueError(
            f"none of the {len(entries)} videos of {storage.redact(config.source)} can be copied; "
            f"each is listed in {storage.redact(rejected_uri)}"
        )
    quality = tuple(
        sorted(
            (Quality(c["source"], *(c[n] for n in _QUALITY)) for c in made),
            key=lambda q: q.video_id,
        )
    )
    write_quality(quality, quality_uri)
    copies = {c["source"]: {n: c[n] for n in c if n in SCHEMA.names} for c in made}
    copied = [
        {**{n: row[n] for n in _CARRIED}, **copies[row["video_id"]]}
        for row in rows
        if row["video_id"] in copies
    ]
    manifest = write_manifest(Manifest.build(copied, root=target), config.manifest)
    return Transcoded(manifest, tuple(rejected), rejected_uri, quality, quality_uri)


_CARRIED = ("label", "labels", "split", "start_s", "end_s", "boxes")
_QUALITY = ("source_size", "size", "psnr_db", "kept")


def _video(row: dict[str, Any]) -> Entry:
    """The video of a row: without split and span."""
    return Entry(
        **{n: row[n] for n in ("video_id", "size", "etag", "label", "container", "offset")}
    )


def _collect(
    items: list[Any],
    work: Work,
    decode: DecodeConfig,
    rejected_uri: str,
    progress: Callable[[Progress], None] | None,
) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """Do the work on all videos or shards and write the list of the rejected videos, in any case."""

    def seconds(item: Any) -> float:
        # Each video of a shard may be tried twice; once more is for the shard itself.
        return decode.wall_seconds * (2 * len(item.entries) + 1 if isinstance(item, Shard) else 1)

    rows: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    write_rejected([], rejected_uri)  # now, so that an unwritable place shows at once
    for pairs in spread(items, work, total=len(items), seconds=seconds):
        results = [one for _, made in pairs for one in (made if isinstance(made, list) else [made])]
        rejected += [one for one in results if isinstance(one, Rejected)]
        rows += [one for one in results if not isinstance(one, Rejected)]
        if progress is not None:
            progress(Progress(len(rows), len(rejected)))
    rejected.sort(key=lambda r: r.video_id)
    write_rejected(((one, None) for one in rejected), rejected_uri)
    return rows, rejected


def spread(
    items: Iterable[Item], work: Work, *, total: int, seconds: Callable[[Any], float]
) -> Iterator[list[tuple[Item, Result]]]:
    """Yield items with their results, in batches as they finish, in any order.

    Args:
        items: Taken as they are needed: any number.
        work: What a worker does with one.
        total: How many items there are.
        seconds: How long the work on an item may take before its process is ended.

    Raises:
        StorageError: As the work raised it.
    """
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    size = max(1, min(_LARGEST_BATCH, -(-total // (4 * cpus))))
    coming = iter(items)
    singly: deque[Item] = deque()
    running: dict[Any, list[Item]] = {}
    while True:
        while len(running) < 2 * cpus:
            batch = [singly.popleft()] if singly else list(itertools.islice(coming, size))
            if not batch:
                break
            limits = [seconds(item) for item in batch]
            running[_work_on.remote(batch, limits, work)] = batch
        if not running:
            return
        (ready,), _ = ray.wait(list(running), num_returns=1)
        batch = running.pop(ready)
        try:
            yield list(zip(batch, ray.get(ready), strict=True))
        except _ENDED:
            if len(batch) == 1:
                message = f"it ended the process, or took over {seconds(batch[0]):g} s"
                yield [(batch[0], Rejected(batch[0].video_id, "crashed", message))]
            else:
                _log.warning("a file ended its process; taking its %d files singly", len(batch))
                singly.extend(batch)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, storage.StorageError):
                raise error.cause from None  # as in one process: without the worker's traceback
            raise


@ray.remote(num_cpus=1, max_retries=0)
def _work_on(items: list[Item], limits: list[float], work: Work) -> list[Result]:
    results: list[Result] = []
    for item, limit in zip(items, limits, strict=True):
        # Ends the process from a thread of its own, even if native code holds Python's lock.
        faulthandler.dump_traceback_later(limit, exit=True)
        try:
            results.append(work(item))
        finally:
            faulthandler.cancel_dump_traceback_later()
    return results
