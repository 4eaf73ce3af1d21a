"""The running worker group, from inside Ray Train's controller: pulses, holding, stacks of the stuck.

One object of the controller's process (``current``), which the scaling and the failure policy ask too. While a hook
runs the controller does nothing else, so nothing here waits long, but for ``hold``, whose purpose that is.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ResizingState, SchedulingState

from clips import storage
from tubelet import holding, pulse
from tubelet.elasticity import Pace
from tubelet.membership import nodes
from tubelet.membership.guard import harmless
from tubelet.notices import Notices
from tubelet.pulse import Pulse
from tubelet.run_directory import RunDirectory

_log = logging.getLogger(__name__)

_ASK_EVERY_S = 1.0
_ANSWER_S = 5.0
_GUESSED_RESTART_S = 30.0
_GUESSED_SAVE_S = 5.0
_HOLD_S = 600.0


@dataclass
class _Member:
    """One worker, as last heard of."""

    worker: Any
    """Ray's handle."""
    pulse: Pulse
    moved_at: float
    """Our clock when its pulse last changed."""
    asked: Any = None
    """The question that is out."""
    asked_at: float = 0.0
    answered: float = 0.0
    """When the question was asked that it answered last."""


class Group(ControllerCallback, WorkerGroupCallback):
    """What is known of the workers.

    Args:
        run: for stacks and events.
        notices: what the user should be told.
        hang_s: seconds without a beat after which a worker counts as stuck.
    """

    def __init__(self, run: RunDirectory, notices: Notices, *, hang_s: float) -> None:
        self._run, self._notices, self._hang_s = run, notices, hang_s
        self._members: list[_Member] = []
        self._ray_group: Any = None
        self._resizing = False
        self.placement_groups: set[str] = set()
        """Ids of all that this run has had."""
        self.stuck: dict[int, str] = {}
        """Workers that were ended since they did not move, and where they were."""
        self.data_wait = 0.0
        self.save_s = _GUESSED_SAVE_S
        self._restart_s = _GUESSED_RESTART_S
        self._stopped_at: float | None = None
        self._first: tuple[int, float] | None = None  # step and our clock at the group's first step
        self._start_step = 0

    # --- called by Ray Train -------------------------------------------------------------------

    def after_controller_start(self, train_run_context: Any) -> None:
        """The controller's process begins."""
        global _current
        _current = self

    @harmless
    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Remember whether a healthy group is about to be resized."""
        self._resizing = isinstance(previous_state, ResizingState) and isinstance(
            current_state, SchedulingState
        )

    @harmless
    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Have a healthy group save and hold before it is replaced, so that no step is repeated."""
        if self._resizing and self._members:
            now, then = len(self._members), resize_decision.num_workers
            self._notices.say(f"going from {now} to {then} workers at step {self.step}: saving")
            seconds = self.hold()
            self.record("resize", step=self.step, workers=then, before=now, held_s=seconds)

    @harmless
    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """A group is about to start."""
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()

    @harmless
    def after_worker_group_start(self, worker_group: Any) -> None:
        """Its workers are there."""
        now = time.monotonic()
        self._ray_group = worker_group
        self._members = [
            _Member(w, Pulse(0, "start", 0, 0.0), now) for w in worker_group.get_workers()
        ]
        handle = worker_group.get_worker_group_state().placement_group_handle
        self.placement_groups.add(handle.placement_group.id.hex())
        attempt = self._run.newest_attempt()
        self._start_step, self._first = attempt.step if attempt else 0, None

    @harmless
    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Twice a second while workers run."""
        self._listen()
        stuck = self._stuck()
        if stuck:
            self._end_the_stuck(stuck)

    @harmless
    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """The group's workers are about to go, or are gone."""
        self._members, self._ray_group, self.stuck = [], None, {}

    # --- asked by the policies -----------------------------------------------------------------

    @property
    def step(self) -> int:
        """The furthest that any worker is known to be."""
        return max((m.pulse.step for m in self._members), default=self._start_step)

    @property
    def slack(self) -> int:
        """By how many steps ``step`` may be too small, once the group has ended.

        A survivor knows it to one: none gets past a reduction that a dead worker has no part in. Without one it is
        what the group may have done since it was last heard of, which for a young group's first steps is many.
        """
        if self._stopped_at and any(m.answered >= self._stopped_at for m in self._members):
            return 1
        pace = self.pace()
        return 1 if pace is None else 1 + int(2 * _ASK_EVERY_S / max(pace.step_s, 1e-3))

    @property
    def size(self) -> int:
        """Workers."""
        return len(self._members)

    def record(self, kind: str, **details: Any) -> None:
        """Add an event to the run's, with the newest attempt's number."""
        try:
            attempt = self._run.newest_attempt()
            self._run.record_event(kind, attempt=attempt.number if attempt else 0, **details)
        except Exception:  # an event is not worth a run
            _log.exception("event %s", kind)

    def note(self, points: Sequence[Any]) -> None:
        """Take from what workers report what the policies go by."""
        for point in points:
            self.data_wait = point["metrics"].get("data/wait", self.data_wait)
            self.save_s = point["metrics"].get("sys/save_s", self.save_s)

    def node_of(self, rank: int) -> str:
        """Id of the node that a worker is on."""
        return self._members[rank].worker.metadata.node_id

    @property
    def node_ids(self) -> set[str]:
        """Nodes that have workers."""
        return {m.worker.metadata.node_id for m in self._members}

    def pace(self) -> Pace | None:
        """How the run advances; None until this group has made a few steps."""
        if self._first is None or self.step - self._first[0] < 2:
            return None
        step, at = self._first
        moved = max(m.moved_at for m in self._members)
        return Pace((moved - at) / (self.step - step), self._restart_s, self.data_wait)

    def ended(self) -> None:
        """The group has failed: from here on the restart is measured."""
        self._stopped_at = time.monotonic()
        self.ask_now()  # for what was asked before
        self.ask_now()

    def ask_now(self) -> None:
        """Ask every worker for its pulse and wait a moment for the answers."""
        for member in self._members:
            self._ask(member)
        asked = [m.asked for m in self._members if m.asked is not None]
        if asked:
            ray.wait(asked, num_returns=len(asked), timeout=0.5)
            self._listen()

    def hold(self, *, timeout_s: float = _HOLD_S) -> float | None:
        """Have all workers save after their present step and wait; the seconds it took, None if they did not."""
        begun = time.monotonic()
        ray.get([m.worker.execute_async(holding.ask_to_hold) for m in self._members], timeout=10)
        while time.monotonic() - begun < timeout_s:
            status = self._ray_group.poll_status(
                timeout=0.5
            )  # takes reports, without which they wait
            if status.errors or status.finished:
                return None
            self.ask_now()
            if all(m.pulse.phase == "hold" for m in self._members):
                self._stopped_at = begun
                return time.monotonic() - begun
        _log.warning("workers did not hold within %.0f s", timeout_s)
        return None

    def ask_to_hold(self) -> None:
        """Have all workers save and hold, without waiting for it."""
        for member in self._members:
            member.worker.execute_async(holding.ask_to_hold)

    # --- pulses --------------------------------------------------------------------------------

    def _listen(self) -> None:
        now = time.monotonic()
        asked = [m.asked for m in self._members if m.asked is not None]
        answered = set(ray.wait(asked, num_returns=len(asked), timeout=0)[0]) if asked else set()
        for member in self._members:
            if member.asked in answered:
                self._take(member, now)
            elif member.asked is None and now - member.asked_at > _ASK_EVERY_S:
                self._ask(member)
        step = self.step
        if self._first is None and step > self._start_step:
            self._first = (step, now)
            if self._stopped_at is not None:
                self._restart_s, self._stopped_at = now - self._stopped_at, None

    def _ask(self, member: _Member) -> None:
        if member.asked is None:
            member.asked, member.asked_at = (
                member.worker.execute_async(pulse.read),
                time.monotonic(),
            )

    def _take(self, member: _Member, now: float) -> None:
        answer, member.asked = member.asked, None
        try:
            heard = cast(Pulse, ray.get(answer))
        except Exception:  # it has died; the controller will see
            return
        member.answered = member.asked_at
        if heard.beats != member.pulse.beats or heard.phase == "hold":
            member.moved_at = now
        member.pulse = heard

    # --- workers that no longer move -----------------------------------------------------------

    def _stuck(self) -> list[int]:
        now = time.monotonic()
        return [r for r, m in enumerate(self._members) if now - m.moved_at > self._hang_s]

    def _end_the_stuck(self, ranks: Sequence[int]) -> None:
        """Keep every rank's stack, then kill those that do not move: Ray Train starts the group again."""
        self.stuck = {rank: self._members[rank].pulse.phase for rank in ranks}
        places = ", ".join(f"{rank} ({phase})" for rank, phase in self.stuck.items())
        self._notices.say(
            f"no progress for {self._hang_s:.0f} s at step {self.step} on workers {places}: "
            f"their stacks are in {storage.redact(self._run.path('stacks'))}; starting them again"
        )
        self.record("hang", step=self.step, ranks=list(ranks))
        _try(self._keep_stacks)  # where no disk has room for them, the stuck are ended all the same
        for member in self._members:
            member.moved_at = (
                time.monotonic()
            )  # the others stand still for those that do: once is enough
        for rank in ranks:
            member = self._members[rank]
            _try(nodes.kill_process, member.worker.metadata.node_id, member.worker.metadata.pid)

    def _keep_stacks(self) -> None:
        attempt = self._run.newest_attempt()
        number = attempt.number if attempt else 0
        asked = [m.worker.execute_async(holding.stacks) for m in self._members]
        ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_S)
        for rank, (member, answer) in enumerate(zip(self._members, asked, strict=True)):
            text = _try(lambda answer=answer: ray.get(answer, timeout=0))
            if text is None:
                where = member.worker.metadata
                text = _try(nodes.native_stack, where.node_id, where.pid) or "no answer"
            uri = self._run.path("stacks", f"a{number:05d}-r{rank:05d}.txt")
            storage.write_bytes(uri, f"{member.pulse}\n\n{text}".encode())


def current() -> Group:
    """The group of this controller's process."""
    assert _current is not None, "not in a controller"
    return _current


_current: Group | None = None


def _try(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        _log.warning("%s: %s", getattr(function, "__name__", function), error)
        return None
