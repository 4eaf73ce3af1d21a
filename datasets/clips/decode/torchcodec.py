"""PyTorch's decoder as a backend: for comparison, and exact where it is not refused.

An extra, `pip install tubelet[torchcodec]`, that loads FFmpeg's libraries of the system (version 4
to 9) and fits one version of torch. It imports torch: every decoding process then does, which costs
4 s at its start, 0.7 GB of memory, and 3.7 GB of the address space that `decode.memory_gb` bounds:
set that to 8.

Its index is exact (`seek_mode="exact"`, for which the whole file is read at opening), FFmpeg runs in
one thread, only the frames wanted are converted, and they are cropped here.

Refused, because torchcodec 0.17 is known to be wrong there (decode.md): containers whose frames have
no times (AVI: wrong order), MPEG-TS (the first frames are lost, the last ones never come), and H.264
with keyframes that later frames look behind (the last frames of a group never come), and videos
whose first frame is no keyframe.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clips.decode import Boxes, DecodeConfig, DecodeError
from clips.decode.guard import CheckedReader, check, check_count, common_refusal
from clips.decode.plan import Plan


class TorchcodecReader(CheckedReader):
    """A video opened with torchcodec; see `clips.decode.Reader`."""

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
            ValueError: torchcodec or FFmpeg's libraries are not installed.
        """
        decoder_class = _decoder_class()
        self._checked = check(
            source,
            config=config,
            size=size,
            offset=offset,
            backend="torchcodec",
            refusal=common_refusal,
        )
        try:
            self._decoder = decoder_class(
                self._checked.source,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                seek_mode="exact",
            )
        except (RuntimeError, ValueError) as error:
            raise _decode_error(error) from error
        check_count(self._decoder, self._checked, backend="torchcodec")

    def read(
        self, indices: Sequence[np.ndarray], *, boxes: Boxes | None = None
    ) -> list[np.ndarray]:
        """Return one uint8 array [T, height, width, 3] per clip; see `clips.decode.Reader`."""
        plan = Plan(indices, boxes, frames=self.frames)
        for index in plan.wanted:
            try:
                picture = self._decoder.get_frame_at(index).data
            except RuntimeError as error:
                raise _decode_error(error) from error
            plan.store(index, picture.numpy())
        return plan.clips


def _decoder_class() -> Any:
    try:
        from torchcodec.decoders import VideoDecoder
    except ModuleNotFoundError as error:
        raise ValueError(
            "decode.backend is torchcodec, which is not installed: pip install 'tubelet[torchcodec]', "
            "or use decode.backend=pyav"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise _not_loadable(error) from error
    return VideoDecoder


def _not_loadable(error: Exception) -> ValueError:
    return ValueError(
        f"decode.backend is torchcodec, which cannot be loaded ({_first_line(error)}). It needs the shared "
        "libraries of FFmpeg 4 to 9 (Debian: apt install ffmpeg), the version of torch that it was made for, "
        "and decode.memory_gb=8; or use decode.backend=pyav"
    )


def _decode_error(error: Exception) -> DecodeError | ValueError:
    first = _first_line(error)
    if first.startswith("Could not load libtorchcodec"):  # it looks for FFmpeg only now
        return _not_loadable(error)
    kind = "missing_frames" if "no more frames" in first else "corrupt"
    return DecodeError(kind, f"torchcodec: {first}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200]
