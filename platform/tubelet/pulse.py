"""Where this worker is: step and phase, noted as it goes, read from another thread of the same process.

Training runs in one thread of a worker, and Ray answers calls in another; what is noted here is how the controller
learns that a worker lives, which step it is at, and since when it has not moved (``membership``). A beat costs half a
microsecond.
"""

import time
from dataclasses import dataclass, replace
from typing import Literal

Phase = Literal[
    "start", "load", "data", "forward", "reduce", "update", "evaluate", "stage", "write", "commit",
    "report", "export", "hold",
]  # fmt: skip
"""``stage``: copying what a checkpoint holds; ``write``, ``commit``: storing it; ``hold``: waiting to be replaced."""


@dataclass(frozen=True)
class Pulse:
    """A worker's newest beat."""

    step: int
    """Optimizer steps done."""
    phase: Phase
    beats: int
    """So far; two readings that agree in it are of a worker that did not move between them."""
    at_s: float
    """Clock of ``time.monotonic`` on that worker."""
    beside: tuple[int, Phase] | None = None
    """Step and phase of the checkpoint that was last being stored in the background."""


def beat(step: int, phase: Phase) -> None:
    """Note that this worker now begins a phase of the step after ``step`` steps done."""
    global _newest
    _newest = Pulse(step, phase, _newest.beats + 1, time.monotonic())


def background(step: int, phase: Phase) -> None:
    """Note a phase of what goes on beside training: a checkpoint of ``step`` being written or committed.

    It does not count as a beat: training that stands still is stuck, whatever goes on beside it.
    """
    global _beside
    _beside = (step, phase)


def read() -> Pulse:
    """The newest beat of this process."""
    return replace(_newest, beside=_beside)


_beside: tuple[int, Phase] | None = None
_newest = Pulse(0, "start", 0, time.monotonic())
