"""What earlier scans have found out about videos, so that only new and changed ones are looked at again.

Three places know: the manifest that is to be replaced, its list of rejected files, and the parts that an
interrupted scan has left in a folder beside it (`<manifest>.parts`). All give `Result`s, sorted by video,
and are walked through side by side with the entries of the source; none is ever held in memory.

A result holds as long as size and etag are those that it was made from (for want of an etag: the size,
in the same root). Results that speak of a moment and not of bytes (a file that was missing, unreadable,
or denied) hold for the scan that made them.
"""

import heapq
import itertools
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clips import storage
from clips.ingest import Entry, Probe, Rejected
from clips.manifest import SCHEMA
from clips.manifest_file import ManifestFile, NewerManifest, NotAManifest
from clips.sorting import SortedRows, rows_of, rows_table
from clips.whole_files import whole_file

_log = logging.getLogger(__name__)

PROBED = tuple(field.name for field in fields(Probe))
OF_THE_MOMENT = ("missing", "io", "denied")
_IDENTITY = ("video_id", "size", "etag")
_TEXT = pa.string()
_RESULTS = pa.schema(
    [
        *(SCHEMA.field(name).with_nullable(True) for name in _IDENTITY),
        ("listed", _TEXT),
        *(SCHEMA.field(name) for name in PROBED),
        *((name, _TEXT) for name in ("reason", "message")),
        ("recent", pa.bool_()),
        ("same_root", pa.bool_()),
    ]
)
_REJECTED = pa.schema(
    [(name, _TEXT) for name in ("video_id", "reason", "message")]
    + [("size", pa.int64()), ("etag", _TEXT)]
)
_PART_VERSION = 1
_PART_ROWS = 20_000
LEAST_SECONDS = 5.0
"""Between two parts of a scan's results."""


class Result(NamedTuple):
    """What a look inside a video has given."""

    video_id: str
    size: int | None
    etag: str | None
    """The manifest's: the store's, or a hash of the content."""
    listed: str | None
    """The store's, by which a change is seen without reading the video."""
    found: tuple[Any, ...] | None
    """The probe's columns (`PROBED`); None when rejected, or not all known."""
    reason: str | None
    message: str | None
    recent: bool
    """Made by this scan, or by one that was interrupted and that this one continues."""
    same_root: bool

    def is_of(self, entry: Entry) -> bool:
        """Whether it was made from the same bytes, as far as size and etag tell."""
        return (
            self.size == entry.size
            and self.listed == entry.etag
            and (entry.etag is not None or self.same_root)
        )


def result_of(entry: Entry, result: dict[str, Any] | Rejected) -> Result:
    """Return what a worker found about an entry, as a `Result`."""
    if isinstance(result, Rejected):
        etag, found, reason, message = result.etag, None, result.reason, result.message
    else:
        etag, found = result["etag"], tuple(result[name] for name in PROBED)
        reason = message = None
    return Result(
        entry.video_id,
        entry.size,
        etag or entry.etag,
        entry.etag,
        found,
        reason,
        message,
        recent=True,
        same_root=True,
    )


# --- manifest and rejected files -------------------------------------------------------------


def rejected_place(manifest: str) -> str:
    """Return where the rejected files of a manifest are listed."""
    return f"{manifest.removesuffix('.parquet')}.rejected.parquet"


def manifest_before(manifest: str, *, fresh: bool) -> ManifestFile | None:
    """Return the manifest that is to be replaced, if there is one and it can be read.

    Args:
        manifest: Its place.
        fresh: Whether one of a newer format may be replaced.

    Raises:
        ValueError: Something else is there, or a manifest of a newer format.
    """
    if not storage.exists(manifest):
        return None
    try:
        return ManifestFile(manifest)
    except NotAManifest as error:
        raise ValueError(
            f"manifest: {storage.redact(manifest)} is there already and is no manifest: "
            "give another name, or delete it"
        ) from error
    except NewerManifest as error:
        if fresh:
            return None
        raise ValueError(f"{error} with fresh=true") from error


def results_before(manifest: str, *, root: str, fresh: bool) -> Iterator[Result]:
    """Yield what the manifest at this place and its list of rejected files say, sorted; nothing where there is none.

    Raises:
        ValueError: See `manifest_before`.
    """
    streams: list[Iterator[Result]] = []
    file = manifest_before(manifest, fresh=fresh)
    if file is not None:
        streams.append(_accepted(file, same_root=file.root == root))
    if storage.exists(rejected_place(manifest)):
        streams.append(_rejected(rejected_place(manifest)))
    return heapq.merge(*streams, key=lambda result: result.video_id)


def _accepted(file: ManifestFile, *, same_root: bool) -> Iterator[Result]:
    last = None
    for table in file.portions((*_IDENTITY, *PROBED)):
        for video_id, size, etag, *found in rows_of(table):
            if video_id != last:  # spans of one video
                last = video_id
                columns = None if None in found else tuple(found)  # of another tool, or version
                yield Result(video_id, size, etag, etag, columns, None, None, False, same_root)


def _rejected(uri: str) -> Iterator[Result]:
    last = None
    for video_id, reason, message, size, etag in _rejected_rows(uri):
        if video_id != last:
            last = video_id
            yield Result(video_id, size, etag, etag, None, reason, message, False, True)


def _rejected_rows(uri: str) -> Iterator[tuple[Any, ...]]:
    source = pa.BufferReader(storage.read_bytes(uri))
    file = pq.ParquetFile(source)
    for batch in file.iter_batches(1 << 14):
        table = pa.Table.from_batches([batch])
        for name in _REJECTED.names[table.num_columns :]:  # lists of an earlier version lack some
            table = table.append_column(
                _REJECTED.field(name), pa.nulls(len(table), _REJECTED.field(name).type)
            )
        yield from rows_of(table.select(_REJECTED.names))


