"""Where a worker group resumes, decided and written down before it starts; and what its workers report.

What can fail here (storage) is retried inside ``clips.storage``; if it fails all the same, so does the start.
"""

import logging
from typing import Any, cast

from ray.train import UserCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group import WorkerGroupContext

from tubelet.membership import group
from tubelet.run_directory import RunDirectory
from tubelet.spool import MetricSpool, Point

_log = logging.getLogger(__name__)


class Attempts(WorkerGroupCallback):
    """Writes an attempt before each start of a worker group; feed and workers read nothing else."""

    def __init__(self, run: RunDirectory, ray_run: str, reports: "Reports") -> None:
        self._run, self._ray_run, self._reports = run, ray_run, reports

    def before_worker_group_start(self, worker_group_context: WorkerGroupContext) -> None:
        """Decide the resume point of the group that is about to start."""
        attempt = self._run.begin_attempt(
            ray_run=self._ray_run, world_size=worker_group_context.num_workers
        )
        self._run.record_event(
            "attempt", attempt=attempt.number, step=attempt.step, workers=attempt.world_size
        )
        if attempt.parent:
            # What the parent's attempt had not reported when it died travels with its commit.
            self._reports.spool.append(cast(list[Point], self._run.commit(attempt.parent).points))
        self._reports.spool.attempt(attempt.number, step=attempt.step, workers=attempt.world_size)


class Reports(UserCallback):
    """Takes rank 0's points to the spool, from which the driver ships them to MLflow."""

    def __init__(self, *, folder: str, key: str) -> None:
        self._where = (folder, key)
        self._spool: MetricSpool | None = None

    @property
    def spool(self) -> MetricSpool:
        """Made where it is used, in the controller: it owns a file."""
        if self._spool is None:
            self._spool = MetricSpool(*self._where)
        return self._spool

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Called by Ray Train once all workers have reported."""
        for report in metrics:
            self.spool.append(report["points"])
            group.current().note(report["points"])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train when workers have failed; the restart follows."""
        for rank, error in worker_exceptions.items():
            _log.warning("worker %d failed: %s", rank, error)
