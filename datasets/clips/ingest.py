"""A look inside a video: keep it with what was found, or reject it with a reason.

A video is kept if its first and its middle frame decode, in whatever container its bytes really
are. Everything else is rejected with one of the reasons of `DecodeError`, plus `one_frame`:
nothing moves in it. Nothing is dropped in silence: kept + rejected = found.

Only what the bytes say is held against a video. A disk or a bucket that cannot be read is a
`StorageError`, which ends the work: else an hour without network would reject a whole data set.

`clips.pipeline` spreads this over a Ray cluster; `sources` says where the entries come from.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clips import storage
from clips.decode import DEFAULT_DECODE, DecodeConfig, DecodeError
from clips.decode.source import shard_of

if TYPE_CHECKING:
    from clips.decode.pyav import PyavReader


@dataclass(frozen=True)
class Entry:
    """A video that was found, before anybody looked inside."""

    video_id: str
    """Path relative to the root; a whole address where there is no common root."""
    size: int
    etag: str | None = None
    """What changes when the bytes do: the store's etag, of a local file its time and size."""
    label: str | None = None
    split: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    container: str | None = None
    """`frames`: a folder of pictures; else not known yet."""
    frames: int | None = None
    """How many there are, where a list says so."""
    offset: int | None = None
    """Of a member of a tar shard: where its bytes begin."""


@dataclass(frozen=True)
class Probe:
    """What a look inside found; the probe columns of the manifest."""

    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation: int
    fps: float
    frames: int
    duration_s: float
    keyframe_spacing: int


@dataclass(frozen=True)
class Rejected:
    """A file that cannot be used, and why."""

    video_id: str
    reason: str
    """A kind of `DecodeError`, `one_frame`, `missing`, `denied`, or `crashed`."""
    message: str
    etag: str | None = field(default=None, compare=False)
    """Of the bytes that were looked at, where that is not the entry's own."""


# --- probing ---------------------------------------------------------------------------------


def probe(
    source: str | bytes,
    *,
    decode: DecodeConfig = DEFAULT_DECODE,
    size: int | None = None,
    offset: int | None = None,
) -> Probe:
    """Look inside a video, at a path or URI or in memory; its first and its middle frame are decoded as proof.

    `size` is the length of a remote object, where it is known, `offset` its place in a tar shard.

    Raises:
        DecodeError: It cannot be used; the kind says why.
    """
    from clips.decode.pyav import PyavReader  # here, because finding videos needs no FFmpeg

    with PyavReader(source, config=decode, size=size, offset=offset) as reader:
        return probe_opened(reader)


