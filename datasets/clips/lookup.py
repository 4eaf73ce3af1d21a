"""What is at a place, or at each of the places that a list names: one request for a thousand, or many at once."""

import os
from collections.abc import Callable, Iterable, Iterator

from clips import frames, shards, storage
from clips.lookahead import in_turn
from clips.storage import FileInfo, StorageError

Looked = tuple[FileInfo | None, str | None, str | None]
"""What is at a place, or None and why: reason and message."""


def looked_up(wanted: Iterable[tuple[str, bool]], base: str) -> Iterator[Looked]:
    """Yield what is at each of the sorted places, all below `base` if there is one.

    With each path comes whether it is a folder of frames.
    """
    listed = bool(base) and not storage.is_local(base) and not _is_web(base)
    judge = _listing_of(base) if listed else _judged  # a request for a thousand, not for each

    def look(want: tuple[str, bool]) -> Looked:
        return _folder_at(want[0]) if want[1] else judge(want[0])

    def is_slow(want: tuple[str, bool]) -> bool:
        return not storage.is_local(want[0]) and (want[1] or not listed)

    return in_turn(look, wanted, is_slow)


def _listing_of(base: str) -> Callable[[str], Looked]:
    files = files_below(base)
    file = next(files, None)

    def find(path: str) -> Looked:
        nonlocal file
        name = path[len(base) + 1 :]
        while file is not None and file.path < name:
            file = next(files, None)
        if file is not None and file.path == name:
            return _no_shard(file)
        return _NOT_THERE

    return find


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
    if storage.is_local(path) and os.path.isdir(storage.local_path(path)):
        return _folder_at(path)
    try:
        return _no_shard(storage.stat(path))
    except StorageError as error:
        if error.kind == "missing":
            return _NOT_THERE
        # A web server's refusal is about one file; a bucket's, about who asks.
        if error.kind not in ("denied", "unsupported") or not _is_web(path):
            raise
        return None, error.kind, str(error)


def files_below(place: str) -> Iterator[FileInfo]:
    """Yield all files below a place, sorted by path.

    Raises:
        ValueError: A name among them is not UTF-8.
    """
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
    """Return whether a place is a folder, or a prefix; a web server has none that we could know of."""
    return not _is_web(place) and storage.is_folder(place)


def _is_web(place: str) -> bool:
    return place.startswith(("http://", "https://"))
