"""Learning rate and weight decay as pure functions of the step.

Nothing here has state: a run that resumes asks for the value of its step and goes on. The warm-up rises from 0 to the
peak over ``warmup_steps`` values, both ends included; the cosine starts at the peak and approaches the floor without
reaching it, as the authors' scheduler does (its step count is the denominator).
"""

import math
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge


@dataclass(frozen=True)
class ScheduleConfig:
    """Recipe section ``schedule``: how long a run lasts."""

    epochs: Annotated[int, Ge(1)] = 800
    """Passes over the training rows."""
    warmup_epochs: Annotated[float, Ge(0)] = 40
    """Epochs in which the learning rate rises from 0 to its peak."""
    patience: Annotated[int, Ge(1)] | None = field(default=None, metadata={"resume": "free"})
    """End the run after so many evaluations in a row that were no better than the best before them; null: never."""


def effective_lr(lr: float, batch: int) -> float:
    """The scaling rule: the rate per 256 visits times the visits of a step."""
    return lr * batch / 256


def cosine(step: int, *, peak: float, floor: float, steps: int, warmup_steps: int = 0) -> float:
    """Value at ``step`` of a linear warm-up from 0 followed by half a cosine.

    Args:
        step: the step about to be made, from 0.
        peak: value at the end of the warm-up.
        floor: value that the cosine approaches.
        steps: steps of the whole schedule.
        warmup_steps: how many of them warm up.
    """
    if step < warmup_steps:
        return peak * step / max(1, warmup_steps - 1)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * progress))
