"""The authors' decoder as a backend: for comparing with their results, not for speed.

All wanted frames of a video are fetched with one sorted request (separate requests cost twice as
much), whole, and cropped afterwards. decord turns rotated videos itself.

Known faults of decord 0.6.0 (decode.md): it knows no AV1; frames of open-GOP H.264 are wrong; the
end of long edit lists is padded with repeated frames; a missing first keyframe makes it loop for
ever. `fault_tol` turns the last two into an error; where it does not, only ending the process
helps. So decode with it what `jobs/prepare.py` accepted. There are wheels for x86-64 Linux only.
"""

import io
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from clips import storage
from clips.decode import Boxes, DecodeConfig, DecodeError
from clips.decode.plan import Plan
from clips.decode.source import openable


class DecordReader:
    """A video opened with decord; see `clips.decode.Reader`."""

    def __init__(
        self, source: str | bytes, *, config: DecodeConfig, size: int | None = None
    ) -> None:
        """Open `source`.

        Raises:
            ValueError: decord is not installed.
        """
        try:
            import decord
        except ImportError as error:
            raise ValueError(
                "decode.backend is decord, which is not installed (it has wheels for x86-64 Linux "
                "only); use decode.backend=pyav"
            ) from error
        opened = openable(source, size=size)
        if not isinstance(opened, str):
            opened = opened if isinstance(opened, io.BytesIO) else io.BytesIO(opened.read())
        else:
            opened = opened.removeprefix("file:")
        self._name = storage.redact(source) if isinstance(source, str) else f"{len(source)} bytes"
        self._config = config
        try:
            self._reader: Any = decord.VideoReader(
                opened, ctx=decord.cpu(0), num_threads=1, fault_tol=1
            )
        except RuntimeError as error:  # decord's own errors are all of this class
            raise _decode_error(error, self._name) from error
        if len(self._reader) == 0:
            raise DecodeError("empty", f"the video stream holds no frames ({self._name})")

    @property
    def frames(self) -> int:
        """Number of frames that decord would show."""
        return len(self._reader)

    @property
    def fps(self) -> float:
        """Frames per second, on average."""
        return float(self._reader.get_avg_fps())

    @property
    def times_s(self) -> np.ndarray:
        """float64 [frames]: when each frame is shown, in seconds from the first one."""
        starts = np.asarray(self._reader.get_frame_timestamp(range(self.frames)))[:, 0]
        return (starts - starts[0]).astype(np.float64)

    def read(
        self, indices: Sequence[np.ndarray], *, boxes: Boxes | None = None
    ) -> list[np.ndarray]:
        """Return one uint8 array [T, height, width, 3] per clip; see `clips.decode.Reader`."""
        plan = Plan(indices, boxes, frames=self.frames)
        try:
            pictures = self._reader.get_batch(plan.wanted).asnumpy()
        except RuntimeError as error:
            raise _decode_error(error, self._name) from error
        height, width = pictures.shape[1:3]
        if height * width > self._config.max_pixels:
            raise DecodeError(
                "too_large",
                f"frames of {width}x{height}; decode.max_pixels is {self._config.max_pixels}",
            )
        for index, picture in zip(plan.wanted, pictures, strict=True):
            plan.store(index, picture)
        return plan.clips

    def close(self) -> None:
        """Release the decoder: decord does so when the reader is deleted."""
        self._reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _decode_error(error: RuntimeError, name: str) -> DecodeError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    first = lines[0].strip()[:200] if lines else ""
    kind = "no_video" if "cannot find video stream" in first else "corrupt"
    return DecodeError(kind, f"{type(error).__name__}: {first} ({name})")
