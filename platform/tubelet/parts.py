"""Predictions of very many videos, kept in parts: a part is there whole or not at all, a video is in one part once.

    <output>/
        predict.json                    what was asked; another question goes into another folder
        predictions/part-*.parquet      a row for each video: labels and probabilities, likeliest first
        undecodable/part-*.parquet      the videos of a part that could not be decoded, and why

Which videos go into which part follows from the list of all videos, and a part's name from its videos: whoever does the
same work again, after a kill or at the same time, writes the same file. A row holds as long as its video has the size
and etag that it was made from; rows of videos that have changed or gone are taken out before the work goes on.

A part's undecodable videos are written before its predictions, which make it complete. What was undecodable for a
moment only (a file that was missing, unreadable or denied) is tried again by the next call.

Cost: the names of all videos in memory, some 300 bytes each; at most some two thousand parts.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clips import storage
from clips.earlier import OF_THE_MOMENT

_IDENTITY = [
    ("video_id", pa.string()),
    ("start_s", pa.float64()),
    ("end_s", pa.float64()),
    ("size", pa.int64()),
    ("etag", pa.string()),
]
PREDICTED = pa.schema(
    [
        *_IDENTITY,
        ("labels", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float32())),
    ]
)
UNDECODABLE = pa.schema([*_IDENTITY, ("reason", pa.string()), ("message", pa.string())])
_LEAST_ROWS, _MOST_PARTS = 32, 2000
_AT_ONCE = 16


class Key(NamedTuple):
    """A video, or a span of one, with what its bytes are known by."""

    video_id: str
    start_s: float | None
    end_s: float | None
    size: int | None
    etag: str | None


def keys_of(table: pa.Table) -> list[Key]:
    """The rows of a manifest or of a part."""
    columns = [table[name].to_pylist() for name in Key._fields]
    return [Key(*values) for values in zip(*columns, strict=True)]


# --- which videos go together (pure) ---------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Videos whose predictions are written together."""

    name: str
    rows: tuple[int, ...]
    """Their places in the list of all videos."""


def deal(videos: Sequence[Key], done: Iterable[Key], *, taken: Iterable[str] = ()) -> list[Part]:
    """Deal what is left to do into parts.

    Args:
        videos: all of them, sorted.
        done: those that need no work.
        taken: names of parts that are there; none of them is given again.
    """
    done, taken = set(done), set(taken)
    rows = max(_LEAST_ROWS, -(-len(videos) // _MOST_PARTS))
    whole = digest_of(videos)
    parts: list[Part] = []
    for number, start in enumerate(range(0, len(videos), rows)):
        left = [i for i in range(start, min(start + rows, len(videos))) if videos[i] not in done]
        if left:
            name, again = f"part-{whole}-{number:05d}", 0
            while name in taken:
                again += 1
                name = f"part-{whole}-{number:05d}-{again}"
            parts.append(Part(name, tuple(left)))
    return parts


def digest_of(videos: Sequence[Key]) -> str:
    """Short hash of videos in their order."""
    digest = hashlib.blake2b(digest_size=6)
    for video in videos:
        digest.update(json.dumps(video).encode())
    return digest.hexdigest()


class Gathering:
    """Rows that come in any order, given back part by part as soon as a part has all of its rows."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._part_of = {row: part for part in parts for row in part.rows}
        self._rows: dict[str, dict[int, Any]] = {}

    def add(self, rows: Mapping[int, Any]) -> Iterator[tuple[Part, list[Any]]]:
        """Take rows by their places; yield the parts that are now complete, rows in order."""
        for place, row in rows.items():
            part = self._part_of[place]
            held = self._rows.setdefault(part.name, {})
            held[place] = row  # a task that Ray has run twice gives the same row again
            if len(held) == len(part.rows):
                yield part, [held[i] for i in part.rows]
                del self._rows[part.name]


# --- in the folder ---------------------------------------------------------------------------


class Parts:
    """The parts in a folder.

    Args:
        folder: local, or a URI.
    """

    def __init__(self, folder: str) -> None:
        self._good = storage.join(folder, "predictions")
        self._bad = storage.join(folder, "undecodable")

    @property
    def uri(self) -> str:
        """Where the predictions are."""
        return self._good

    def names(self) -> list[str]:
        """Those that are complete, in order."""
        found = storage.list_names(self._good)
        return sorted(n.removesuffix(".parquet") for n in found if _is_part(n))

    def write(
        self, name: str, predicted: list[dict[str, Any]], undecodable: list[dict[str, Any]]
    ) -> None:
        """Write a part: rows of the two schemas."""
        if undecodable:
            write_table(
                pa.Table.from_pylist(undecodable, UNDECODABLE), self._place(self._bad, name)
            )
        write_table(pa.Table.from_pylist(predicted, PREDICTED), self._place(self._good, name))

    def predicted(self) -> Iterator[pa.Table]:
        """The predictions, part by part."""
        return (read_table(self._place(self._good, name)) for name in self.names())

    def undecodable(self) -> pa.Table:
        """The undecodable videos of all complete parts."""
        there = set(storage.list_names(self._bad))
        names = [name for name in self.names() if f"{name}.parquet" in there]
        tables = in_threads(lambda name: read_table(self._place(self._bad, name)), names)
        return pa.concat_tables(tables) if tables else UNDECODABLE.empty_table()

    def settled(self, videos: Iterable[Key], *, retry: bool = False) -> set[Key]:
        """Take out what no longer holds, and return the videos that need no work.

        Args:
            videos: those that there are now.
            retry: whether undecodable videos are to be tried again.
        """
        there, bad = set(videos), set(storage.list_names(self._bad))

        def look(name: str) -> set[Key]:
            held = self._keep(self._place(self._good, name), lambda row: Key(*row[:5]) in there)
            if f"{name}.parquet" in bad:
                held |= self._keep(
                    self._place(self._bad, name),
                    lambda row: (
                        Key(*row[:5]) in there and not retry and row[5] not in OF_THE_MOMENT
                    ),
                )
            return held

        return set().union(*in_threads(look, self.names()))

    def _keep(self, place: str, holds: Callable[[tuple[Any, ...]], bool]) -> set[Key]:
        table = read_table(place)
        rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
        good = [holds(row) for row in rows]
        if not all(good):
            write_table(table.filter(pa.array(good, pa.bool_())), place)
        return {Key(*row[:5]) for row, kept in zip(rows, good, strict=True) if kept}

    def clear(self) -> None:
        """Delete all parts."""
        storage.remove(self._good)
        storage.remove(self._bad)

    def _place(self, folder: str, name: str) -> str:
        return storage.join(folder, f"{name}.parquet")


def _is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")  # others are half written


def write_table(table: pa.Table, place: str) -> None:
    """Write a Parquet file in one step."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(place, sink.getvalue())


def read_table(place: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some columns of it."""
    return pq.read_table(pa.BufferReader(storage.read_bytes(place)), columns=columns)


def in_threads(function: Callable[[str], Any], names: Sequence[str]) -> list[Any]:
    """In a bucket each takes a request's time, side by side."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(function, names))
