"""One trial: an elastic run of its own, driven from a process of Ray Tune's, which tells how its evaluations come out.

The process does what ``jobs/finetune.py`` would, in a thread; between evaluations Ray Tune waits in ``step``. It holds
no resources (the run's workers do) and is used for one trial after another, which saves some seconds of imports each.
Stopping a trial is asking its run to save and leave: MLflow has its status, nothing is left behind, and it could go on.

What a trial tells is read from the points its run has written, from the first one at every start: who listens knows
what is new.
"""

import json
import logging
import math
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from clips import storage
from tubelet import elastic, resuming
from tubelet.config import DONE, INTERRUPTED, UserError
from tubelet.fit import Job, spool_folder
from tubelet.run_directory import RunDirectory
from tubelet.spool import points_file
from tubelet.sweep import grafting, trials
from tubelet.sweep.journal import Journal
from tubelet.sweep.recipe import Sweep
from tubelet.sweep.rules import EPOCHS, FAILED
from tubelet.sweep.search import GRAFTS, NUMBER, VALUE

_log = logging.getLogger(__name__)

_POLL_S = 0.2
_LEAVING_S = 540.0
"""Ray Tune kills a process that takes ten minutes to end."""


@dataclass(frozen=True)
class Given:
    """What all trials of a sweep are given."""

    sweep: Sweep
    recipe: trials.Recipe
    """What all trials share."""
    mlflow_uri: str
    parent: str
    """Id of the sweep's MLflow run."""
    folder: str
    """Working folder of the driver: paths in recipes may be relative to it."""


class RunTrial(tune.Trainable):
    """Ray Tune's view of a trial: one ``step`` per held-out evaluation."""

    def setup(  # type: ignore[override]  # tune.with_parameters gives the second
        self, config: dict[str, Any], *, given: Given
    ) -> None:
        """Take a trial's values; nothing is started before the first step."""
        os.environ["MLFLOW_TRACKING_URI"] = given.mlflow_uri
        os.chdir(given.folder)
        self._given = given
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave one trial and take another."""
        self.cleanup()
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next evaluation, and for the end of the run after the last one."""
        try:
            return self._next()
        except UserError as error:
            return self._failure(str(error))

    def cleanup(self) -> None:
        """Have the run saved and left."""
        if self._thread is not None and self._thread.is_alive():
            self._asked.append("the sweep goes on without it")
            self._thread.join(_LEAVING_S)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run saves itself."""
        Path(checkpoint_dir, "see").write_text(
            self._directory.uri
        )  # an empty folder is no checkpoint

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: from where to go on is in the configuration."""

    # --- the run -------------------------------------------------------------------------------

    def _take(self, config: dict[str, Any]) -> None:
        ours = (NUMBER, GRAFTS)
        self._values = {key: value for key, value in config.items() if key not in ours}
        self._number, self._grafts = int(config[NUMBER]), int(config[GRAFTS])
        name = self._given.sweep.run.name
        self._run = f"{name}-{self._number:05d}"
        self._root = storage.absolute(self._given.sweep.run.storage)
        self._directory = RunDirectory(storage.join(self._root, self._run))
        self._job: Job | None = None
        self._thread: threading.Thread | None = None
        self._result: elastic.Result | None = None
        self._error: BaseException | None = None
        self._asked: list[str] = []
        self._told = Evaluations(self._directory, self._given.sweep.metric)
        self._last: Evaluation | None = None

    def _next(self) -> dict[str, Any]:
        job = self._prepared()
        while True:
            ended = self._thread is not None and not self._thread.is_alive()
            found = self._told.next()
            if found is not None:
                self._last = found
                if found.step < job.plan.ledger.steps:
                    return self._told_at(found, done=False)
            elif self._thread is None:
                if self._is_complete(job):
                    return self._end(job)
                self._start(job)
            elif ended:
                return self._after(job)
            time.sleep(_POLL_S)

    def _prepared(self) -> Job:
        if self._job is None:
            given = self._given
            recipe = trials.recipe_of(given.sweep, given.recipe, run=self._run, values=self._values)
            tags = trials.tags(given.sweep, self._number, parent=given.parent)
            self._job = trials.job_of(recipe, tags)
        return self._job

    def _is_complete(self, job: Job) -> bool:
        finished = self._directory.read_json("finished.json")
        return resuming.is_finished(self._directory, job) and bool(
            finished and finished.get("tracked", True)
        )

    def _start(self, job: Job) -> None:
        if grafting.taken(self._directory) < self._grafts:  # once each, whoever was killed
            sweep = RunDirectory(storage.join(self._root, self._given.sweep.run.name or ""))
            grafting.take(Journal(sweep).graft(self._number, self._grafts - 1), self._directory)
        self._thread = threading.Thread(target=self._train, args=(job,), name="run", daemon=True)
        self._thread.start()

    def _train(self, job: Job) -> None:
        try:
            self._result = elastic.run(job, asked=self._asked)
        except BaseException as error:
            self._error = error
            _log.exception("trial %d", self._number)

    # --- what is told --------------------------------------------------------------------------

    def _after(self, job: Job) -> dict[str, Any]:
        """The run has ended by itself."""
        if isinstance(self._error, UserError):
            raise self._error
        if self._error is not None:
            return self._failure(f"{type(self._error).__name__}: {self._error}")
        assert self._result is not None
        if self._result.code == INTERRUPTED:
            while True:  # somebody asked the run to leave: the driver, which is about to end
                time.sleep(1.0)
        if self._result.code != DONE:
            return self._failure(self._result.message)
        return self._end(job)

    def _end(self, job: Job) -> dict[str, Any]:
        steps = job.plan.ledger.steps
        if self._last is None or self._last.step < steps:
            return self._failure(
                f"{self._given.sweep.metric} at its last step ({steps}) is not a finite number, or was "
                "written down on another machine"
            )
        return self._told_at(self._last, done=True)

    def _told_at(self, found: "Evaluation", *, done: bool) -> dict[str, Any]:
        assert self._job is not None
        ledger = self._job.plan.ledger
        return {
            "step": found.step,
            EPOCHS: min(found.step * ledger.batch / ledger.visits_per_epoch, float(ledger.epochs)),
            VALUE: found.value,
            "done": done,
        }

    def _failure(self, message: str) -> dict[str, Any]:
        step = self._last.step if self._last else 0
        return {
            "step": step,
            EPOCHS: 0.0,
            VALUE: math.nan,
            FAILED: message,
            "done": True,
        }


@dataclass(frozen=True)
class Evaluation:
    """A held-out evaluation of a run."""

    step: int
    value: float


class Evaluations:
    """The evaluations that a run has written down, in turn.

    Args:
        directory: of the run.
        metric: which of their numbers.
    """

    def __init__(self, directory: RunDirectory, metric: str) -> None:
        self._directory, self._metric = directory, metric
        self._offset = 0
        self._record: dict[str, Any] | None = None

    def next(self) -> Evaluation | None:
        """The next one; None while there is none."""
        self._record = self._record or self._directory.read_json("run.json")
        if self._record is None:
            return None
        file = points_file(spool_folder(self._directory), self._record["mlflow_key"])
        if not file.exists():
            return None
        with file.open("rb") as opened:
            opened.seek(self._offset)
            for line in opened:
                if not line.endswith(b"\n"):
                    return None
                self._offset += len(line)
                entry = json.loads(line)
                if self._metric in entry["m"]:
                    return Evaluation(int(entry["s"]), float(entry["m"][self._metric]))
        return None
