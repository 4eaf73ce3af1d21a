"""What a fault cost a run: seconds to work it had not done before, in parts, and steps done twice.

Only the group that replaces the lost one counts: workers that die slowly, or beside a checkpoint that is being written,
still make steps, and those are no recovery.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tubelet.run_directory import Attempt

PARTS = ("detection", "group start", "train fn", "restore", "first step", "steps again")
"""Each until: the failure is known; a group is asked for; its workers run; have loaded; made a step; made a new one."""


@dataclass(frozen=True)
class Recovery:
    """From a fault to the first step that the run had not made before."""

    seconds: float
    next_step_s: float
    """To the first step at all of the new group."""
    repeated: int
    pause_s: float
    """Between the last step of the old group and the first of the new: what a resize costs that was announced."""


def recovery(
    steps: Iterable[tuple[float, int]], new: Sequence[Attempt], *, fault_s: float
) -> Recovery | None:
    """Measure it; None while the new group has not come so far.

    Args:
        steps: time and number of every optimizer step, by whichever worker.
        new: attempts begun since the fault, oldest first.
        fault_s: when it struck.
    """
    if not new:
        return None
    begun = [attempt.started_unix_s for attempt in new]
    made = sorted(steps)
    before = [(at, step) for at, step in made if at < begun[0]]
    reached = max((step for _, step in before), default=-1)
    after = [(at, step) for at, step in made if at >= begun[0]]
    beyond = [at for at, step in after if step > reached]
    if not beyond:
        return None
    again = {step for at, step in after if at <= beyond[0] and step <= reached}
    last = before[-1][0] if before else fault_s
    return Recovery(beyond[0] - fault_s, after[0][0] - fault_s, len(again), after[0][0] - last)


def parts(
    new: Sequence[Attempt],
    events: Iterable[dict[str, Any]],
    starts: Iterable[tuple[float, str]],
    *,
    fault_s: float,
    found: Recovery,
) -> dict[str, float]:
    """Where the seconds of a recovery went; a part that left no trace is left out."""
    failures = [e["unix_s"] for e in events if e["event"] == "failure" and e["unix_s"] >= fault_s]
    asked = new[-1].started_unix_s
    loads = [at for at, phase in starts if phase == "load" and at >= asked]
    loaded = [at for at, phase in starts if phase == "data" and at >= asked]
    marks = [
        fault_s,
        min(failures, default=None),
        asked,
        max(loads, default=None),
        max(loaded, default=None),
        fault_s + found.next_step_s,
        fault_s + found.seconds,
    ]
    return {
        name: round(end - begin, 2)
        for name, begin, end in zip(PARTS, marks[:-1], marks[1:], strict=True)
        if begin is not None and end is not None
    }
