"""What comes when in the one stream of a run: units of training, and held-out units after the steps that ask for them.

A run is fed by a single stream from the step it resumes at to its end; item i of it goes to rank ``i % world size``.
Held-out evaluation travels in the same stream, so that its clips are decoded ahead like all others and no second
stream has to be started, drained and resumed. Everything here is arithmetic on steps.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge


@dataclass(frozen=True)
class TrackConfig:
    """Section ``track``: what is looked at while training."""

    evaluate_every: Annotated[int, Ge(1)] = 500
    """Steps between evaluations on held-out clips (one more at the end). Fixed: they are part of the stream."""
    pictures: bool = field(default=True, metadata={"resume": "free"})


@dataclass(frozen=True)
class Item:
    """One entry of the stream."""

    step: int
    """The step it belongs to: for training the step it is part of (from 0), for evaluation the steps done so far."""
    number: int
    """Training: the unit, counted from the start of the run. Held-out: the unit among ``held_out_units``."""
    held_out: bool


@dataclass(frozen=True)
class Timetable:
    """The order of a run's stream; step k trains on ``units_per_step`` items, then evaluates when due."""

    steps: int
    units_per_step: int
    held_out_units: int = 0
    """Units of one evaluation; 0 when there is none."""
    evaluate_every: int = 1
    """Evaluate whenever this many steps are done, and at the end."""

    def evaluates_after(self, done: int) -> bool:
        """Whether an evaluation follows once ``done`` steps are done."""
        if self.held_out_units == 0 or done == 0:
            return False
        return done % self.evaluate_every == 0 or done == self.steps

    def first_item(self, step: int) -> int:
        """Number of the first item of ``step``: how many items lie before it."""
        if self.held_out_units == 0:
            return step * self.units_per_step
        evaluations = step // self.evaluate_every
        if step == self.steps and step % self.evaluate_every:
            evaluations += 1
        return step * self.units_per_step + evaluations * self.held_out_units

    @property
    def items(self) -> int:
        """Items of the whole run."""
        return self.first_item(self.steps)

    def item(self, number: int) -> Item:
        """The item at a place of the stream.

        Raises:
            IndexError: for a place outside the stream.
        """
        if not 0 <= number < self.items:
            raise IndexError(f"item {number} lies outside the stream's {self.items}")
        step = bisect_right(range(self.steps), number, key=self.first_item) - 1
        within = number - self.first_item(step)
        if within < self.units_per_step:
            return Item(step, step * self.units_per_step + within, held_out=False)
        return Item(step + 1, within - self.units_per_step, held_out=True)


def rounds(items: int, world_size: int) -> int:
    """How often every rank must run when ``items`` are dealt out in turn; ranks without an item run a dummy."""
    return -(-items // world_size)
