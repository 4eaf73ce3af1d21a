"""How the bytes of a video reach a decoder.

A decoding process is given what `local_copy` makes: the path of a file of this node, or the bytes.
Small remote objects are fetched whole: one request costs less than several, and a clip of an
ordinary video touches most of its bytes anyway. Larger ones are kept in the node's cache, if there
is one, or else read in the decoding process by ranges, in blocks of 1 MB.

The length is compared with the manifest's, so that a replaced file is named as such. Etags are not:
a bucket that was copied elsewhere has other etags for the same bytes, and a run goes on with it.
"""

import functools
import io
import os
from collections.abc import Callable, Iterator
from typing import IO, TypeVar, cast

from clips import storage
from clips.cache import Cache
from clips.decode import DecodeError
from clips.storage.ranged import RangedFile
from clips.storage.traffic import Traffic, count

T = TypeVar("T")

WHOLE_BYTES = 16 << 20
"""Remote objects below this size are fetched with one request."""


def local_copy(
    uri: str,
    *,
    size: int | None,
    etag: str | None = None,
    offset: int | None = None,
    cache: Cache | None = None,
) -> str | bytes:
    """Return what a decoding process is given of a video: a path of this node, or the bytes.

    Args:
        uri: The video. With `offset`: `<shard>.tar/<member>`.
        size: Its length by the manifest; None or 0 when that is not known.
        etag: The manifest's, for remote objects: a newer object is another one in the cache.
        offset: Where the video begins in its shard.
        cache: The node's cache. Its copy may be evicted before it is opened: see `with_local_copy`.

    Returns:
        The path of a local file, or of the cached copy of a remote one; or the bytes; or `uri`
        itself, of something large that is to be read by ranges: `openable(uri, size=, offset=)`.

    Raises:
        DecodeError: `changed`: its length is not the manifest's. `empty`: it has none. `io`: it is
            not there.
        StorageError: The storage cannot be reached or refuses: not the fault of the file.
    """
    try:
        return _local_copy(uri, size or None, etag, offset, cache)
    except storage.StorageError as error:
        if error.kind == "missing":
            raise DecodeError("io", str(error)) from error
        raise


def with_local_copy(
    read: Callable[[str | bytes], T],
    uri: str,
    *,
    size: int | None,
    etag: str | None = None,
    offset: int | None = None,
    cache: Cache | None = None,
) -> T:
    """Return what `read` makes of the local copy; when that was evicted in between, of a new one.

    The arguments and errors are those of `local_copy`, and what `read` raises.
    """
    copy = functools.partial(local_copy, uri, size=size, etag=etag, offset=offset)
    for _ in range(3):
        source = copy(cache=cache)
        try:
            return read(source)
        except DecodeError:
            if not is_evicted(source, cache):
                raise
    return read(copy(cache=None))  # a cache too small for its readers


def is_evicted(source: str | bytes, cache: Cache | None) -> bool:
    """Return whether `source` was a path in `cache`, and has left it since `local_copy` gave it."""
    return (
        cache is not None
        and isinstance(source, str)
        and cache.owns(source)
        and not os.path.exists(source)
    )


def openable(
    source: str | bytes, *, size: int | None = None, offset: int | None = None
) -> str | IO[bytes]:
    """Return what FFmpeg can open for a path, a URI, or encoded bytes.

    Args:
        source: Path, URI, or the bytes themselves.
        size: Length of a remote object, where it is known: saves the request that asks for it.
        offset: Of a member of a tar shard (`<shard>.tar/<member>`): where its `size` bytes begin.

    Raises:
        DecodeError: No bytes at all, or the object is not there.
        StorageError: The storage cannot be reached: not the fault of the file.
    """
    if isinstance(source, bytes):
        if not source:
            raise DecodeError("empty", "0 bytes")
        return io.BytesIO(source)
    try:
        if offset is not None:
            return _ranged(shard_of(source), size or 0, offset)
        if not size or storage.is_local(source):
            size = storage.size(source)
        if size == 0:
            raise DecodeError("empty", "0 bytes")
        if storage.is_local(source):
            # The prefix keeps FFmpeg from reading a protocol into a file's name.
            return f"file:{storage.local_path(source)}"
        if size < WHOLE_BYTES:
            return io.BytesIO(_read(source, size, None))
        return _ranged(source, size, 0)
    except storage.StorageError as error:
        if error.kind == "missing":
            raise DecodeError("io", str(error)) from error
        raise


