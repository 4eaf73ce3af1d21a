"""Work on many files on a Ray cluster: a source becomes a manifest, a manifest a copy that decodes cheaply.

The only file here that imports Ray. The driver lists, hands out batches of files, and writes the manifest and the list
of rejected files at the end. It uses the Ray that the process is connected to.

A file cannot take the job down. One that crashes its process, or hangs beyond the time limit (a watchdog then ends the
process, whatever it is stuck in), loses its batch; the batch's files are then taken one by one, and the one that does
it again is rejected.
"""

import faulthandler
import functools
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from clips import storage
from clips.decode import DecodeConfig
from clips.ingest import (
    Entry,
    Found,
    Labels,
    Rejected,
    assign_splits,
    examine,
    find_videos,
    write_rejected,
)
from clips.manifest import SCHEMA, Manifest, write_manifest
from clips.transcode import Encoder, Quality, make_copy, write_quality

_log = logging.getLogger(__name__)

_LARGEST_BATCH = 32

Result = dict[str, Any] | Rejected
Examine = Callable[..., Result]
Work = Callable[[Entry], Result]


@dataclass(frozen=True)
class PrepareConfig:
    """What to make a manifest of (the arguments of jobs/prepare.py)."""

    source: str
    """Folder, s3:// prefix, single video, or list file (.csv, .txt, .list)."""
    manifest: str
    """Where to write the manifest (Parquet); the rejected files are listed beside it."""
    labels: Labels = "none"
    """`folders` takes labels from class folders. List files bring their own."""
    root: str | None = None
    """For list files: the folder their paths are relative to; null means the list's own folder."""
    split: float = 0.0
    """Share of the videos marked `val` by a hash of their name, the others `train`; 0 marks
    none."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)

    def __post_init__(self) -> None:
        if not 0.0 <= self.split < 1.0:
            raise ValueError(f"split is {self.split}; it must be at least 0 and less than 1")
        _check_name(self.manifest)


@dataclass(frozen=True)
class Prepared:
    """What came of it."""

    manifest: Manifest
    rejected: tuple[Rejected, ...]
    rejected_uri: str
    """Where the list of rejected files is; written even if it is empty."""


@dataclass(frozen=True)
class TranscodeConfig:
    """What to copy, and where to (the arguments of jobs/transcode.py)."""

    source: str
    """Manifest of the videos to copy."""
    target: str
    """Folder or s3:// prefix for the copies, which keep their paths."""
    manifest: str
    """Where to write the copies' manifest (Parquet); rejected files and quality are listed beside it."""
    encoder: Encoder = field(default_factory=Encoder)
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(seconds=600.0))
    """For reading the sources; `decode.seconds` bounds the whole work on one video."""

    def __post_init__(self) -> None:
        _check_name(self.manifest)
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
        measured = [q for q in self.quality if q.psnr_db is not None]
        there = len(self.quality) - len(measured)
        text = f"{before / 2**20:,.1f} MiB became {after / 2**20:,.1f} MiB ({after / before:.2f} x)"
        if measured:
            worst = min(measured, key=lambda q: q.psnr_db or 0.0)
            mean = sum(q.psnr_db or 0.0 for q in measured) / len(measured)
            text += (
                f"; PSNR {mean:.1f} dB in the mean, {worst.psnr_db:.1f} at worst ({worst.video_id})"
            )
        if there:
            text += f"; {there} copies were there already"
        return f"{text}; each in {storage.redact(self.quality_uri)}"


@dataclass(frozen=True)
class Progress:
    """How far the probing is."""

    kept: int
    rejected: int

    @property
    def done(self) -> int:
        """Files looked at."""
        return self.kept + self.rejected


def find(config: PrepareConfig) -> Found:
    """Return the videos of the source; needs no Ray, so mistakes show before it starts.

    Raises:
        ValueError: Nothing found, mistakes in a list file, or an unreadable place.
    """
    return find_videos(config.source, labels=config.labels, root=config.root)


