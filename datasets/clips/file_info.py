"""Size and etag of files: of all below a place, or of one.

An etag changes when the bytes do. Buckets have their own; web servers give one, or the time of the last
change; of a local file it is the time and the size. It is in no hash: it only tells a later scan which files
were written since.
"""

import os
from collections.abc import Iterator
from typing import Any

from clips import storage
from clips.storage import FileInfo, StorageError, access


def files_below(place: str) -> Iterator[FileInfo]:
    """Yield all files below a place, sorted by path."""
    for file in storage.list_files(place):
        if not (file.path.isascii() or _is_text(file.path)):
            raise ValueError(
                f"the name of {file.path!r} in {storage.redact(place)} is not UTF-8; rename it"
            )
        if storage.is_local(place):
            found = _local_info(os.path.join(storage.local_path(place), file.path))
            if found is None:
                continue
            file = FileInfo(file.path, found.size, found.etag)
        yield file


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def look_up(place: str) -> FileInfo | None:
    """Return size and etag of one file; None where there is none."""
    if storage.is_local(place):
        return _local_info(storage.local_path(place))
    try:
        return _head(place) if is_web(place) else storage.stat(place)
    except StorageError as error:
        if error.kind == "missing":
            return None
        raise


def _local_info(path: str) -> FileInfo | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return storage.stat(path)  # whose error says what it means
    return FileInfo(path, found.st_size, f"{found.st_mtime_ns}-{found.st_size}")


def _head(uri: str) -> FileInfo:
    """Ask a web server for size and etag; the size is -1 where it does not tell."""

    def look(fs: Any, path: str) -> FileInfo:
        failure: Exception | None = None
        found: dict[str, Any] = {}
        try:
            found = fs.info(path)
        except FileNotFoundError as error:  # fsspec's word for every failure of a web server
            failure = _meaning(error)
        if failure is not None:  # raised out here, so that the first error is not its cause
            raise failure
        changed = found.get("ETag") or found.get("Last-Modified")
        size = found["size"]
        return FileInfo(path, -1 if size is None else int(size), changed and changed.strip('"'))

    return access.attempt(uri, look)


def _meaning(error: FileNotFoundError) -> Exception:
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if status in (401, 403, 407, 451):
        return PermissionError(f"HTTP status {status}")
    if status == 429 or (status or 0) >= 500:
        return ConnectionError(f"HTTP status {status}")
    if status is None and isinstance(cause, Exception):
        return cause
    return error


def is_folder(place: str) -> bool:
    """Return whether a place is a folder, or a prefix; a web server has none that we could know of."""
    return not is_web(place) and storage.is_folder(place)


def is_web(place: str) -> bool:
    """Return whether a place is on a web server."""
    return place.startswith(("http://", "https://"))
