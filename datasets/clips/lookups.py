"""What is at the places that a source names: from one listing, or asked for with many requests under way."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from clips import frames, shards, storage
from clips.storage import FileInfo, StorageError
from clips.storage.listing import local_info

T = TypeVar("T")
V = TypeVar("V")

_AT_ONCE = 32

Looked = tuple[FileInfo | None, str | None, str | None]
"""What is at a place, or None and why: reason and message."""


def looked_up(wanted: Iterable[tuple[str, bool]], base: str, *, count: int) -> Iterator[Looked]:
    """Yield what is at each of `count` sorted places, all below `base` if there is one.

    With each path comes whether it is a folder of frames.
    """
    listing = None  # a request for a thousand files, not for each
    if base and not storage.is_local(base) and not is_web(base):
        listing = _Listing(base, count=count)

    def look(want: tuple[str, bool]) -> Looked:
        if want[1]:
            return _folder_at(want[0])
        return listing.find(want[0]) if listing and not listing.is_dear else _judged(want[0])

    def is_slow(want: tuple[str, bool]) -> bool:
        asked = want[1] or listing is None or listing.is_dear
        return asked and not storage.is_local(want[0])

    return in_turn(look, wanted, is_slow)


class _Listing:
    """Sorted paths looked up in a listing; once that has cost as much as asking for each, it is dear."""

    def __init__(self, base: str, *, count: int) -> None:
        self._base = base
        self._files = files_below(base)
        self._file = next(self._files, None)
        self._most, self._passed = _A_REQUEST * count, 0

    @property
    def is_dear(self) -> bool:
        return self._passed >= self._most

    def find(self, path: str) -> Looked:
        name = path[len(self._base) + 1 :]
        while self._file is not None and self._file.path < name and not self.is_dear:
            self._file = next(self._files, None)
            self._passed += 1
        if self.is_dear:
            return _judged(path)
        if self._file is not None and self._file.path == name:
            return _no_shard(self._file)
        return _NOT_THERE


_A_REQUEST = 1000  # files in a page of a listing
_NOT_THERE: Looked = (None, "missing", "the list names it, but it is not there")


def _folder_at(path: str) -> Looked:
    info = frames.folder_at(path)
    if info is None:
        return None, "missing", "the list names it, but no folder of numbered pictures is there"
    return info, None, None


def _no_shard(file: FileInfo) -> Looked:
    if file.path.lower().endswith(shards.SUFFIX):
        return (
            None,
            "unsupported",
            "a shard in a list: name the shard, or its folder, as the source",
        )
    return file, None, None


def _judged(path: str) -> Looked:
    if storage.is_local(path):
        with contextlib.suppress(OSError):  # what it means, the slower way below says
            local = storage.local_path(path)
            if os.path.isdir(local):
                return _folder_at(path)
            return _no_shard(local_info(local, named=path))
    try:
        return _no_shard(storage.stat(path))
    except StorageError as error:
        if error.kind == "missing":
            return _NOT_THERE
        # A web server's refusal is about one file; a bucket's, about who asks.
        if error.kind not in ("denied", "unsupported") or not is_web(path):
            raise
        return None, error.kind, str(error)


def files_below(place: str) -> Iterator[FileInfo]:
    """Yield all files below a place, sorted; their names are text."""
    for file in storage.iterate_files(place):
        if not file.path.isascii():
            try:
                file.path.encode()
            except UnicodeEncodeError:
                what = (
                    f"the name of {file.path!r} in {storage.redact(place)} is not UTF-8; rename it"
                )
                raise ValueError(what) from None
        yield file


def is_folder(place: str) -> bool:
    """Return whether a place is a folder or a prefix; a web server has none that we could know of."""
    return not is_web(place) and storage.is_folder(place)


def is_web(place: str) -> bool:
    """Return whether a place is on a web server."""
    return place.startswith(("http://", "https://"))


def in_turn(
    look: Callable[[T], V], items: Iterable[T], is_slow: Callable[[T], bool]
) -> Iterator[V]:
    """Yield what `look` gives for each, in order: at once, or with many requests under way for those that are slow."""
    waiting: deque[Future[V] | tuple[V]] = deque()
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        for item in items:
            waiting.append(pool.submit(look, item) if is_slow(item) else (look(item),))
            if len(waiting) > 4 * _AT_ONCE:
                yield _value(waiting.popleft())
        while waiting:
            yield _value(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _value(found: "Future[V] | tuple[V]") -> V:
    return found.result() if isinstance(found, Future) else found[0]
