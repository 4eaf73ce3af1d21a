"""Ingest on a Ray cluster: a source becomes a manifest. The only file here that imports Ray.

The driver lists the source, hands out batches of files, and writes the manifest and the list of
rejected files at the end. It uses the Ray that the process is connected to.

A file cannot take the job down. A probe that crashes its process, or hangs beyond the time limit
(a watchdog then ends the process, whatever it is stuck in), loses its batch; the batch's files are
then probed one by one, and the one that does it again is rejected.
"""

import faulthandler
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
from clips.manifest import Manifest, write_manifest

_log = logging.getLogger(__name__)

_LARGEST_BATCH = 32
_GRACE_SECONDS = 5.0  # beyond the decoder's own limit, before the process is ended

Examined = dict[str, Any] | Rejected
Examine = Callable[..., Examined]


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
        if not self.manifest.endswith(".parquet"):
            raise ValueError(f"manifest is {self.manifest!r}; its name must end in .parquet")


@dataclass(frozen=True)
class Prepared:
    """What came of it."""

    manifest: Manifest
    rejected: tuple[Rejected, ...]
    rejected_uri: str
    """Where the list of rejected files is; written even if it is empty."""


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
    rows: list[dict[str, Any]] = []
    rejected = list(found.missing)
    rejected_uri = config.manifest.removesuffix(".parquet") + ".rejected.parquet"
    write_rejected(rejected, rejected_uri)  # now, so that an unwritable place shows at once
    for result in _examined(found.entries, root=found.root, decode=config.decode, examine=examine):
        for one in result:
            if isinstance(one, Rejected):
                rejected.append(one)
            else:
                rows.append(one)
        if progress is not None:
            progress(Progress(len(rows), len(rejected)))
    rejected.sort(key=lambda r: r.video_id)
    write_rejected(rejected, rejected_uri)
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


def _examined(
    entries: Sequence[Entry], *, root: str, decode: DecodeConfig, examine: Examine
) -> Iterable[list[Examined]]:
    """Yield the results of batches as they finish, in any order."""
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    size = max(1, min(_LARGEST_BATCH, -(-len(entries) // (4 * cpus))))
    waiting = deque(entries[i : i + size] for i in range(0, len(entries), size))
    running: dict[Any, Sequence[Entry]] = {}
    while waiting or running:
        while waiting and len(running) < 2 * cpus:
            batch = waiting.popleft()
            running[_examine_batch.remote(batch, root, decode, examine)] = batch
        (ready,), _ = ray.wait(list(running), num_returns=1)
        batch = running.pop(ready)
        try:
            yield ray.get(ready)
        except ray.exceptions.WorkerCrashedError:
            if len(batch) == 1:
                yield [_crashed(batch[0], decode)]
            else:
                _log.warning("a probe ended its process; probing its %d files singly", len(batch))
                waiting.extendleft([entry] for entry in batch)


def _crashed(entry: Entry, decode: DecodeConfig) -> Rejected:
    return Rejected(
        entry.video_id,
        "crashed",
        f"probing it ended the process, or took over {decode.seconds + _GRACE_SECONDS:g} s",
    )


@ray.remote(num_cpus=1, max_retries=0)
def _examine_batch(
    entries: Sequence[Entry], root: str, decode: DecodeConfig, examine: Examine
) -> list[Examined]:
    results: list[Examined] = []
    for entry in entries:
        # Ends the process from a thread of its own, even if native code holds Python's lock.
        faulthandler.dump_traceback_later(decode.seconds + _GRACE_SECONDS, exit=True)
        try:
            results.append(examine(entry, root=root, decode=decode))
        finally:
            faulthandler.cancel_dump_traceback_later()
    return results
