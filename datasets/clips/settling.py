"""The last step of a scan: entries and what is known of them become the manifest and the list of rejected files.

Both are written as they come, in order. Rows of one video are made together: its spans are cut, its split
is drawn by a hash of its name, so that they stay together.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from clips import storage
from clips.earlier import (
    OF_THE_MOMENT,
    PROBED,
    Result,
    read_rejected,
    rejected_place,
    write_rejected,
)
from clips.ingest import Entry, Rejected, behind_the_end
from clips.manifest import SCHEMA, Manifest, held_out
from clips.manifest_file import read_manifest
from clips.manifest_writer import ManifestWriter
from clips.preparation import Plan, PrepareConfig, holding, known_of, parts_of
from clips.sources import Count, Found, counted
from clips.spans import Cutting, cut

_SHOWN = 20


@dataclass(frozen=True)
class Prepared:
    """What came of it."""

    uri: str
    """Where the manifest is."""
    rows: int
    videos: int
    """In the manifest; with spans there are more rows."""
    classes: tuple[str, ...]
    hash: str
    rejected_uri: str
    """Where the list of rejected files is; written even if it is empty."""
    reasons: dict[str, int]
    """How many were rejected for each reason, the commonest first."""
    first_rejected: tuple[Rejected, ...]
    """Twenty at most, by name."""
    before: bool
    """Whether there was a manifest at this place."""
    new: int
    changed: int
    unchanged: int
    removed: int
    """Videos, rejected ones included, beside what the manifest and the rejected files at this place said before."""

    def summary(self) -> str:
        """What came of it, in one or two lines for people."""
        rows = f" ({self.rows} rows)" if self.rows != self.videos else ""
        text = (
            f"{self.videos} videos{rows} accepted, {sum(self.reasons.values())} rejected, {len(self.classes)} classes: "
            f"{storage.redact(self.uri)} (hash {self.hash[:12]})"
        )
        if not self.before:
            return text
        return (
            f"compared with the manifest before: {self.new} new, {self.changed} changed, {self.removed} gone, "
            f"{self.unchanged} unchanged\n{text}"
        )

    @functools.cached_property
    def manifest(self) -> Manifest:
        """The whole manifest, read into memory."""
        return read_manifest(self.uri)

    @functools.cached_property
    def rejected(self) -> tuple[Rejected, ...]:
        """All rejected files, read into memory."""
        return tuple(read_rejected(self.rejected_uri))


def settle(config: PrepareConfig, plan: Plan, *, progress: Count | None = None) -> Prepared:
    """Write the manifest and the list of rejected files from what is known now of every video.

    Args:
        config: Source and target.
        plan: Of which all is done.
        progress: Called with the number of videos, after every ten thousand.

    Raises:
        ValueError: Two rows are the same, or there is no usable video at all; an earlier manifest then stays.
    """
    rejected_uri = rejected_place(config.manifest)
    before = storage.exists(config.manifest)
    settled = _Settled(config, plan.found)
    known = counted(known_of(config, plan.found), progress)
    write_rejected(settled.walk(known), rejected_uri)
    reasons = dict(settled.reasons.most_common())
    parts = parts_of(config, plan.found)
    if not len(settled.writer):
        parts.remove()
        total = sum(reasons.values())
        raise ValueError(
            f"none of the {total} videos of {storage.redact(config.source)} can be used "
            f"({', '.join(f'{count} {reason}' for reason, count in reasons.items())}); "
            f"each is listed in {storage.redact(rejected_uri)}"
        )
    written = settled.writer.finish(config.manifest, root=plan.found.root)
    parts.remove()
    return Prepared(
        written.uri,
        written.rows,
        settled.accepted,
        written.classes,
        written.hash,
        rejected_uri,
        reasons,
        tuple(settled.first),
        before,
        **{name: settled.counts[name] for name in ("new", "changed", "unchanged", "removed")},
    )


class _Settled:
    """Turns entries and results into rows, and counts."""

    def __init__(self, config: PrepareConfig, found: Found) -> None:
        self._config, self._found = config, found
        self._cutting = Cutting(config.clips_per_minute, config.clip_frames)
        self.writer = ManifestWriter()
        self.accepted = 0
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.first: list[Rejected] = []

    def walk(self, known: Iterable[Any]) -> Iterator[tuple[Rejected, Entry | None]]:
        """Write the rows of every video; yield what is rejected, with its entry if its bytes are why."""
        for entries, results in known:
            earlier = next((r for r in results if not r.recent and r.size is not None), None)
            if not entries:
                self.counts["removed"] += earlier is not None
                continue
            for rejected, entry in self._video(entries, results, earlier):
                self.reasons[rejected.reason] += 1
                if len(self.first) < _SHOWN:
                    self.first.append(rejected)
                yield rejected, entry

    def _video(
        self, entries: list[Any], results: list[Result], earlier: Result | None
    ) -> Iterator[tuple[Rejected, Entry | None]]:
        entry, reason, message = entries[0]
        if reason is not None:
            yield Rejected(entry.video_id, reason, message), None
            return
        result = holding(self._config, entry, results)
        if result is None:
            raise ValueError(
                f"{parts_of(self._config, self._found).folder} no longer has what this scan has found: does another "
                "scan write the same manifest? Give the same command again when that has ended"
            )
        self.counts[_fate(result, earlier)] += 1
        if result.found is None:
            assert result.reason is not None
            lasting = entry if result.reason not in OF_THE_MOMENT else None
            yield (
                Rejected(entry.video_id, result.reason, result.message or "", result.etag),
                lasting,
            )
            return
        found = dict(zip(PROBED, result.found, strict=True))
        rows: list[dict[str, Any]] = []
        for entry, _, _ in entries:
            if entry.start_s is not None and entry.start_s >= found["duration_s"]:
                yield behind_the_end(entry, found["duration_s"]), None
            else:
                rows += self._rows(entry, found, result.etag)
        self.accepted += bool(rows)
        for row in sorted(rows, key=lambda row: -1.0 if row["start_s"] is None else row["start_s"]):
            self.writer.append([row.get(name) for name in SCHEMA.names])

    def _rows(
        self, entry: Entry, found: dict[str, Any], etag: str | None
    ) -> Iterator[dict[str, Any]]:
        split = entry.split
        if self._config.split and not split:
            split = "val" if held_out(entry.video_id, self._config.split) else "train"
        spans = cut(
            (entry.start_s, entry.end_s),
            duration_s=found["duration_s"],
            fps=found["fps"],
            how=self._cutting,
        )
        for start_s, end_s in spans:
            span = {"split": split, "etag": etag, "start_s": start_s, "end_s": end_s}
            yield {**vars(entry), **found, **span}


def _fate(result: Result, earlier: Result | None) -> str:
    if earlier is None:
        return "new"
    same = earlier.size == result.size and earlier.etag == result.etag
    return "unchanged" if same else "changed"
