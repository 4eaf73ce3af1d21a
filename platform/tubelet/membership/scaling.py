"""How many workers a run has: as many as the living nodes hold, grown only when that pays, moved off nodes that leave.

Takes the place of Ray Train's policy, whose view of the cluster is up to a minute old (``nodes``); the requests that
tell an autoscaler how many workers are wanted stay Ray's. Nodes that are dead or leaving are kept out of the new
group's placement by their ids, since Ray would still put workers there.
"""

import logging
import math
import time
from collections.abc import Mapping
from typing import cast

from ray._raylet import RAY_NODE_ID_KEY  # pyright: ignore[reportAttributeAccessIssue]
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.config import ScalingConfig

from tubelet import cluster
from tubelet.elasticity import Node, growth_pays, time_to_hold, workers_that_fit
from tubelet.membership import group, nodes
from tubelet.notices import Notices
from tubelet.timetable import Timetable

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 2.0
_WAIT_S = 0.5


class LiveScaling(ElasticScalingPolicy):
    """Sizes the worker group.

    Args:
        scaling_config: Ray Train's; its smallest and largest number of workers.
        timetable: the run's, for what growth would save.
        decode_cpus: stay free for decoding; 0 when it has nodes of its own.
        labelled: nodes are labelled for decoding, and have no workers.
        notices: what the user should be told.
    """

    def __init__(
        self,
        scaling_config: ScalingConfig,
        *,
        timetable: Timetable,
        decode_cpus: float,
        labelled: bool,
        notices: Notices,
    ) -> None:
        super().__init__(scaling_config)
        self._timetable, self._decode_cpus, self._labelled = timetable, decode_cpus, labelled
        self._notices = notices
        self._looked_at = -math.inf
        self._waiting_for: int | None = None
        self._held_for: set[str] = set()

    # --- no workers: a start, or after a failure -----------------------------------------------

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start with what fits, or wait and say so."""
        self._maybe_send_resource_request()
        fit = self._fit(self._look(ask=True))
        least = self.scaling_config.min_workers
        if fit < least:
            if fit != self._waiting_for:
                self._notices.say(
                    f"waiting: the cluster has room for {fit} workers beside decoding, "
                    f"elastic.min_workers is {least}; training goes on by itself once they fit"
                )
                group.current().record("waiting", room=fit, min_workers=least)
            self._waiting_for = fit
            time.sleep(_WAIT_S)  # the loop that calls this does not rest (65 % of a core, measured)
            return NoopDecision()
        self._waiting_for = None
        return self._get_resize_decision(fit)

    def on_controller_start_worker_group(
        self, *, scaling_config: ScalingConfig, num_workers: int
    ) -> dict[str, str] | None:
        """Keep workers off nodes that are dead or leaving, and off those that decode."""
        label, value = cluster.DATA_NODES
        selector = {label: f"!{value}"} if self._labelled else {}
        avoid = [node.id for node in self._look(ask=True) if not node.usable]
        if avoid:
            selector[RAY_NODE_ID_KEY] = f"!in({','.join(avoid)})"
        return selector or None

    # --- workers run ---------------------------------------------------------------------------

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Leave nodes that will be taken away; grow where it pays."""
        self._maybe_send_resource_request()
        if time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return NoopDecision()
        now = worker_group_state.num_workers
        living = self._look(ask=False)
        fit = self._fit(living)
        here = group.current().node_ids
        leaving = [node for node in living if node.id in here and node.leaves_at_s is not None]
        if leaving:
            return self._leave(leaving, fit=fit)
        if fit > now and self._pays(now, fit):
            return self._get_resize_decision(fit)
        return NoopDecision()

    def _leave(self, leaving: list[Node], *, fit: int) -> ScalingDecision:
        workers, unix_s = group.current(), time.time()
        soonest = min(node.leaves_at_s or math.inf for node in leaving)
        names = ", ".join(sorted({node.name for node in leaving}))
        when = f"in {soonest - unix_s:.0f} s" if soonest < math.inf else "soon"
        if not {node.id for node in leaving} <= self._held_for:
            workers.record("notice", nodes=[n.id for n in leaving], leaves_at_s=soonest)
        if fit >= self.scaling_config.min_workers:
            self._notices.say(f"node {names} will be taken away {when}")
            self._held_for |= {node.id for node in leaving}
            return self._get_resize_decision(fit)
        if time_to_hold(soonest, now_s=unix_s, save_s=workers.save_s):
            if not {node.id for node in leaving} <= self._held_for:
                self._notices.say(
                    f"node {names} will be taken away {when} and no other has room: saving at step {workers.step}"
                )
                workers.ask_to_hold()
        else:
            return NoopDecision()
        self._held_for |= {node.id for node in leaving}
        return NoopDecision()

    def _pays(self, now: int, then: int) -> bool:
        workers = group.current()
        pace = workers.pace()
        return pace is not None and growth_pays(
            now,
            then,
            pace=pace,
            units_per_step=self._timetable.units_per_step,
            steps_left=self._timetable.steps - workers.step,
        )

    def _look(self, *, ask: bool) -> list[Node]:
        self._looked_at = time.monotonic()
        return nodes.look(ours=group.current().placement_groups, labelled=self._labelled, ask=ask)

    def _fit(self, living: list[Node]) -> int:
        return workers_that_fit(
            living,
            cast(Mapping[str, float], self.scaling_config._resources_per_worker_not_none),
            largest=self.scaling_config.max_workers,
            decode_cpus=self._decode_cpus,
        )
