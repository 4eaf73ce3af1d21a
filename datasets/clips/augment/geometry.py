"""Crops and flips as boxes, chosen before a frame is decoded.

A crop is a box in the pixels of the displayed frame. It depends on the frame's size, the seed, and
nothing else, so it can be chosen before decoding: the decoder then copies only the box, and one
resize brings it to the model's size.

`multi_scale_box` is the authors' training crop (GroupMultiScaleCrop of TSN, as used by VideoMAE):
the short side is multiplied by one of the scales, separately for width and height, which may be at
most `max_distort` steps apart in the list; lengths within 3 px of the model's size snap to it, so
that no resize is needed; and the box lies at one of 13 fixed places of a 5 x 5 grid. Where the
snapped length would leave the frame it is cut to fit (the authors' code pads with black there).

`random_resized_box` is the crop of fine-tuning (Inception's): a share of the area, then a ratio of the sides, uniform
in its logarithm, ten tries.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from clips.draws import below, between, draw_words

MULTI_SCALES = (1.0, 0.875, 0.75, 0.66)
"""The authors' scales of the short side."""

# Quarters of the free space, (x, y): corners and centre, middles of the sides, inner square.
_PLACES = (
    *((0, 0), (4, 0), (0, 4), (4, 4), (2, 2)),
    *((0, 2), (4, 2), (2, 4), (2, 0)),
    *((1, 1), (3, 1), (1, 3), (3, 3)),
)
_SNAP_PX = 3
_TRIES = 10


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


def random_resized_box(
    width: int,
    height: int,
    *,
    seed: int,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Return the fine-tuning crop of a `width` x `height` frame.

    Args:
        width: Of the frame.
        height: Of the frame.
        seed: Of the clip.
        area: Least and largest share of the frame's area.
        aspect: Least and largest width over height.

    Returns:
        The first of ten tries that fits in the frame, or else the largest box in the middle that has an allowed ratio.
    """
    words = draw_words(seed, stream="crop", count=4 * _TRIES)
    low, high = (math.log(limit) for limit in aspect)
    for start in range(0, len(words), 4):
        how_large, ratio, right, down = words[start : start + 4]
        wanted = between(*area, word=how_large) * width * height
        shape = math.exp(between(low, high, word=ratio))
        w, h = round(math.sqrt(wanted * shape)), round(math.sqrt(wanted / shape))
        if 0 < w <= width and 0 < h <= height:
            x, y = below(width - w + 1, word=right), below(height - h + 1, word=down)
            return Box(x, y, w, h)
    shape = min(max(width / height, aspect[0]), aspect[1])
    w, h = min(width, round(height * shape)), min(height, round(width / shape))
    return Box((width - w) // 2, (height - h) // 2, w, h)


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
