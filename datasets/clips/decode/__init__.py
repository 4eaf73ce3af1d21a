"""From one encoded video to the pixels of any number of clips, in one pass.

`open_video` gives a `Reader`: it knows how many frames a video has and when they are shown, and
reads the frames of several clips, each with its own crop, decoding every needed frame once.
Backends:

* `pyav`: exact for every codec FFmpeg knows, and decodes only frames that a wanted frame depends
  on.
* `decord`: the authors' decoder, for comparison; x86-64 Linux only. Refuses the kinds of files that
  it gets wrong; a damaged one may still make it hang.
* `torchcodec`: PyTorch's decoder, for comparison; an extra that needs FFmpeg's libraries of the
  system. It imports torch into the decoding processes (4 s, and memory). Refuses what it gets wrong.
* `auto` (default): the fastest that is exact for the codec. That is `pyav` for every codec measured
  (docs/benchmarks.md), so there is nothing to choose.
* `module:Class`: a `Reader` of one's own.

A file that cannot be decoded raises `DecodeError`, whose `kind` says why. It is not a
`ValueError`: the file is at fault, not the user, and training goes on without it.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np

from clips.augment.geometry import Box

_BACKENDS = {
    "auto": "clips.decode.pyav:PyavReader",  # the fastest exact one for every codec measured
    "pyav": "clips.decode.pyav:PyavReader",
    "decord": "clips.decode.decord:DecordReader",
    "torchcodec": "clips.decode.torchcodec:TorchcodecReader",
}

Kind = Literal[
    "empty",  # no bytes, or no frames in the video stream
    "no_video",  # no video stream (audio only, subtitles)
    "still_image",  # a picture, whatever its name
    "unsupported",  # a container, codec, or pixel format this build cannot read
    "corrupt",  # damaged or truncated data
    "missing_frames",  # the index lists frames that the decoder never delivers
    "size_change",  # the picture changes its size or orientation in mid-stream
    "too_large",  # more pixels in a frame than the limit
    "timeout",  # not finished within the time limit
    "memory",  # more memory wanted than the limit
    "crashed",  # its decoder's process died of it
    "quarantined",  # not tried, since it has cost processes before
    "io",  # the bytes could not be read
    "changed",  # not the bytes the manifest was made of
]

HARMFUL: tuple[Kind, ...] = ("timeout", "memory", "crashed")
"""Kinds that cost a process or much time, not only the clip."""

Stage = Literal["opening", "decoding", "process"]


class DecodeError(Exception):
    """A video that cannot be decoded.

    Attributes:
        kind: Why, one of a fixed set of words.
        message: Details for people.
        stage: Where: opening and indexing the file, decoding frames of it, or its process ended.
    """

    def __init__(self, kind: Kind, message: str, *, stage: Stage = "opening") -> None:
        super().__init__(kind, message)
        self.kind: Kind = kind
        self.message = message
        self.stage: Stage = stage

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass(frozen=True)
class DecodeConfig:
    """How videos are decoded (recipe section `decode`)."""

    backend: str = "auto"
    """Decoder: `auto` (the fastest exact one), `pyav`, `decord` (x86-64 Linux only), `torchcodec` (an extra), or
    `module:Class`, a `Reader` of one's own."""
    seconds: float = 20.0
    """Processor time for one video, opening included, and half of the time by the clock; beyond it the video is bad."""
    memory_gb: float = 4.0
    """Memory that the decoding of one video may take."""
    max_pixels: int = 4096 * 2304
    """Largest frame that is decoded, in pixels: a damaged header can ask for gigabytes."""

    def __post_init__(self) -> None:
        if self.backend not in _BACKENDS and not all(self.backend.partition(":")):
            raise ValueError(
                f"decode.backend is {self.backend!r}; allowed: {', '.join(_BACKENDS)}, or module:Class, a Reader of "
                "your own"
            )
        if self.seconds <= 0:
            raise ValueError(f"decode.seconds is {self.seconds}; it must be positive")
        if self.memory_gb <= 0:
            raise ValueError(f"decode.memory_gb is {self.memory_gb}; it must be positive")
        if self.max_pixels < 1:
            raise ValueError(f"decode.max_pixels is {self.max_pixels}; it must be positive")

    @property
    def wall_seconds(self) -> float:
        """Time by the clock after which a decoder is ended: a busy machine is no fault of the file."""
        return 2 * self.seconds

    @property
    def memory_bytes(self) -> int:
        """`memory_gb` in bytes."""
        return int(self.memory_gb * 2**30)


DEFAULT_DECODE = DecodeConfig()

Boxes = Callable[[int, int], Sequence[Box]]
"""From the displayed (width, height) to one crop per clip.

A function, because a decoder learns of a rotation only when it decodes the first frame."""


class Reader(Protocol):
    """An opened video. Not shared between threads, and never carried over a fork."""

    @property
    def frames(self) -> int:
        """Number of frames that a full decode would show."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second, on average."""
        ...

    @property
    def times_s(self) -> np.ndarray:
        """float64 [frames]: when each frame is shown, in seconds from the first one."""
        ...

    def read(
        self, indices: Sequence[np.ndarray], *, boxes: Boxes | None = None
    ) -> list[np.ndarray]:
        """Return one uint8 array [T, height, width, 3] (RGB) per clip.

        Args:
            indices: For each clip the frames it wants, in display order, each in 0 .. frames - 1.
            boxes: The crop of each clip; None reads whole frames.

        Raises:
            DecodeError: A wanted frame cannot be decoded.
        """
        ...

    def close(self) -> None:
        """Release the file and the decoder."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


class ReaderClass(Protocol):
    """What `decode.backend` names: called with a source, it opens it."""

    def __call__(
        self, source: str | bytes, *, config: DecodeConfig, size: int | None = None
    ) -> Reader:
        """Open `source`; see `open_video`. One that reads tar shards also takes `offset`."""
        ...


def open_video(
    source: str | bytes,
    *,
    config: DecodeConfig = DEFAULT_DECODE,
    size: int | None = None,
    offset: int | None = None,
) -> Reader:
    """Open a video for reading.

    Args:
        source: Path or URI (`s3://bucket/key`), or the encoded bytes themselves.
        config: Backend and limits.
        size: Length of a remote object, where it is known; saves a request.
        offset: Of a member of a tar shard (`<shard>.tar/<member>`): where its `size` bytes begin.

    Raises:
        DecodeError: The video cannot be read.
        ValueError: The backend is not installed, or is none.
    """
    part = {} if offset is None else {"offset": offset}
    return reader_class(config.backend)(source, config=config, size=size, **part)


def reader_class(backend: str) -> ReaderClass:
    """Return the class that `decode.backend` names.

    Raises:
        ValueError: Its module cannot be imported, or has no such class.
    """
    # Imported here: `import clips` stays light, and not every decoder exists everywhere.
    module, _, name = _BACKENDS.get(backend, backend).partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(
            f"decode.backend is {backend!r}, but {module} cannot be imported ({error}); it must be on the "
            "Python path of every node"
        ) from error
    if not isinstance(found, type):
        raise ValueError(f"decode.backend is {backend!r}, but {module} has no class {name}")
    return found
