"""How the clips of a batch are mixed with each other: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

The choice alone, from a seed; timm's formulas for a whole batch: one share for all its clips, each of which is mixed
with its counterpart from the other end. Mixing itself happens beside the model.
"""

import itertools
import math
from dataclasses import dataclass

from clips.augment.geometry import Box
from clips.draws import below, draw_words, fraction


@dataclass(frozen=True)
class Mix:
    """What is done to a batch."""

    share: float
    """Of a clip that stays, and of its target; the counterpart has the rest."""
    box: Box | None = None
    """CutMix: cut out of the counterpart; None: mixup, all pixels are averaged."""


def draw_mix(
    width: int,
    height: int,
    *,
    seed: int,
    mixup: float,
    cutmix: float,
    probability: float = 1.0,
    switch: float = 0.5,
) -> Mix | None:
    """Return what is done to the batch of this seed, or None.

    Args:
        width: Of the clips.
        height: Of the clips.
        seed: Of the batch.
        mixup: Both parameters of the beta distribution of mixup's share; 0: none.
        cutmix: The same of CutMix's.
        probability: That the batch is mixed at all.
        switch: That CutMix is chosen where both are possible.
    """
    whether, which, right, down = draw_words(seed, stream="mix", count=4)
    if (not mixup and not cutmix) or fraction(whether) >= probability:
        return None
    cuts = bool(cutmix) and (not mixup or fraction(which) < switch)
    share = _beta(cutmix if cuts else mixup, seed=seed)
    if not cuts:
        return Mix(share)
    # A box of the other's share of the area, around any pixel, so that the frame's edge may cut it.
    w, h = int(width * math.sqrt(1 - share)), int(height * math.sqrt(1 - share))
    x, y = below(width, word=right), below(height, word=down)
    left, top = max(0, x - w // 2), max(0, y - h // 2)
    box = Box(left, top, min(width, x + (w + 1) // 2) - left, min(height, y + (h + 1) // 2) - top)
    return Mix(1 - box.width * box.height / (width * height), box)


def _beta(both: float, *, seed: int) -> float:
    """A number of the beta distribution with equal parameters, by Joehnk's (1964) rejection; quick up to 2 or so."""
    for tries in itertools.count(1):
        first, second = draw_words(seed, stream="beta", count=2 * tries)[-2:]
        x, y = fraction(first) ** (1 / both), fraction(second) ** (1 / both)
        if 0 < x + y <= 1:
            return x / (x + y)
    raise AssertionError
