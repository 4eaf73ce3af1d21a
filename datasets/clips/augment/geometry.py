"""Crops and flips as boxes, chosen before a frame is decoded.

A crop is a box in the pixels of the displayed frame. It depends on the frame's size, the seed, and
nothing else, so it can be chosen before decoding: the decoder then copies only the box, and one
resize brings it to the model's size.

`multi_scale_box` is the authors' training crop (GroupMultiScaleCrop of TSN, as used by VideoMAE):
the short side is multiplied by one of the scales, separately for width and height, which may be at
most `max_distort` steps apart in the list; lengths within 3 px of the model's size snap to it, so
that no resize is needed; and the box lies at one of 13 fixed places of a 5 x 5 grid. Where the
snapped length would leave the frame it is cut to fit (the authors' code pads with black there).
"""

from collections.abc import Sequence
from typing import NamedTuple

from clips.draws import below, draw_words

MULTI_SCALES = (1.0, 0.875, 0.75, 0.66)
"""The authors' scales of the short side."""

# Quarters of the free space, (x, y): corners and centre, middles of the sides, inner square.
_PLACES = (
    *((0, 0), (4, 0), (0, 4), (4, 4), (2, 2)),
    *((0, 2), (4, 2), (2, 4), (2, 0)),
    *((1, 1), (3, 1), (1, 3), (3, 3)),
)
_SNAP_PX = 3


class Box(NamedTuple):
    """A crop in pixels of the displayed frame; (x, y) is its upper left corner."""

    x: int
    y: int
    width: int
    height: int


def multi_scale_box(
    width: int,
    height: int,
    *,
    size: int,
    seed: int,
    scales: Sequence[float] = MULTI_SCALES,
    max_distort: int = 1,
) -> Box:
    """Return the training crop of a `width` x `height` frame for a model of input `size`."""
    pair_word, place_word = draw_words(seed, stream="crop", count=2)
    lengths = [_snapped(int(min(width, height) * scale), size) for scale in scales]
    pairs = [
        (w, h)
        for i, h in enumerate(lengths)
        for j, w in enumerate(lengths)
        if abs(i - j) <= max_distort
    ]
    w, h = pairs[below(len(pairs), word=pair_word)]
    w, h = min(max(w, 1), width), min(max(h, 1), height)
    right, down = _PLACES[below(len(_PLACES), word=place_word)]
    return Box(right * ((width - w) // 4), down * ((height - h) // 4), w, h)


def centre_box(width: int, height: int) -> Box:
    """Return the largest square in the middle of the frame."""
    return even_boxes(width, height, crops=1)[0]


def even_boxes(width: int, height: int, *, crops: int) -> list[Box]:
    """Return `crops` squares of the short side, spread evenly along the long one.

    A single one lies in the middle.
    """
    assert crops >= 1, crops
    side, slack = min(width, height), max(width, height) - min(width, height)
    offsets = [slack // 2] if crops == 1 else [k * slack // (crops - 1) for k in range(crops)]
    return [Box(o, 0, side, side) if width >= height else Box(0, o, side, side) for o in offsets]


def flip_draw(*, seed: int) -> bool:
    """Return whether the clip of this seed is mirrored: true for half of all seeds."""
    (word,) = draw_words(seed, stream="flip", count=1)
    return below(2, word=word) == 1


def _snapped(length: int, size: int) -> int:
    return size if abs(length - size) < _SNAP_PX else length
