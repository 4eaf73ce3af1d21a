"""Where each wanted frame of a video goes: it may serve several clips, each with its crop.

Used by every backend. Shapes: T frames of a clip, H W of the displayed frame, C = 3 (RGB).
"""

from collections.abc import Sequence

import numpy as np

from clips.augment.geometry import Box
from clips.decode import Boxes, DecodeError


class Plan:
    """The frames that some clips want, and the clips as they fill.

    `wanted` are the frames, ascending, each once; `clips` holds one uint8 array [T, height, width,
    3] per clip once the first frame has come.
    """

    def __init__(self, indices: Sequence[np.ndarray], boxes: Boxes | None, *, frames: int) -> None:
        """Plan clips of `indices` (one array per clip) in a video of `frames` frames."""
        self._indices = [[int(i) for i in clip] for clip in indices]
        self._places: dict[int, list[tuple[int, int]]] = {}
        for clip, wanted in enumerate(self._indices):
            for slot, index in enumerate(wanted):
                assert 0 <= index < frames, (index, frames)
                self._places.setdefault(index, []).append((clip, slot))
        self.wanted = sorted(self._places)
        self.clips: list[np.ndarray] = []
        self._choose = boxes
        self._boxes: list[Box] = []
        self._size: tuple[int, int] | None = None
        self._stored: set[int] = set()

    def store(self, index: int, frame_HWC: np.ndarray) -> None:
        """Copy the crops of a decoded frame to all places that want it.

        Raises:
            DecodeError: The frame's size differs from that of the first one.
        """
        height, width = frame_HWC.shape[:2]
        if self._size is None:
            self._size = width, height
            self._allocate(width, height)
        if self._size != (width, height):
            first = "x".join(map(str, self._size))
            raise DecodeError(
                "size_change", f"frame {index} is {width}x{height}, earlier ones are {first}"
            )
        for clip, slot in self._places[index]:
            x, y, box_width, box_height = self._boxes[clip]
            self.clips[clip][slot] = frame_HWC[y : y + box_height, x : x + box_width]
        self._stored.add(index)

    def missing(self) -> list[int]:
        """Return the wanted frames that were never stored."""
        return [index for index in self.wanted if index not in self._stored]

    def _allocate(self, width: int, height: int) -> None:
        whole = [Box(0, 0, width, height)] * len(self._indices)
        self._boxes = list(self._choose(width, height)) if self._choose else whole
        assert len(self._boxes) == len(self._indices), "one box per clip"
        self.clips = [
            np.empty((len(wanted), box.height, box.width, 3), np.uint8)
            for wanted, box in zip(self._indices, self._boxes, strict=True)
        ]