def shard_of(uri: str) -> str:
    """Return the tar shard of `<shard>.tar/<member>`: what ends at the first `.tar/`."""
    shard, mark, _ = uri.partition(".tar/")
    assert mark, uri
    return shard + ".tar"


def _ranged(place: str, size: int, offset: int) -> IO[bytes]:
    def read_range(start: int, length: int) -> bytes:
        data = storage.read_range(place, start=start, length=length)
        if len(data) < length:
            _compare(place, start - offset + len(data), size)
        return data

    return cast(IO[bytes], RangedFile(read_range, size=size, start=offset))


def _local_copy(
    uri: str, size: int | None, etag: str | None, offset: int | None, cache: Cache | None
) -> str | bytes:
    place = uri if offset is None else shard_of(uri)
    if storage.is_local(uri):
        if offset is None:
            _compare(uri, storage.size(uri), size)
            return storage.local_path(uri)
        cache = None
    if offset is not None and not size:
        raise DecodeError("empty", f"0 bytes in {storage.redact(uri)}")
    if not size:
        size = storage.size(uri)
        _compare(uri, size, None)
    if cache is not None and cache.takes(size):
        copy = _cached(cache, place, size, etag, offset)
        if copy is not None:
            return copy
    if size < WHOLE_BYTES:
        return _read(place, size, offset)
    _look_at(place, size, offset)
    return uri


def _cached(
    cache: Cache, place: str, size: int, etag: str | None, offset: int | None
) -> str | bytes | None:
    """Return the path of the cached copy, or the bytes where there is no room; None: neither."""
    key = cache.key(place, size=size, etag=etag, offset=offset)
    path = cache.find(key, size=size)
    if path is None:
        with cache.turn(key):
            path = cache.find(key, size=size)
            if path is None:  # nor has another process fetched it meanwhile
                count(Traffic(cache_misses=1))
                return _fetched(cache, key, place, size, offset)
    count(Traffic(cache_hits=1))
    return path


def _fetched(
    cache: Cache, key: str, place: str, size: int, offset: int | None
) -> str | bytes | None:
    if size < WHOLE_BYTES:
        data = _read(place, size, offset)
        return cache.store(key, (data,), size=size) or data
    _look_at(place, size, offset)
    return cache.store(key, _pieces(place, size, offset or 0), size=size)


def _read(place: str, size: int, offset: int | None) -> bytes:
    # One byte more than there should be: a longer file shows, and is not read to its end.
    data = storage.read_range(place, start=offset or 0, length=size + (offset is None))
    _compare(place, len(data), size)
    return data


def _pieces(place: str, size: int, offset: int) -> Iterator[bytes]:
    """Yield something large piece by piece: memory stays bounded, and only a piece is read again."""
    for start in range(0, size, WHOLE_BYTES):
        length = min(WHOLE_BYTES, size - start)
        data = storage.read_range(place, start=offset + start, length=length)
        _compare(place, size - length + len(data), size)
        yield data


def _look_at(place: str, size: int, offset: int | None) -> None:
    if offset is None:
        _compare(place, storage.size(place), size)


def _compare(uri: str, found: int, wanted: int | None) -> None:
    if wanted and found != wanted:
        how = "more than" if found > wanted else f"{found}, not"
        raise DecodeError(
            "changed",
            f"{storage.redact(uri)} has {how} the {wanted} bytes that the manifest was made of; "
            "run jobs/prepare.py again",
        )
    if found == 0:
        raise DecodeError("empty", f"0 bytes in {storage.redact(uri)}")
