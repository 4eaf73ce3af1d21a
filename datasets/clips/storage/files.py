"""One file at a time: is it there, its bytes, writing it, claiming it."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from clips.storage.access import attempt, guard, put_if_absent
from clips.storage.errors import is_past_the_end, storage_error
from clips.storage.listing import FileInfo, etag_of, local_info
from clips.storage.names import is_local, local_path, scheme
from clips.storage.ranged import RangedFile
from clips.storage.traffic import Traffic, count

_HASHED_BYTES = 1 << 22

# --- reading ---------------------------------------------------------------------------------


def exists(uri: str) -> bool:
    """Return whether there is a file, object, or folder at `uri`."""
    return attempt(uri, lambda fs, path: fs.exists(path), reads=True)


def is_folder(uri: str) -> bool:
    """Return whether `uri` is a folder, or a prefix with objects below it."""
    return attempt(uri, lambda fs, path: fs.isdir(path), reads=True)


def size(uri: str) -> int:
    """Return the length in bytes of the file at `uri`."""
    return stat(uri).size


def stat(uri: str) -> FileInfo:
    """Return size and etag of the file at `uri`; `path` is its name."""

    def look(fs: Any, path: str) -> FileInfo:
        if is_local(uri) and not os.path.isdir(path):
            return local_info(path, named=os.path.basename(path))
        found = fs.info(path)
        if found["type"] == "directory":
            raise IsADirectoryError(path)
        if found["size"] is None:
            raise storage_error("unsupported", uri, "the server does not say how long it is")
        return FileInfo(path.rsplit("/", 1)[-1], int(found["size"]), etag_of(found))

    return attempt(uri, look, reads=True)


def read_bytes(uri: str) -> bytes:
    """Return the whole content of `uri`, fetched with one request."""
    # s3fs would ask for the length first, to fetch large objects in parts side by side.
    whole = {"max_concurrency": 1} if scheme(uri) == "s3" else {}
    return _counted(uri, lambda fs, path: fs.cat_file(path, **whole))


def read_range(uri: str, *, start: int, length: int) -> bytes:
    """Return `length` bytes from `start`; fewer at the end of the file."""

    def read(fs: Any, path: str) -> bytes:
        try:
            data = fs.cat_file(path, start=start, end=start + length)
        except Exception as error:
            if is_past_the_end(error):
                return b""
            raise
        # A web server may not know ranges, and then sends everything.
        return data if len(data) <= length else data[start : start + length]

    return _counted(uri, read)


def open_seekable(uri: str, *, size: int | None = None) -> IO[bytes]:
    """Open `uri` for reading at any position; remote files are read in blocks of 1 MB, with retries.

    Args:
        uri: The file.
        size: Its length, where it is known: saves the request that asks for it.
    """
    if is_local(uri):
        return guard(uri, lambda: open(local_path(uri), "rb"))
    remote = RangedFile(
        lambda start, length: read_range(uri, start=start, length=length),
        size=stat(uri).size if size is None else size,
    )
    return cast(IO[bytes], remote)


def fingerprint(uri: str) -> dict[str, Any]:
    """Return size in bytes and SHA-256 of the file at `uri`; size -1 when there is none."""
    if not exists(uri):
        return {"size": -1, "sha256": ""}
    digest, length = hashlib.sha256(), 0
    with open_seekable(uri) as file:
        while block := file.read(_HASHED_BYTES):
            digest.update(block)
            length += len(block)
    return {"size": length, "sha256": digest.hexdigest()}


def _counted(uri: str, action: Callable[[Any, str], bytes]) -> bytes:
    data = attempt(uri, action, reads=True)
    if not is_local(uri):
        count(Traffic(bytes_read=len(data)))
    return data


# --- writing ---------------------------------------------------------------------------------


def write_bytes(uri: str, data: bytes) -> None:
    """Write `data` to `uri`, replacing what is there; missing local folders are made."""
    if is_local(uri):
        guard(uri, lambda: _write_local(Path(local_path(uri)), data, exclusive=False))
    else:
        attempt(uri, lambda fs, path: fs.pipe_file(path, data))


def upload(path: Path, uri: str) -> None:
    """Bring a local file to `uri`, replacing what is there, in parts where it is large."""
    attempt(uri, lambda fs, target: fs.put_file(str(path), target))


def create_exclusive(uri: str, data: bytes) -> bool:
    """Write `data` to `uri` unless something is there; of many callers exactly one succeeds.

    Returns:
        Whether this call wrote it. After True the whole content is visible.

    Raises:
        StorageError: The storage has no atomic create (only local files and S3 have one here).
    """
    if is_local(uri):
        return guard(uri, lambda: _write_local(Path(local_path(uri)), data, exclusive=True))
    if scheme(uri) != "s3":
        raise storage_error("unsupported", uri, "atomic creation needs a local path or s3://")
    return guard(uri, lambda: put_if_absent(uri, data))


def remove(uri: str) -> None:
    """Delete the file or the whole folder at `uri`; nothing happens when there is none."""

    def delete(fs: Any, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)

    attempt(uri, delete)


def _write_local(path: Path, data: bytes, *, exclusive: bool) -> bool:
    """Write through a temporary neighbour, so that no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        if exclusive:
            os.link(name, path)
        else:
            os.replace(name, path)
    except FileExistsError:
        return False
    finally:
        Path(name).unlink(missing_ok=True)
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
