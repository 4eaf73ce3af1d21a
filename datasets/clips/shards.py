"""Tar shards as WebDataset has them: which videos are in one, where their bytes lie, and what their labels are.

Members of one name (`a/b.mp4`, `a/b.cls`, `a/b.json`) that stand together are a sample; names, grouping
and the decoding of label fields are the `webdataset` library's. A video is `<shard>.tar/<member>` with
the offset and length of its bytes, and is read by range; so a shard must not be compressed.

Listing reads the headers and the small members beside a video, not the videos: two requests per member
of a remote shard. The library imports torch, so it is imported only where a shard is listed or written.
"""

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from clips import storage

SUFFIX = ".tar"
_LABELS = (".cls", ".json")
_META = re.compile(r"__[^/]*__($|/)")  # members that the library skips
_PART_BYTES = 16 << 10
_LARGEST_LABEL = 1 << 20


class NotAShard(ValueError):
    """A tar file that cannot be used, and why."""


@dataclass(frozen=True)
class Member:
    """A video in a shard."""

    name: str
    offset: int
    """Where its bytes begin in the shard."""
    size: int
    label: str | None = None


def members(uri: str, *, size: int, suffixes: tuple[str, ...]) -> list[Member]:
    """Return the videos of a shard, in the order of the file.

    Args:
        uri: The shard.
        size: Its length.
        suffixes: What the names of videos end in.

    Raises:
        NotAShard: It is not a tar file, ends in the middle, is compressed, or a label in it is none.
        StorageError: It cannot be read.
    """
    from webdataset.tariterators import group_by_keys  # imports torch

    found: list[Member] = []
    try:
        for sample in group_by_keys(_fields(uri, size)):
            label = _label(sample)
            for key, value in sample.items():
                if isinstance(value, Member) and f".{key}".endswith(suffixes):
                    found.append(Member(value.name, value.offset, value.size, label))
    except storage.StorageError:
        raise
    except (tarfile.TarError, EOFError) as error:
        raise NotAShard(f"not a readable tar file: {error}") from error
    except ValueError as error:  # the library adds to the arguments of its own
        raise NotAShard(str(error.args[0])) from error
    return found


def _fields(uri: str, size: int) -> Iterator[dict[str, Any]]:
    """Yield every member as the library groups them: its name, and its place or, of a label, its content."""
    with _opened(uri, size) as file:
        tar: Any = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (the file is closed)
        for info in tar:
            tar.members = []  # else all stay in memory
            if not info.isreg() or _META.match(info.name):
                continue
            end = info.offset_data + info.size
            if end > size:
                raise tarfile.ReadError(f"{info.name} ends at byte {end} of {size}")
            value: Member | bytes = Member(info.name, info.offset_data, info.size)
            if info.name.lower().endswith(_LABELS):
                if info.size > _LARGEST_LABEL:
                    raise ValueError(f"{info.name} is too large for a label: {info.size} bytes")
                content = tar.extractfile(info)
                assert content is not None
                value = content.read()
            yield {"fname": info.name, "data": value, "__url__": uri}


def _label(sample: dict[str, Any]) -> str | None:
    from webdataset.autodecode import basichandlers

    for key in ("cls", "json"):
        data = sample.get(key)
        if not isinstance(data, bytes):
            continue
        try:
            value = basichandlers(key, data)
        except ValueError as error:  # of JSON and of text that is none, too
            raise ValueError(f"{sample['__key__']}.{key} is no label: {error}") from error
        if key == "json":
            value = value.get("label") if isinstance(value, dict) else None
        if value is not None:
            return str(value)
    return None


def _opened(uri: str, size: int) -> IO[bytes]:
    if storage.is_local(uri):
        return storage.open_seekable(uri)
    return io.BufferedReader(_Remote(uri, size), _PART_BYTES)


class _Remote(io.RawIOBase):
    """A remote file that is read in parts just as large as asked for: from header to header, over the videos."""

    def __init__(self, uri: str, size: int) -> None:
        super().__init__()
        self._uri, self._size, self._at = uri, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        length = max(0, min(len(buffer), self._size - self._at))
        data = storage.read_range(self._uri, start=self._at, length=length) if length else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
