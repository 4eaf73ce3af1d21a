"""How good a model has been on held-out clips, and whether it still gets better: this travels with checkpoints."""

import math
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Best:
    """The least held-out loss of a run, or of one of its draws."""

    loss: float | None = None
    """None before any."""
    step: int = 0
    """Steps done when it was measured."""
    since: int = 0
    """Evaluations since then, none of them better."""

    def after(self, step: int, loss: float) -> Self:
        """The same once the evaluation after ``step`` steps gave ``loss``; one that is not a number is no better."""
        if math.isfinite(loss) and (self.loss is None or loss < self.loss):
            return type(self)(loss, step)
        return type(self)(self.loss, self.step, self.since + 1)

    def exhausted(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row were no better."""
        return patience is not None and self.since >= patience
