"""How the bytes of a video reach a decoder.

Local files are opened by path. Small remote objects are fetched whole: one request costs less than
several, and a clip of an ordinary video touches most of its bytes anyway. Larger ones are read
through a seekable file in blocks of 1 MB (measured, decode.md: 64 KB blocks need 13 requests where
1 MB blocks need 2 or 3).
"""

import io
from typing import IO

from clips import storage
from clips.decode import DecodeError

WHOLE_BYTES = 16 << 20
"""Remote objects below this size are fetched with one request."""


def openable(source: str | bytes, *, size: int | None = None) -> str | IO[bytes]:
    """Return what FFmpeg can open for a path, a URI, or encoded bytes.

    Args:
        source: Path, URI, or the bytes themselves.
        size: Length of a remote object, where it is known: saves the request that asks for it.

    Raises:
        DecodeError: No bytes at all, or the object is not there.
        StorageError: The storage cannot be reached: not the fault of the file.
    """
    if isinstance(source, bytes):
        if not source:
            raise DecodeError("empty", "0 bytes")
        return io.BytesIO(source)
    try:
        if size is None or storage.is_local(source):
            size = storage.size(source)
        if size == 0:
            raise DecodeError("empty", "0 bytes")
        if storage.is_local(source):
            # The prefix keeps FFmpeg from reading a protocol into a file's name.
            return f"file:{storage.local_path(source)}"
        if size < WHOLE_BYTES:
            return io.BytesIO(storage.read_bytes(source))
        return storage.open_seekable(source)
    except storage.StorageError as error:
        if error.kind == "missing":
            raise DecodeError("io", str(error)) from error
        raise
