"""Folders of numbered pictures among the files of a source: each is one video, `container` "frames".

How such a folder is read is in `decode/frames.py`; whether its numbers have gaps shows when it is
probed. Its size is that of all pictures, its etag a hash of theirs: it changes when any of them does.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from clips import storage
from clips.decode.series import is_picture
from clips.storage import FileInfo, StorageError


def folder_at(place: str) -> "Folder | None":
    """Return size and etag of the folder of pictures at a place; None where there is none."""
    try:
        files = [
            f for f in storage.iterate_files(place) if "/" not in f.path and is_picture(f.path)
        ]
    except StorageError as error:
        if error.kind != "missing":
            raise
        files = []
    return _folder("", files) if files else None


@dataclass
class _Level:
    folder: str
    pictures: list[FileInfo] = field(default_factory=list)
    videos: bool = False
    """Whether videos lie there too."""


@dataclass(frozen=True)
class Folder(FileInfo):
    """A folder of frames: its path, and size and etag of the pictures together."""


def with_folders(
    files: Iterable[FileInfo], *, is_video: Callable[[str], bool]
) -> Iterator[FileInfo]:
    """Yield the files, with a `Folder` in the place of the pictures of each folder of frames.

    A folder of frames holds two numbered pictures or more, and no video.

    Args:
        files: Sorted by path.
        is_video: Whether a path is that of a video.
    """
    open_: list[_Level] = []  # folders around the last file, outermost first
    for file in files:
        while open_ and not file.path.startswith(f"{open_[-1].folder}/"):
            yield from _closed(open_.pop())
        folder, slash, name = file.path.rpartition("/")
        if slash and (not open_ or open_[-1].folder != folder):
            open_.append(_Level(folder))
        if slash and is_picture(name):
            open_[-1].pictures.append(file)
            continue
        if slash and is_video(file.path):
            open_[-1].videos = True
        yield file
    while open_:
        yield from _closed(open_.pop())


def _closed(level: _Level) -> Iterator[FileInfo]:
    if len(level.pictures) > 1 and not level.videos:
        yield _folder(level.folder, level.pictures)
    else:
        yield from level.pictures


def _folder(path: str, pictures: list[FileInfo]) -> Folder:
    digest = hashlib.blake2b(digest_size=16)
    for file in pictures:
        name = file.path.rpartition("/")[2]
        digest.update(f"{name}/{file.size}/{file.etag}\n".encode())
    return Folder(path, sum(file.size for file in pictures), digest.hexdigest())
