"""What is at a place, or at each of the places that a list names: one request for a thousand, or many at once."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

from clips import frames, shards, storage
from clips.lookahead import in_turn
from clips.storage import FileInfo, StorageError
from clips.storage.listing import local_info

Looked = tuple[FileInfo | None, str | None, str | None]
"""What is at a place, or None and why: reason and message."""


def looked_up(wanted: Iterable[tuple[str, bool]], base: str, *, count: int) -> Iterator[Looked]:
    """Yield what is at each of `count` sorted places, all below `base` if there is one.

    With each path comes whether it is a folder of frames.
    """
    listed = bool(base) and not storage.is_local(base) and not _is_web(base)
    find = _listing_of(base, count=count) if listed else _unlisted
    places = ((path, folder, None if folder else find(path)) for path, folder in wanted)
    return in_turn(_look, places, _is_slow)


_Place = tuple[str, bool, Looked | None]
"""A path, whether it is a folder of frames, and what a listing said of it."""


def _look(place: _Place) -> Looked:
    path, folder, found = place
    if found is not None:
        return found
    return _folder_at(path) if folder else _judged(path)


def _is_slow(place: _Place) -> bool:
    return place[2] is None and not storage.is_local(place[0])


def _unlisted(path: str) -> None:
    return None


def _listing_of(base: str, *, count: int) -> Callable[[str], Looked | None]:
    """Return what looks into a listing, at a request for a thousand files.

    When that has cost as much as asking for each of `count` places, it gives None from then on.
    """
    files = files_below(base)
    file = next(files, None)
    left = _A_REQUEST * count

    def find(path: str) -> Looked | None:
        nonlocal file, left
        name = path[len(base) + 1 :]
        while file is not None and file.path < name and left:
            file = next(files, None)
            left -= 1
        if not left:
            return None
        return _no_shard(file) if file is not None and file.path == name else _NOT_THERE

    return find


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
        place = storage.local_path(path)
        if os.path.isdir(place):
            return _folder_at(path)
        with contextlib.suppress(OSError):  # what it means, the slower way below says
            return _no_shard(local_info(place, named=path))
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
