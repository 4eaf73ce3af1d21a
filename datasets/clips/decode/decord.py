"""The authors' decoder as a backend: for comparing with their results, not for speed.

All wanted frames of a video are fetched with one sorted request (separate requests cost twice as
much), whole, and cropped afterwards. decord turns rotated videos itself.

Refused, because decord 0.6.0 is known to be wrong there (decode.md): AV1, containers whose frames
have no times (AVI, raw streams), MPEG-TS, edit lists, a missing first keyframe (it would loop for
ever), and groups that are not closed, since it counts keyframes in the order of the file and frames
in that of the screen. A damaged file can still make it loop in native code; `fault_tol` turns most
of that into errors, and where it does not, only ending the process helps. There are wheels for
x86-64 Linux only.
"""

import io
from collections.abc import Sequence

import numpy as np

from clips import storage
from clips.decode import Boxes, DecodeConfig, DecodeError
from clips.decode.guard import (
    CheckedReader,
    Structure,
    check,
    check_count,
    common_refusal,
    refused,
)
from clips.decode.plan import Plan


class DecordReader(CheckedReader):
    """A video opened with decord; see `clips.decode.Reader`."""

    def __init__(
        self,
        source: str | bytes,
        *,
        config: DecodeConfig,
        size: int | None = None,
        offset: int | None = None,
    ) -> None:
        """Open `source`; see `clips.decode.open_video`.

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
        self._errors = (RuntimeError, decord.DECORDError, decord.DECORDLimitReachedError)
        self._name = storage.redact(source) if isinstance(source, str) else f"{len(source)} bytes"
        self._checked = check(
            source, config=config, size=size, offset=offset, backend="decord", refusal=_refusal
        )
        held = self._checked.source
        try:
            self._decoder = decord.VideoReader(
                io.BytesIO(held) if isinstance(held, bytes) else held,
                ctx=decord.cpu(0),
                num_threads=1,
                fault_tol=1,
            )
        except self._errors as error:
            raise _decode_error(error, self._name) from error
        check_count(self._decoder, self._checked, backend="decord")

    def read(
        self, indices: Sequence[np.ndarray], *, boxes: Boxes | None = None
    ) -> list[np.ndarray]:
        """Return one uint8 array [T, height, width, 3] per clip; see `clips.decode.Reader`."""
        plan = Plan(indices, boxes, frames=self.frames)
        try:
            pictures = self._decoder.get_batch(plan.wanted).asnumpy()
        except self._errors as error:
            raise _decode_error(error, self._name) from error
        for index, picture in zip(plan.wanted, pictures, strict=True):
            plan.store(index, picture)
        return plan.clips


def _refusal(structure: Structure) -> str | None:
    if structure.codec == "av1":
        return "it knows no AV1"
    reason = common_refusal(structure)
    if reason is None and structure.hidden:
        return "it shows frames that the file's edit list hides"
    if reason is None and structure.open_groups:
        return "frames shown before a keyframe are stored behind it (open groups)"
    return reason


def _decode_error(error: Exception, name: str) -> DecodeError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    first = lines[0].strip()[:200] if lines else ""
    if "DECORDArrayCopyFromTo" in first:  # its own rows are padded, those of its result are not
        return refused("decord", "it cannot turn pictures of this size")
    return DecodeError("corrupt", f"{type(error).__name__}: {first} ({name})")
