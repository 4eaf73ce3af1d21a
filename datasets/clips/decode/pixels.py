"""From a decoded frame to the picture on the screen. Shapes: H W of the displayed picture, C = 3 (RGB)."""

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from clips.decode import DecodeConfig
from clips.decode.opening import check_pixels


class Pixels:
    """Converts the frames of one video."""

    def __init__(self, config: DecodeConfig) -> None:
        """Start; `config` limits the size of a frame."""
        self._config = config
        self._reformatter = VideoReformatter()

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """Return the frame as displayed, uint8 [H, W, 3]: a view, valid until the next call.

        The whole frame is converted: copying the crop's planes first costs what it saves (measured
        at 340x256 and 1080p). Colour is not interpolated between its samples: FFmpeg's conversion of
        8 bits does not either, and the other backends neither for 10.
        """
        check_pixels(frame.width, frame.height, self._config)
        rgb = self._reformatter.reformat(
            frame, format="rgb24", interpolation=Interpolation.POINT, threads=1
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        picture_HWC = rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)
        return np.rot90(picture_HWC, (frame.rotation // 90) % 4)