def probe_opened(reader: "PyavReader") -> Probe:
    """Look inside a video that is open already; see `probe`."""
    frames = len(reader.times_s)  # lists the packets of a copy too: its index may promise more
    proof = np.array([0, frames // 2])
    (pictures,) = reader.read([proof])
    info = reader.info
    return Probe(
        container=info.container,
        codec=info.codec,
        pixel_format=info.pixel_format,
        width=pictures.shape[2],
        height=pictures.shape[1],
        rotation=reader.rotation,
        fps=reader.fps,
        frames=reader.frames,
        duration_s=reader.frames / reader.fps,
        keyframe_spacing=info.keyframe_spacing,
    )


def probe_frames(folder: str, *, decode: DecodeConfig = DEFAULT_DECODE) -> Probe:
    """Look into a folder of pictures, at a path or URI; see `probe`."""
    from clips.decode.frames import CONTAINER, FramesReader

    with FramesReader(folder, config=decode) as reader:
        (pictures,) = reader.read([np.array([0, reader.frames // 2])])
        return Probe(
            container=CONTAINER,
            codec=reader.codec,
            pixel_format=reader.pixel_format,
            width=pictures.shape[2],
            height=pictures.shape[1],
            rotation=0,
            fps=reader.fps,
            frames=reader.frames,
            duration_s=reader.frames / reader.fps,
            keyframe_spacing=1,
        )


def examine(
    entry: Entry, *, root: str, decode: DecodeConfig = DEFAULT_DECODE
) -> dict[str, Any] | Rejected:
    """Return the manifest's row for a video, or why there is none.

    Raises:
        StorageError: It cannot be read for a reason that is not its own.
    """
    uri = storage.join(root, entry.video_id)
    try:
        if entry.container == "frames":
            found = probe_frames(uri, decode=decode)
        else:
            found = probe(uri, decode=decode, size=entry.size, offset=entry.offset)
    except DecodeError as error:
        if error.kind == "io":
            return _unreadable(entry, error.message, root=root)
        return Rejected(entry.video_id, error.kind, error.message)
    except storage.StorageError as error:
        if error.kind == "denied" and uri.startswith(("http://", "https://")):
            return Rejected(entry.video_id, "denied", str(error))  # a web server's word on one file
        raise
    if found.frames < 2:
        return Rejected(entry.video_id, "one_frame", "it holds a single frame: nothing moves")
    if entry.frames not in (None, found.frames):
        message = f"the list says {entry.frames} frames, but the folder holds {found.frames}"
        return Rejected(entry.video_id, "missing_frames", message)
    if entry.start_s is not None and entry.start_s >= found.duration_s:
        return behind_the_end(entry, found.duration_s)
    return {**asdict(entry), **asdict(found)}


Examine = Callable[..., dict[str, Any] | Rejected]
"""`examine`, or what a test puts in its place."""


def behind_the_end(entry: Entry, duration_s: float) -> Rejected:
    """Return the rejection of a span that no frame lies in."""
    return Rejected(
        entry.video_id,
        "missing_frames",
        f"its span starts at {entry.start_s:g} s, but the video lasts {duration_s:.1f} s",
    )


def _unreadable(entry: Entry, message: str, *, root: str) -> Rejected:
    """Return the rejection of a file whose bytes cannot be read, if others of the same place can."""
    uri = storage.join(root, entry.video_id)
    try:
        if entry.container == "frames":
            if not storage.list_names(uri):
                return Rejected(entry.video_id, "missing", "it was listed, and is gone since")
        else:
            storage.stat(uri if entry.offset is None else shard_of(uri))
    except storage.StorageError as error:
        if error.kind != "missing" or _is_gone(root):
            raise
        return Rejected(entry.video_id, "missing", "it was listed, and is gone since")
    return Rejected(entry.video_id, "io", message)


def _is_gone(root: str) -> bool:
    """Whether a local folder is no longer there, or empty as the place of a disk that is not mounted."""
    if not root or not storage.is_local(root):
        return False  # a bucket that is gone says so itself
    folder = storage.local_path(root)
    return not os.path.isdir(folder) or not os.listdir(folder)


@dataclass(frozen=True)
class Recheck:
    """A video whose bytes are to be compared with what an earlier look has found in them."""

    entry: Entry
    etag: str | None = None
    """Hash of the bytes that the earlier look has seen."""
    result: dict[str, Any] | Rejected | None = None
    """What it found."""

    @property
    def video_id(self) -> str:
        """The entry's."""
        return self.entry.video_id


def examine_content(
    video: Recheck, *, root: str, decode: DecodeConfig, examine: Examine = examine
) -> dict[str, Any] | Rejected:
    """Hash the bytes of a video, and look inside unless they are those of the earlier look.

    The hash takes the place of the etag: it changes when, and only when, the bytes do.

    Raises:
        StorageError: It cannot be read for a reason that is not its own.
    """
    entry = video.entry
    if entry.container == "frames":  # its etag is made of those of its pictures already
        return examine(entry, root=root, decode=decode)
    uri = storage.join(root, entry.video_id)
    try:
        etag = content_hash(uri, size=entry.size, offset=entry.offset)
    except storage.StorageError as error:
        if error.kind != "missing":
            raise
        return _unreadable(entry, str(error), root=root)
    if video.result is not None and etag == video.etag:
        return video.result
    found = examine(entry, root=root, decode=decode)
    return replace(found, etag=etag) if isinstance(found, Rejected) else {**found, "etag": etag}


def content_hash(uri: str, *, size: int, offset: int | None = None) -> str:
    """Return `blake2b:` and the hash of the `size` bytes at `uri`, as hex; `offset` is that of a member of a shard."""
    place, begin = (uri, 0) if offset is None else (shard_of(uri), offset)
    digest = hashlib.blake2b(digest_size=20)
    if uri.startswith(("http://", "https://")):  # not every web server knows of ranges
        digest.update(storage.read_bytes(uri))
    else:
        for start in range(0, size, _PART_BYTES):
            length = min(_PART_BYTES, size - start)
            digest.update(storage.read_range(place, start=begin + start, length=length))
    return f"blake2b:{digest.hexdigest()}"


_PART_BYTES = 16 << 20


def write_records(records: Sequence[Any], schema: pa.Schema, uri: str) -> None:
    """Write dataclass instances as Parquet, a column for each field."""
    table = pa.Table.from_pylist([asdict(record) for record in records], schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())
