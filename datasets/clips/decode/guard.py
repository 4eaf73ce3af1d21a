"""Which videos a second decoder may read: those whose frames it numbers right.

decord and torchcodec find frames by an index of their own. It is right for most files and wrong for
some, often in silence (decode.md, and measured by tests/unit/datasets/test_backends.py): another
frame than the one asked for, frames missing at the end. The packets tell which files these are, so
they are read first, through PyAV (1 ms): a video of a kind that the decoder has been seen to get
wrong is refused, and number and times of the frames are those of the packets.
"""

import abc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from av.packet import Packet

from clips.decode import Boxes, DecodeConfig, DecodeError
from clips.decode.pyav import PyavReader
from clips.decode.source import openable

_IDR = 5  # type of an H.264 unit: a picture that nothing after it looks behind


@dataclass(frozen=True)
class Structure:
    """How the frames of a video lie in its file."""

    container: str
    codec: str
    timed: bool
    """Every frame has a time of its own."""
    hidden: bool
    """An edit list hides frames that are in the file."""
    open_groups: bool
    """Frames shown before a keyframe are stored behind it."""
    recovery_points: bool
    """Of H.264: keyframes at which a decoder may begin, though later frames can refer to earlier ones."""
    headless: bool
    """The first frame is no keyframe."""


@dataclass(frozen=True)
class Checked:
    """A video that the decoder may read."""

    source: str | bytes
    """A local path, or the encoded bytes."""
    frames: int
    fps: float
    times_s: np.ndarray


Refusal = Callable[[Structure], str | None]
"""From a structure to the reason why a decoder is not exact for it."""


class _Sized(Protocol):
    def __len__(self) -> int: ...


class CheckedReader(abc.ABC):
    """What the readers of checked videos have in common: all but the decoding; see `clips.decode.Reader`."""

    _checked: Checked
    _decoder: Any

    @property
    def frames(self) -> int:
        """Number of frames that a full decode would show."""
        return self._checked.frames

    @property
    def fps(self) -> float:
        """Frames per second, on average."""
        return self._checked.fps

    @property
    def times_s(self) -> np.ndarray:
        """float64 [frames]: when each frame is shown, in seconds from the first one."""
        return self._checked.times_s

    @abc.abstractmethod
    def read(
        self, indices: Sequence[np.ndarray], *, boxes: Boxes | None = None
    ) -> list[np.ndarray]:
        """Return one uint8 array [T, height, width, 3] per clip; see `clips.decode.Reader`."""

    def close(self) -> None:
        """Release the decoder, which frees its memory when it is deleted."""
        self._decoder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def check(
    source: str | bytes,
    *,
    config: DecodeConfig,
    size: int | None,
    offset: int | None,
    backend: str,
    refusal: Refusal,
) -> Checked:
    """Return what `backend` may open, and what its frames are.

    Raises:
        DecodeError: `unsupported`: the backend is not exact for this kind of video. Or it cannot be
            read at all.
    """
    held = _held(source, size, offset)
    with PyavReader(held, config=config) as reader:
        reason = refusal(_structure(reader))
        if reason is not None:
            raise refused(backend, reason)
        return Checked(held, reader.frames, reader.fps, reader.times_s)


def check_count(reader: _Sized, checked: Checked, *, backend: str) -> None:
    """Compare a decoder's number of frames with that of the packets.

    Raises:
        DecodeError: They differ.
    """
    if len(reader) != checked.frames:
        raise refused(backend, f"it finds {len(reader)} of {checked.frames} frames")


def refused(backend: str, reason: str) -> DecodeError:
    """Return the error of a video that a backend does not read right."""
    return DecodeError(
        "unsupported", f"{backend} is not exact here: {reason}; decode.backend=pyav is"
    )


def common_refusal(structure: Structure) -> str | None:
    """Return what neither decord nor torchcodec reads right, if a video has it."""
    if not structure.timed or "mpegts" in structure.container:
        return f"frames in this container ({structure.container}) cannot be found by their times"
    if structure.recovery_points:
        return "frames behind a keyframe refer to frames before it (open groups, intra refresh)"
    if structure.headless:
        return "its first frame is no keyframe"
    return None


def _held(source: str | bytes, size: int | None, offset: int | None) -> str | bytes:
    """Return a local path, or the bytes: both decoders read remote objects to their end anyway."""
    opened = openable(source, size=size, offset=offset)
    return opened.removeprefix("file:") if isinstance(opened, str) else opened.read()


def _structure(reader: PyavReader) -> Structure:
    packets = list(reader.packets())
    info = reader.info
    return Structure(
        container=info.container,
        codec=info.codec,
        timed=reader.timed,
        hidden=any(packet.is_discard for packet in packets),
        open_groups=_open_groups(packets),
        recovery_points=info.codec == "h264"
        and any(p.is_keyframe and not _has_idr(bytes(p), reader.unit_prefix) for p in packets),
        headless=not packets[0].is_keyframe,
    )


def _open_groups(packets: Iterable[Packet]) -> bool:
    key: int | None = None
    for packet in packets:
        if packet.pts is None:
            return False
        if packet.is_keyframe:
            key = packet.pts
        elif key is not None and packet.pts < key:
            return True
    return False


def _has_idr(data: bytes, prefix: int | None) -> bool:
    """Whether an H.264 packet holds an IDR picture.

    `prefix` is how many bytes say a unit's length; None where start codes (00 00 01) part the units.
    """
    if prefix is None:
        return any(part and part[0] & 31 == _IDR for part in data.split(b"\0\0\1")[1:])
    at = 0
    while at + prefix < len(data):
        if data[at + prefix] & 31 == _IDR:
            return True
        at += prefix + int.from_bytes(data[at : at + prefix])
    return False
