"""The decisions of an elastic run, as functions of what is known: how many workers, whether to grow, when to give up.

No Ray here; ``membership`` asks these functions and acts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tubelet.timetable import rounds

_HORIZON_S = 600.0
"""How far growth looks ahead: nodes that come and go may have gone again by then."""
_RESTARTS = 2.0
"""Growth must save more than so many restarts cost."""
SAME_STEP = 3
"""Failures at one step after which trying again is pointless."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster as the runner sees it."""

    id: str
    name: str
    """For people: its address."""
    resources: Mapping[str, float]
    """What the run may use there: all it has, less what other placement groups hold."""
    answers: bool = True
    """Whether its raylet takes connections; one that has died does not, long before Ray says so."""
    leaves_at_s: float | None = None
    """Being drained: unix time at which it is taken away; infinity when no deadline was given."""

    @property
    def usable(self) -> bool:
        """Whether a worker may be started there."""
        return self.answers and self.leaves_at_s is None


def workers_that_fit(
    nodes: Iterable[Node],
    per_worker: Mapping[str, float],
    *,
    largest: int,
    decode_cpus: float,
) -> int:
    """How many workers the usable nodes hold beside decoding; ``largest`` at most.

    Args:
        nodes: of the cluster, those that only decode left out.
        per_worker: resources of a worker.
        largest: the recipe's bound.
        decode_cpus: must stay free; 0 when decoding has nodes of its own.
    """
    usable = [node.resources for node in nodes if node.usable]
    fit = 0
    for resources in usable:
        fit += min(
            math.floor(resources.get(name, 0.0) / amount + 1e-9)
            for name, amount in per_worker.items()
            if amount > 0
        )
    cpus = per_worker.get("CPU", 0.0)
    if cpus > 0:
        spare = sum(resources.get("CPU", 0.0) for resources in usable) - decode_cpus
        fit = min(fit, math.floor(spare / cpus + 1e-9))
    return max(0, min(fit, largest))


@dataclass(frozen=True)
class Pace:
    """How a run advances, as measured."""

    step_s: float
    """An optimizer step with the present workers."""
    restart_s: float
    """From the last step of a worker group to the first of the next."""
    data_wait: float = 0.0
    """Share of the time in which workers wait for data: more workers would not shorten it."""


def growth_pays(now: int, then: int, *, pace: Pace, units_per_step: int, steps_left: int) -> bool:
    """Whether growing saves more than two restarts, over the rest of the run or ten minutes if those are less.

    Units are not split: 16 units take four workers four rounds, and so do five workers.

    Args:
        now: workers.
        then: workers after growing.
        pace: as measured with ``now`` workers.
        units_per_step: of the run.
        steps_left: to the end of the run.
    """
    ahead_s = min(_HORIZON_S, steps_left * pace.step_s)
    shorter = 1.0 - rounds(units_per_step, then) / rounds(units_per_step, now)
    return ahead_s * (1.0 - pace.data_wait) * shorter > _RESTARTS * pace.restart_s


@dataclass(frozen=True)
class Failure:
    """A worker group's end that was nobody's wish."""

    step: int
    """The furthest that a worker was known to be."""
    message: str
    charged: bool
    """False where the cluster took a node away, or a damaged checkpoint was set aside: none of these is too many."""
    slack: int = 1
    """Steps by which it may have been further."""


def reason_to_give_up(failures: Sequence[Failure], *, most: int) -> str | None:
    """Why a run should end instead of starting its workers again; None to go on.

    Args:
        failures: so far, oldest first.
        most: charged failures that are allowed.
    """
    charged = [f for f in failures if f.charged]
    last = charged[-SAME_STEP:]
    if len(last) == SAME_STEP and max(f.step for f in last) <= min(f.step + f.slack for f in last):
        return f"step {last[-1].step + 1} failed {SAME_STEP} times: {last[-1].message}"
    if len(charged) > most:
        return (
            f"workers failed {len(charged)} times, more than elastic.max_failures ({most}) allows: "
            f"{last[-1].message}"
        )
    return None


def time_to_hold(leaves_at_s: float, *, now_s: float, save_s: float) -> bool:
    """Whether workers that cannot move elsewhere must save now, before their node is taken away.

    Args:
        leaves_at_s: unix time of that.
        now_s: unix time.
        save_s: what saving takes, as measured.
    """
    return leaves_at_s - now_s < _HOLD_MARGIN_S + _SAVES * save_s


_HOLD_MARGIN_S = 8.0
"""For the request to reach the workers, and the step they are in."""
_SAVES = 3.0