def read_rejected(uri: str) -> list[Rejected]:
    """Return the rejected files that are listed at `uri`."""
    return [Rejected(*row[:3]) for row in _rejected_rows(uri)]


def write_rejected(rejected: Iterable[tuple[Rejected, Entry | None]], uri: str) -> None:
    """Write a list of rejected files as Parquet, however many.

    Args:
        rejected: Each with its entry where the reason is in the bytes; they are not looked at again while size and
            etag stay the same.
        uri: Place of the list.
    """
    with whole_file(uri) as path, pq.ParquetWriter(path, _REJECTED, compression="zstd") as file:
        for chunk in _chunks(rejected, _PART_ROWS):
            rows = [
                (one.video_id, one.reason, one.message)
                + ((entry.size, one.etag or entry.etag) if entry else (None, None))
                for one, entry in chunk
            ]
            file.write_table(rows_table(rows, _REJECTED))


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while chunk := list(itertools.islice(items, size)):
        yield chunk


# --- parts of an interrupted scan ------------------------------------------------------------


class Parts:
    """The results of a scan under way, in a folder that is removed when the manifest is written.

    A part is written, whole or not at all, when it has 20,000 results, or when more time has passed than five
    seconds and a fiftieth of the scan: a killed scan loses little, and a long one leaves some hundred files.
    """

    def __init__(
        self,
        manifest: str,
        *,
        root: str,
        asked: int = 0,
        by_content: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Name the folder; nothing is written yet.

        Args:
            manifest: Place of the manifest.
            root: Of the videos.
            asked: How much is looked at again: 0 what has changed, 1 also rejected files, 2 everything.
            by_content: Whether the etags of results are hashes of the content.
            clock: Seconds on any rising scale.
        """
        self.folder = f"{manifest.removesuffix('.parquet')}.parts"
        self._root, self._asked, self._clock = root, asked, clock
        self._kind = {"version": _PART_VERSION, "by_content": by_content}
        self._results: list[Result] = []
        self._started = self._written = clock()

    def read(self) -> SortedRows:
        """Return what the parts say, those of a scan that was asked for less left out."""
        rows = SortedRows(_RESULTS)
        for name in storage.list_names(self.folder):
            if not name.endswith(".parquet"):
                continue  # half written by a process that was killed
            table = pq.read_table(pa.BufferReader(storage.read_bytes(f"{self.folder}/{name}")))
            about = json.loads((table.schema.metadata or {}).get(b"tubelet.part", b"{}"))
            if about | self._kind != about or about["asked"] < self._asked == 2:
                _log.info("a part of another scan: %s/%s", storage.redact(self.folder), name)
                continue
            if about["asked"] < self._asked:
                table = table.filter(table["reason"].is_null())
            same = pa.array([about["root"] == self._root] * len(table), pa.bool_())
            place = _RESULTS.names.index("same_root")
            rows.add(table.set_column(place, "same_root", same).replace_schema_metadata(None))
        return rows

    def add(self, results: Iterable[Result]) -> None:
        """Take results, and write a part when it is time."""
        self._results += results
        now = self._clock()
        due = self._written + max(LEAST_SECONDS, (now - self._started) / 50)
        if len(self._results) >= _PART_ROWS or (self._results and now >= due):
            self.write()

    def write(self) -> None:
        """Write what was taken since the last part."""
        if not self._results:
            return
        rows = [_row(result) for result in self._results]
        about = {**self._kind, "root": self._root, "asked": self._asked}
        table = rows_table(rows, _RESULTS).replace_schema_metadata(
            {"tubelet.part": json.dumps(about)}
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        name = (
            f"{uuid.uuid4().hex[:16]}.parquet"  # a second scan of the same manifest writes others
        )
        storage.write_bytes(f"{self.folder}/{name}", sink.getvalue().to_pybytes())
        self._results, self._written = [], self._clock()

    def remove(self) -> None:
        """Delete the folder: the manifest says it all."""
        storage.remove(self.folder)


def _row(result: Result) -> tuple[Any, ...]:
    found = result.found or (None,) * len(PROBED)
    return (*result[:4], *found, *result[5:])


def results_in(rows: SortedRows) -> Iterator[Result]:
    """Yield the results of `Parts.read`, sorted."""
    probed = slice(4, 4 + len(PROBED))
    for row in rows.rows():
        reason, message, recent, same_root = row[probed.stop :]
        found = None if reason else row[probed]
        video_id, size, etag, listed = row[:4]
        yield Result(video_id, size, etag, listed, found, reason, message, recent, same_root)


# --- side by side ----------------------------------------------------------------------------


def side_by_side(
    entries: Iterable[tuple[Entry, str | None, str | None]], results: Iterable[Result]
) -> Iterator[tuple[Sequence[tuple[Entry, str | None, str | None]], Sequence[Result]]]:
    """Yield for each video its entries (none: it is gone) and what is known of it; both come sorted by video."""
    entries, results = iter(entries), iter(results)
    item, result = next(entries, None), next(results, None)
    while item is not None or result is not None:
        if result is None or (item is not None and item[0].video_id <= result.video_id):
            assert item is not None
            video_id = item[0].video_id
        else:
            video_id = result.video_id
        here: list[tuple[Entry, str | None, str | None]] = []
        known: list[Result] = []
        while item is not None and item[0].video_id == video_id:
            here.append(item)
            item = next(entries, None)
        while result is not None and result.video_id == video_id:
            known.append(result)
            result = next(results, None)
        yield here, known
