"""What lies below a place, one by one and in order, however much it is.

The order is that of the bytes of the relative paths: as S3 lists, and the same for local folders,
so that two listings can be compared by walking both. Local folders are read one at a time, S3 in
pages of 1000; elsewhere (Google's buckets) fsspec gives folder by folder.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clips.storage.access import attempt, guard
from clips.storage.errors import storage_error
from clips.storage.names import is_local, local_path, scheme


@dataclass(frozen=True)
class FileInfo:
    """One file of a listing."""

    path: str
    """Path relative to the listed place, with forward slashes."""
    size: int
    etag: str | None
    """What changes when the bytes do: the object's etag, without quotes; of a local file its time and size."""


def iterate_files(uri: str) -> Iterator[FileInfo]:
    """Yield every file below `uri`, sorted by the bytes of its path, without holding them all.

    Links are followed, but for those that lead back to a folder above; a link to nowhere is a file
    of size 0.

    Raises:
        StorageError: There is no such place, or it cannot be listed. (An empty folder yields
            nothing.)
    """
    if is_local(uri):
        yield from _local(uri)
    elif scheme(uri) == "s3":
        yield from _s3(uri)
    elif scheme(uri) in ("http", "https"):
        raise storage_error("unsupported", uri, "a web server lists no files: name them in a list")
    else:
        yield from _by_folder(uri.rstrip("/"), "")


def list_files(uri: str) -> list[FileInfo]:
    """Return every file below `uri`, sorted by the bytes of its path: for places of modest size.

    Raises:
        StorageError: As `iterate_files`.
    """
    return list(iterate_files(uri))


def list_names(uri: str) -> list[str]:
    """Return the names of what lies directly in folder `uri`, sorted; none if it is not there."""

    def look(fs: Any, path: str) -> list[str]:
        fs.invalidate_cache()
        try:
            found = fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in found} - {""})

    return attempt(uri, look)


def etag_of(info: dict[str, Any]) -> str | None:
    """Return the etag in what fsspec or S3 says of an object; a web server may give a time instead."""
    tag = info.get("ETag") or info.get("etag") or info.get("Last-Modified")
    return str(tag).strip('"') if tag else None


def local_info(path: str, *, named: str) -> FileInfo:
    """Return what the operating system says of a file.

    Raises:
        OSError: There is none, or it cannot be looked at.
    """
    found = os.stat(path)
    return FileInfo(named, found.st_size, f"{found.st_mtime_ns}-{found.st_size}")


def _local(uri: str) -> Iterator[FileInfo]:
    base = local_path(uri)
    if not os.path.lexists(base):
        raise storage_error("missing", uri)
    if os.path.isdir(base):
        yield from _below(base, "", ())


def _below(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[FileInfo]:
    """Yield the files of one folder; `above` are the folders that lead to it, by device and inode."""
    here = guard(folder, lambda: os.stat(folder))
    if (here.st_dev, here.st_ino) in above:
        return
    above += ((here.st_dev, here.st_ino),)

    def look() -> list[tuple[bytes, str, bool]]:
        with os.scandir(folder) as entries:
            # With its slash a folder sorts as its files' whole paths do: "a.b" before "a/b".
            return sorted(
                (
                    os.fsencode(entry.name) + (b"/" if entry.is_dir() else b""),
                    entry.name,
                    entry.is_dir(),
                )
                for entry in entries
            )

    for _, name, is_folder in guard(folder, look):
        path = os.path.join(folder, name)
        if is_folder:
            yield from _below(path, f"{prefix}{name}/", above)
        else:
            try:
                yield local_info(path, named=prefix + name)
            except FileNotFoundError:
                if os.path.islink(path):  # else: deleted since
                    yield FileInfo(prefix + name, 0, None)


def _s3(uri: str) -> Iterator[FileInfo]:
    bucket, _, key = uri.split("://", 1)[1].partition("/")
    prefix = f"{key.rstrip('/')}/" if key.strip("/") else ""
    token: dict[str, str] = {}
    empty = True
    while True:
        page: dict[str, Any] = attempt(
            uri,
            lambda fs, _, token=token: fs.call_s3(
                "list_objects_v2", Bucket=bucket, Prefix=prefix, **token
            ),
            reads=True,
        )
        for found in page.get("Contents", ()):
            empty = False
            if not found["Key"].endswith("/"):  # those are marks of folders
                yield FileInfo(found["Key"][len(prefix) :], int(found["Size"]), etag_of(found))
        if not page.get("IsTruncated"):
            break
        token = {"ContinuationToken": page["NextContinuationToken"]}
    if empty and not attempt(uri, lambda fs, path: fs.exists(path), reads=True):
        raise storage_error("missing", uri)


def _by_folder(uri: str, prefix: str) -> Iterator[FileInfo]:
    """Yield the files of one folder of any store that fsspec knows; `prefix` is the way to it."""

    def look(fs: Any, path: str) -> list[tuple[str, bool, int, str | None]]:
        found = [
            (info["name"].rstrip("/"), info["type"] == "directory", info["size"], etag_of(info))
            for info in fs.ls(path, detail=True)
        ]
        base = path.rstrip("/")
        inside = [  # a store may list the folder itself, as an empty object
            (name.rsplit("/", 1)[-1], is_folder, int(size or 0), etag)
            for name, is_folder, size, etag in found
            if name != base
        ]
        return sorted(inside, key=lambda item: (item[0] + "/" * item[1]).encode())

    for name, is_folder, size, etag in attempt(uri, look, reads=True):
        if is_folder:
            yield from _by_folder(f"{uri}/{name}", f"{prefix}{name}/")
        else:
            yield FileInfo(prefix + name, size, etag)
