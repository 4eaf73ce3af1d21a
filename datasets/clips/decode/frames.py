"""A folder of numbered pictures as a video: the authors' form of Something-Something and their "raw frames".

`img_00001.jpg`, `frame_000001.jpg`, `0.png`, ...: one name with a running number, from 0 or 1, JPEG or
PNG. A gap is an error that names the number, since every frame behind it would be at the wrong time.
Only the wanted pictures are read. A folder says nothing of time, so FFmpeg's own guess for pictures
holds, 25 a second: the stride counts pictures, and spans and `data.clip.fps` count on that rate.
Folders of the same kind are found by `clips.frames`.

Shapes: T frames of a clip, H W of the picture, C = 3 (RGB).
"""

import time
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from av.codec.context import CodecContext
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from clips import storage
from clips.decode import Boxes, DecodeConfig, DecodeError
from clips.decode.failures import decode_errors
from clips.decode.pixels import Pixels
from clips.decode.plan import Plan
from clips.decode.series import in_order

FPS = 25.0
CONTAINER = "frames"
"""What the manifest's column `container` says of such a folder."""

_CODECS = {"jpg": "mjpeg", "jpeg": "mjpeg", "png": "png"}


class FramesReader:
    """A folder of pictures; see the module's text and `clips.decode.Reader`."""

    def __init__(self, folder: str, *, config: DecodeConfig) -> None:
        """List `folder`, a path or URI."""
        self._folder = folder
        self._config = config
        self._deadline = time.thread_time() + config.seconds
        self._pixels = Pixels(config)
        self._names = in_order(storage.list_names(folder))
        self.rotation = 0
        self.pixel_format = "unknown"
        """FFmpeg's name of the pictures' pixels; known once one was read."""

    @property
    def frames(self) -> int:
        """Number of pictures."""
        return len(self._names)

    @property
    def fps(self) -> float:
        """Frames per second: a guess."""
        return FPS

    @property
    def times_s(self) -> np.ndarray:
        """float64 [frames]: when each frame is shown, in seconds from the first one."""
        return np.arange(self.frames) / FPS

    @property
    def codec(self) -> str:
        """FFmpeg's name of the pictures' format."""
        return _CODECS[self._names[0].rpartition(".")[2].lower()]

    def read(
        self, indices: Sequence[np.ndarray], *, boxes: Boxes | None = None
    ) -> list[np.ndarray]:
        """Return one uint8 array [T, height, width, 3] per clip; see `clips.decode.Reader`."""
        plan = Plan(indices, boxes, frames=self.frames)
        for index, frame in self.wanted_frames(plan.wanted):
            plan.store(index, self._pixels.rgb(frame))
        return plan.clips

    def wanted_frames(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield each wanted picture as (index, frame)."""
        for index in wanted:
            name = self._names[index]
            with decode_errors(f"decoding {name}"):
                frame = self._decoded(name)
            yield index, frame
            if time.thread_time() > self._deadline:
                raise DecodeError("timeout", f"over {self._config.seconds:g} s at {name}")

    def close(self) -> None:
        """Do nothing: a decoder lives for one picture."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _decoded(self, name: str) -> VideoFrame:
        try:
            data = storage.read_bytes(storage.join(self._folder, name))
        except storage.StorageError as error:
            if error.kind == "missing":
                raise DecodeError("io", str(error)) from error
            raise
        if not data:
            raise DecodeError("empty", f"{name} has 0 bytes")
        # A decoder for each: FFmpeg's for PNG takes a second picture for a change to the first.
        decoder = CodecContext.create(self.codec, "r")
        assert isinstance(decoder, VideoCodecContext)
        decoder.thread_count = 1
        decoder.options = {"err_detect": "explode", "max_pixels": str(self._config.max_pixels)}
        frames = decoder.decode(Packet(data))
        if not frames or frames[0].is_corrupt:
            raise DecodeError("corrupt", f"{name} is damaged")
        self.pixel_format = frames[0].format.name
        return frames[0]