def prepare(
    config: PrepareConfig,
    *,
    found: Found | None = None,
    progress: Callable[[Progress], None] | None = None,
    examine: Examine = examine,
) -> Prepared:
    """Find and probe the videos of a source, and write the manifest.

    Args:
        config: Source, target, and labels.
        found: What `find` gave for this configuration, if it was called already.
        progress: Called after every batch.
        examine: The probe of one entry; replaceable, so that tests can inject faults.

    Raises:
        ValueError: Nothing found, mistakes in a list file, an unreadable place, or no usable video
            at all.
    """
    found = find(config) if found is None else found
    rejected_uri = _beside(config.manifest, "rejected")
    work = functools.partial(examine, root=found.root, decode=config.decode)
    rows, rejected = _collect(
        found.entries, work, config.decode, list(found.missing), rejected_uri, progress
    )
    if not rows:
        reasons = Counter(r.reason for r in rejected).most_common()
        raise ValueError(
            f"none of the {len(found)} videos of {storage.redact(config.source)} can be used "
            f"({', '.join(f'{count} {reason}' for reason, count in reasons)}); "
            f"each is listed in {storage.redact(rejected_uri)}"
        )
    if config.split:
        rows = assign_splits(rows, fraction=config.split)
    manifest = write_manifest(Manifest.build(rows, root=found.root), config.manifest)
    return Prepared(manifest, tuple(rejected), rejected_uri)


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
    entries = [
        Entry(video_id, size, etag)
        for video_id, (size, etag) in {
            row["video_id"]: (row["size"], row["etag"]) for row in rows
        }.items()
    ]
    rejected_uri, quality_uri = (_beside(config.manifest, n) for n in ("rejected", "quality"))
    work = functools.partial(
        make_copy, root=source.root, target=target, encoder=config.encoder, decode=config.decode
    )
    made, rejected = _collect(entries, work, config.decode, [], rejected_uri, progress)
    if not made:
        raise ValueError(
            f"none of the {len(entries)} videos of {storage.redact(config.source)} can be copied; "
            f"each is listed in {storage.redact(rejected_uri)}"
        )
    quality = tuple(
        sorted(
            (Quality(c["source"], c["source_size"], c["size"], c["psnr_db"]) for c in made),
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


def _check_name(manifest: str) -> None:
    if not manifest.endswith(".parquet"):
        raise ValueError(f"manifest is {manifest!r}; its name must end in .parquet")


def _beside(manifest: str, what: str) -> str:
    """Address of another list about a manifest's videos."""
    return f"{manifest.removesuffix('.parquet')}.{what}.parquet"


def _collect(
    entries: Sequence[Entry],
    work: Work,
    decode: DecodeConfig,
    rejected: list[Rejected],
    rejected_uri: str,
    progress: Callable[[Progress], None] | None,
) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """Do the work on all entries and write the list of the rejected ones, in any case."""
    rows: list[dict[str, Any]] = []
    write_rejected(rejected, rejected_uri)  # now, so that an unwritable place shows at once
    for results in _spread(entries, work, seconds=decode.wall_seconds):
        for one in results:
            if isinstance(one, Rejected):
                rejected.append(one)
            else:
                rows.append(one)
        if progress is not None:
            progress(Progress(len(rows), len(rejected)))
    rejected.sort(key=lambda r: r.video_id)
    write_rejected(rejected, rejected_uri)
    return rows, rejected


def _spread(entries: Sequence[Entry], work: Work, *, seconds: float) -> Iterable[list[Result]]:
    """Yield the results of batches as they finish, in any order."""
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    size = max(1, min(_LARGEST_BATCH, -(-len(entries) // (4 * cpus))))
    waiting = deque(entries[i : i + size] for i in range(0, len(entries), size))
    running: dict[Any, Sequence[Entry]] = {}
    while waiting or running:
        while waiting and len(running) < 2 * cpus:
            batch = waiting.popleft()
            running[_work_on.remote(batch, work, seconds)] = batch
        (ready,), _ = ray.wait(list(running), num_returns=1)
        batch = running.pop(ready)
        try:
            yield ray.get(ready)
        except ray.exceptions.WorkerCrashedError:
            if len(batch) == 1:
                message = f"it ended the process, or took over {seconds:g} s"
                yield [Rejected(batch[0].video_id, "crashed", message)]
            else:
                _log.warning("a file ended its process; taking its %d files singly", len(batch))
                waiting.extendleft([entry] for entry in batch)


@ray.remote(num_cpus=1, max_retries=0)
def _work_on(entries: Sequence[Entry], work: Work, seconds: float) -> list[Result]:
    results: list[Result] = []
    for entry in entries:
        # Ends the process from a thread of its own, even if native code holds Python's lock.
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            results.append(work(entry))
        finally:
            faulthandler.cancel_dump_traceback_later()
    return results
