"""What a failed worker group means: start it again, or end the run with a diagnosis.

Nodes that are taken away are no failures, however often it happens. Others are counted, and the same step failing three
times ends the run: what kills it there will kill it again.
"""

import logging
from typing import Any

from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from tubelet.checkpoint import DamagedCheckpointError
from tubelet.elasticity import Failure, reason_to_give_up
from tubelet.holding import HeldTooLongError
from tubelet.membership import group, nodes
from tubelet.notices import Notices

_log = logging.getLogger(__name__)

_DIED = "worker process has died"
_FREE = (DamagedCheckpointError, HeldTooLongError)
"""Failures that mend themselves: the next attempt starts from another checkpoint."""


class CountedFailures(FailurePolicy):
    """Decides after each failure.

    Args:
        failure_config: Ray Train's; not used.
        most: charged failures after which the run gives up.
        notices: what the user should be told.
    """

    def __init__(self, failure_config: FailureConfig, *, most: int, notices: Notices) -> None:
        super().__init__(failure_config)
        self._most, self._notices = most, notices
        self._failures: list[Failure] = []

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Called by Ray Train."""
        if isinstance(training_failed_error, ControllerError):
            return self._start_failed(training_failed_error)
        if not isinstance(training_failed_error, WorkerGroupError):
            return FailureDecision.RETRY  # a preemption
        workers = group.current()
        workers.ended()
        failure, lost = self._failure(training_failed_error)
        self._failures.append(failure)
        reason = reason_to_give_up(self._failures, most=self._most)
        workers.record(
            "failure",
            step=failure.step,
            ranks=sorted(training_failed_error.worker_failures),
            lost_nodes=sorted(lost),
            message=failure.message,
            charged=failure.charged,
            gave_up=reason,
        )
        if reason:
            return FailureDecision.RAISE
        self._notices.say(
            f"workers ended at step {failure.step}: {failure.message}; starting again"
        )
        return FailureDecision.RETRY

    def _failure(self, error: WorkerGroupError) -> tuple[Failure, set[str]]:
        workers = group.current()
        causes = {rank: _cause(e) for rank, e in error.worker_failures.items()}
        lost = nodes.gone(workers.node_ids)
        if lost:
            ranks = [r for r in range(workers.size) if workers.node_of(r) in lost]
            text = f"the node of worker {', '.join(map(str, ranks))} is gone"
            return Failure(workers.step, text, charged=False), lost
        free = [e for e in causes.values() if isinstance(e, _FREE)]
        rank, first = min(causes.items(), key=lambda entry: (_collateral(entry[1]), entry[0]))
        if free:
            return Failure(workers.step, _line(free[0]), charged=False), lost
        if workers.stuck:
            places = ", ".join(f"worker {rank} ({phase})" for rank, phase in workers.stuck.items())
            return Failure(workers.step, f"no progress: {places}", True, workers.slack), lost
        return Failure(workers.step, f"worker {rank}: {_line(first)}", True, workers.slack), lost

    def _start_failed(self, error: ControllerError) -> FailureDecision:
        """Workers could not be started: somebody else was faster, or a node died meanwhile."""
        cause = error.controller_failure
        if isinstance(cause, (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)):
            self._notices.say("the workers could not be started; trying again")
            group.current().record("start_failed", message=_line(cause))
            return FailureDecision.RETRY
        return FailureDecision.RAISE


def _cause(error: Exception) -> BaseException:
    return error._base_exc if isinstance(error, UserExceptionWithTraceback) else error


def _collateral(error: BaseException) -> bool:
    """Whether a worker probably failed because another one had."""
    text = str(error)
    return any(
        word in text for word in ("Connection closed by peer", "Connection reset", "gloo", "NCCL")
    )


def _line(error: Any) -> str:
    if _DIED in str(error):  # Ray's text is a page of what it might have been
        return "its process has died (killed, crashed, or out of memory)"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
