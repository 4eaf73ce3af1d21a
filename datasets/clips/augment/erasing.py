"""Where a training clip is erased (Zhong et al. 2020), as a box chosen from the clip's seed.

The authors fill one box, the same in all frames, with noise of its own for every pixel, in the normalised clip; so the
filling belongs beside the model, on its device, and only the choice is made here.
"""

import math

from clips.augment.geometry import Box
from clips.draws import below, between, draw_words, fraction

AREA = (0.02, 1 / 3)
"""Least and largest share of the frame."""
ASPECT = (0.3, 1 / 0.3)
"""Least and largest height over width."""
_TRIES = 10


def erase_box(width: int, height: int, *, seed: int, probability: float) -> Box | None:
    """Return the box to erase in the clip of this seed, or None.

    Share of the area uniform, ratio of the sides uniform in its logarithm; the first of ten tries that is smaller than
    the frame counts.

    Args:
        width: Of the clip.
        height: Of the clip.
        seed: Of the clip.
        probability: That it is erased at all.
    """
    whether, *words = draw_words(seed, stream="erase", count=1 + 4 * _TRIES)
    if fraction(whether) >= probability:
        return None
    low, high = (math.log(limit) for limit in ASPECT)
    for start in range(0, len(words), 4):
        how_large, ratio, right, down = words[start : start + 4]
        wanted = between(*AREA, word=how_large) * width * height
        shape = math.exp(between(low, high, word=ratio))
        h, w = round(math.sqrt(wanted * shape)), round(math.sqrt(wanted / shape))
        if w < width and h < height:
            return Box(below(width - w + 1, word=right), below(height - h + 1, word=down), w, h)
    return None
