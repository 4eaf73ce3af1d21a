"""Files wherever they are: folders, S3 buckets, and whatever else fsspec can reach.

A place is a string: a local path, or a URI (`s3://bucket/key`, `gs://...`, `memory://...`).
Credentials come only from the environment's own chain (variables, profile, instance role), the
endpoint from `AWS_ENDPOINT_URL`. Servers other than Amazon's reject the newer checksum trailers,
so both checksum variables are set to `when_required` unless the user has set them.

Failures are sorted by what helps. Passing ones (connection lost, time-out, busy server) are tried
again with growing, jittered pauses for `RETRY_SECONDS`; the rest, and those that outlast the
retries, become one `StorageError` that says what is wrong, where, and what to do, and never shows
a password or a signature.

Writes are atomic: a reader sees the old bytes or the new ones. `create_exclusive` is the only
claim that is safe between machines (measured, operations.md: s3fs's own exclusive mode silently
overwrites).
"""

import contextlib
import functools
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import tenacity

from clips.storage_errors import StorageError, explained, is_passing, redact, storage_error

if TYPE_CHECKING:
    import fsspec

T = TypeVar("T")

_log = logging.getLogger(__name__)

RETRY_SECONDS = 15.0
"""How long a passing failure is tried again; CLIPS_STORAGE_RETRY_SECONDS overrides it."""
BLOCK_BYTES = 1 << 20
"""Block of a seekable remote file."""


@dataclass(frozen=True)
class FileInfo:
    """One file of a listing."""

    path: str
    """Path relative to the listed place, with forward slashes."""
    size: int
    etag: str | None
    """The object's etag, without quotes; None for local files."""


# --- names -----------------------------------------------------------------------------------


def is_local(uri: str) -> bool:
    """Return whether `uri` is a path of this machine."""
    scheme = _scheme(uri)
    return scheme in ("", "file", "local")


def local_path(uri: str) -> str:
    """Return the absolute path of a local `uri`."""
    assert is_local(uri), uri
    path = uri.split("://", 1)[1] if "://" in uri else uri
    return os.path.abspath(os.path.expanduser(path))


def absolute(uri: str) -> str:
    """Return `uri` so that it means the same in every working directory."""
    return local_path(uri) if is_local(uri) else uri.rstrip("/")


def join(root: str, path: str) -> str:
    """Return the place of `path` (forward slashes) below `root`; a path that is a URI stands for itself."""
    return f"{root.rstrip('/')}/{path}" if root and "://" not in path else path


# --- reading ---------------------------------------------------------------------------------


def exists(uri: str) -> bool:
    """Return whether there is a file, object, or folder at `uri`."""
    return _attempt(uri, lambda fs, path: fs.exists(path))


def is_folder(uri: str) -> bool:
    """Return whether `uri` is a folder, or a prefix with objects below it."""
    return _attempt(uri, lambda fs, path: fs.isdir(path))


def size(uri: str) -> int:
    """Return the length in bytes of the file at `uri`."""
    return stat(uri).size


def stat(uri: str) -> FileInfo:
    """Return size and etag of the file at `uri`; `path` is its name."""

    def look(fs: Any, path: str) -> FileInfo:
        found = fs.info(path)
        if found["type"] == "directory":
            raise IsADirectoryError(path)
        return FileInfo(path.rsplit("/", 1)[-1], int(found["size"]), _etag(found))

    return _attempt(uri, look)


def list_files(uri: str) -> Iterator[FileInfo]:
    """Yield every file below `uri`, sorted by path.

    Raises:
        StorageError: There is no such place. (An empty folder yields nothing.)
    """

    def look(fs: Any, path: str) -> list[FileInfo]:
        found = fs.find(path, detail=True)
        if not found and not fs.exists(path):
            raise FileNotFoundError(path)
        base = path.rstrip("/")
        return [
            FileInfo(name[len(base) :].lstrip("/"), int(info["size"] or 0), _etag(info))
            for name, info in sorted(found.items())
            if info["type"] != "directory" and name.rstrip("/") != base
        ]

    yield from _attempt(uri, look)


def list_names(uri: str) -> list[str]:
    """Return the names of what lies directly in folder `uri`, sorted; none if it is not there."""

    def look(fs: Any, path: str) -> list[str]:
        fs.invalidate_cache()
        try:
            found = fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in found} - {""})

    return _attempt(uri, look)


def read_bytes(uri: str) -> bytes:
    """Return the whole content of `uri`, fetched with one request."""
    # s3fs would ask for the length first, to fetch large objects in parts side by side.
    whole = {"max_concurrency": 1} if _scheme(uri) == "s3" else {}
    return _attempt(uri, lambda fs, path: fs.cat_file(path, **whole))


def read_range(uri: str, *, start: int, length: int) -> bytes:
    """Return `length` bytes from `start`; fewer at the end of the file."""
    return _attempt(uri, lambda fs, path: fs.cat_file(path, start=start, end=start + length))


def open_seekable(uri: str) -> IO[bytes]:
    """Open `uri` for reading at any position; remote files are fetched in blocks of 1 MB."""
    return _attempt(
        uri,
        lambda fs, path: fs.open(path, "rb", block_size=BLOCK_BYTES, cache_type="readahead"),
    )


# --- writing ---------------------------------------------------------------------------------


def write_bytes(uri: str, data: bytes) -> None:
    """Write `data` to `uri`, replacing what is there; missing local folders are made."""
    if is_local(uri):
        _guard(uri, lambda: _write_local(Path(local_path(uri)), data, exclusive=False))
    else:
        _attempt(uri, lambda fs, path: fs.pipe_file(path, data))


def create_exclusive(uri: str, data: bytes) -> bool:
    """Write `data` to `uri` unless something is there; of many callers exactly one succeeds.

    Returns:
        Whether this call wrote it. After True the whole content is visible.

    Raises:
        StorageError: The storage has no atomic create (only local files and S3 have one here).
    """
    if is_local(uri):
        return _guard(uri, lambda: _write_local(Path(local_path(uri)), data, exclusive=True))
    if _scheme(uri) != "s3":
        raise storage_error("unsupported", uri, "atomic creation needs a local path or s3://")
    return _guard(uri, lambda: _put_if_absent(uri, data))


def remove(uri: str) -> None:
    """Delete the file or the whole folder at `uri`; nothing happens when there is none."""

    def delete(fs: Any, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)

    _attempt(uri, delete)


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


def _put_if_absent(uri: str, data: bytes) -> bool:
    import botocore.exceptions

    bucket, _, key = uri.split("://", 1)[1].partition("/")
    try:
        _s3_client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except botocore.exceptions.ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
            return False
        raise
    return True


# --- below -----------------------------------------------------------------------------------


def _scheme(uri: str) -> str:
    found = re.match(r"([A-Za-z][A-Za-z0-9+.\-]*)://", uri)
    return found.group(1).lower() if found else ""


def _etag(info: dict[str, Any]) -> str | None:
    tag = info.get("ETag") or info.get("etag")
    return str(tag).strip('"') if tag else None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _s3_environment() -> None:
    """Settings that S3 servers other than Amazon's need; the user's own values win."""
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")


@functools.lru_cache(maxsize=4)
def _s3_client_of(process: int, endpoint: str | None) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.Session().client(
        "s3",
        endpoint_url=endpoint,
        config=Config(
            connect_timeout=5,
            read_timeout=30,
            retries={"mode": "standard", "total_max_attempts": 2},
        ),
    )


def _s3_client() -> Any:
    _s3_environment()
    return _s3_client_of(os.getpid(), os.environ.get("AWS_ENDPOINT_URL"))


def _filesystem(uri: str) -> tuple["fsspec.AbstractFileSystem", str]:
    import fsspec

    scheme = _scheme(uri)
    if is_local(uri):
        return fsspec.filesystem("file"), local_path(uri)
    options: dict[str, Any] = {}
    if scheme == "s3":
        _s3_environment()
        options = {
            "endpoint_url": os.environ.get("AWS_ENDPOINT_URL"),
            "use_listings_cache": False,
            "config_kwargs": {
                "connect_timeout": 5,
                "read_timeout": 30,
                "retries": {"max_attempts": 1},
            },
        }
    fs = fsspec.filesystem(scheme, **options)
    return fs, fs._strip_protocol(uri)


def _attempt(uri: str, action: Callable[[Any, str], T]) -> T:
    """Run `action(filesystem, path)` with retries; failures come out as `StorageError`."""

    def act() -> T:
        fs, path = _filesystem(uri)
        return action(fs, path)

    return _guard(uri, act)


def _guard(uri: str, action: Callable[[], T]) -> T:
    patience = float(os.environ.get("CLIPS_STORAGE_RETRY_SECONDS", RETRY_SECONDS))
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_passing),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5.0),
        stop=tenacity.stop_after_delay(patience),
        before_sleep=lambda state: _log.info(
            "storage: %s failed, attempt %d: %s", redact(uri), state.attempt_number, state.outcome
        ),
        reraise=True,
    )
    try:
        return retrying(action)
    except StorageError:
        raise
    except Exception as error:
        raise explained(error, uri) from error
