"""A sweep from its start to its end: begin or go on, let Ray Tune run the trials, show and keep the results.

The driver holds no state: a killed one loses nothing that the journal and the trials' own runs do not have, and the
same command goes on. Finished trials stay as they are, with their MLflow runs; those that were running resume from
their last checkpoint; searcher and scheduler are made anew from the journal. A trial that fails is a result like any
other, and its neighbours do not notice.

Trials take nothing of Ray Tune but a share of the driver's machine, which bounds how many run at once: their runs ask
Ray Train for what they need, as they would alone.
"""

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clips import storage
from tubelet import cluster, elastic, owner, terminal, tracking
from tubelet.config import DONE, INTERRUPTED, STOPPED, UserError
from tubelet.fit import Job
from tubelet.run_directory import RunDirectory
from tubelet.sweep import record, results, trials
from tubelet.sweep.journal import Journal, Trial
from tubelet.sweep.page import short
from tubelet.sweep.recipe import Sweep
from tubelet.sweep.space import Dimension

_log = logging.getLogger(__name__)

_POLL_S = 0.5
_LEAVING_S = 180.0
_DEATHS = 3
"""How often a trial's process may die."""
_SETTINGS = {  # Ray Tune reads them when it is imported
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # its own state is never read
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True)
class Result:
    """How a call of ``run`` ended."""

    code: int
    """Exit code: 0 done, 3 no trial came to anything, 75 interrupted and resumable."""
    directory: RunDirectory
    message: str

    def summary(self) -> str:
        """What the user reads last."""
        return self.message


def run(sweep: Sweep) -> Result:
    """Bring a sweep to its end, or to the point where it can be resumed.

    Raises:
        UserError: what the user asked for cannot be done; nothing was changed.
    """
    if sweep.run.name is None:
        raise UserError(
            "run.name is null: name the sweep, since its folder in run.storage has its name"
        )
    root = storage.absolute(sweep.run.storage)
    directory = RunDirectory(storage.join(root, sweep.run.name))
    recipe = trials.base(sweep)
    first = trials.recipe_of(sweep, recipe, run=f"{sweep.run.name}-00000", values={})
    job = trials.job_of(first)
    dimensions = trials.check(sweep, recipe, job)
    mlflow_uri = tracking.resolve_uri(root)
    found_record = record.find(directory, sweep, recipe, job)
    with (
        terminal.console_and_log(results.local(directory) / "logs" / "driver.log"),
        _owning(directory) as held,
    ):
        found = _connect(sweep, recipe, job)
        parent = record.begin(sweep, job, found_record, directory, mlflow_uri=mlflow_uri, root=root)
        journal = Journal.read(directory)
        record.settle(sweep, recipe, journal, mlflow_uri=mlflow_uri, root=root, parent=parent)
        search = _Search(sweep, recipe, dimensions, journal, found, mlflow_uri, parent)
        _announce(sweep, dimensions, journal, search)
        return search.run(held)


# --- before ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _owning(directory: RunDirectory) -> Iterator[owner.Ownership]:
    held = owner.take(directory, say=terminal.say)
    try:
        yield held
    finally:
        held.release()


def _connect(sweep: Sweep, recipe: trials.Recipe, job: Job) -> cluster.Cluster:
    os.environ.update({name: os.environ.get(name, value) for name, value in _SETTINGS.items()})
    size, at_once = recipe.elastic, sweep.concurrent or 1
    store = cluster.store_bytes(
        job.plan.unit_bytes, workers=at_once * size.max_workers, prefetch=recipe.data.prefetch
    )
    found = cluster.connect(
        trainer_cpus=at_once * size.max_workers * size.cpus_per_worker, store_bytes=store
    )
    if found.local:  # elsewhere nodes may still join
        cluster.check_room(
            found,
            min_workers=size.min_workers,
            cpus_per_worker=size.cpus_per_worker,
            decode_cpus=recipe.data.decode_cpus,
        )
    return found


def at_once(sweep: Sweep, recipe: trials.Recipe, found: cluster.Cluster) -> int:
    """How many trials run at once: what was asked for, else as many as the cluster holds at their largest."""
    if sweep.concurrent is not None:
        return min(sweep.concurrent, sweep.trials)
    size, cpus, decoding = recipe.elastic, found.cpus, recipe.data.decode_cpus
    if recipe.data.decode_nodes == "labelled":
        cpus, decoding = cpus - found.data_cpus, 0.0
    room = math.floor((cpus - decoding) / (size.max_workers * size.cpus_per_worker) + 1e-9)
    if size.device == "cuda" or (size.device == "auto" and found.gpus >= size.min_workers):
        room = min(room, int(found.gpus // size.max_workers))
    return max(1, min(room, sweep.trials))


def _announce(
    sweep: Sweep, dimensions: list[Dimension], journal: Journal, search: "_Search"
) -> None:
    ended = len(journal.ended)
    lines = {
        "sweep": f"{sweep.run.name} in {storage.redact(journal.directory.uri)}",
        "searches": "; ".join(f"{d.key} {d.kind} {list(d.values)}" for d in dimensions),
        "goes on": f"{ended} trials have ended, {len(journal.unfinished)} resume"
        if journal.trials
        else "",
        "trials": f"{sweep.trials} ({sweep.search}, {sweep.scheduler}), {search.at_once} at once",
        "best is": f"{sweep.mode} of {sweep.metric}",
    }
    for name, text in lines.items():
        if text:
            terminal.say(f"  {name:<14} {text}")


# --- during ----------------------------------------------------------------------------------------


class _Search:
    """Ray Tune in a thread, and what the user sees of it."""

    def __init__(
        self,
        sweep: Sweep,
        recipe: trials.Recipe,
        dimensions: list[Dimension],
        journal: Journal,
        found: cluster.Cluster,
        mlflow_uri: str,
        parent: str,
    ) -> None:
        self._sweep, self._recipe, self._dimensions = sweep, recipe, dimensions
        self._journal, self._uri, self._parent = journal, mlflow_uri, parent
        self.at_once = at_once(sweep, recipe, found)
        self._shown = {trial.number for trial in journal.ended}
        self._error: BaseException | None = None

    def run(self, held: owner.Ownership) -> Result:
        """Until all trials have ended, or a signal comes."""
        total = max(self._sweep.trials, len(self._journal.trials))
        if len(self._journal.ended) == total:  # killed after its last trial
            return self._finish(interrupted=False)
        tuner, searcher = self._tuner(total - len(self._journal.ended))
        thread = threading.Thread(target=self._fit, args=(tuner,), name="tune", daemon=True)
        thread.start()
        with (
            elastic.signals([]) as received,
            terminal.progress("sweep", total, unit="trials", done=len(self._shown)) as bar,
        ):
            while thread.is_alive() and not received:
                thread.join(_POLL_S)
                if held.lost_to:
                    where = storage.redact(self._journal.directory.uri)
                    raise UserError(f"{held.lost_to} has taken over {where}: this driver ends")
                self._look(bar)
            if received:
                terminal.say(f"{received[0]}: the running trials save; a second one stops at once")
                searcher.closed = True
                self._leave()
                # Ray Tune's thread lives until the process ends, and would complain that Ray does not.
                logging.getLogger("ray").setLevel(logging.CRITICAL + 1)
            self._look(bar)
        return self._finish(interrupted=bool(received))

    def _fit(self, tuner: Any) -> None:
        try:
            tuner.fit()
        except BaseException as error:
            self._error = error
            _log.exception("Ray Tune")

    def _tuner(self, remaining: int) -> tuple[Any, Any]:
        import ray
        from ray import tune
        from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig

        from tubelet.sweep import rules
        from tubelet.sweep.search import JournalSearch
        from tubelet.sweep.trial import Given, RunTrial

        sweep, journal = self._sweep, self._journal
        assert sweep.run.name is not None
        searcher = JournalSearch(
            self._dimensions,
            journal,
            name=sweep.run.name,
            kind=sweep.search,
            mode=sweep.mode,
            seed=sweep.run.seed,
        )
        given = Given(sweep, self._recipe, self._uri, self._parent, os.getcwd())
        here = f"node:{ray.util.get_node_ip_address()}"
        share = math.floor(10_000 / self.at_once) / 10_000
        trainable = tune.with_resources(
            tune.with_parameters(RunTrial, given=given), tune.PlacementGroupFactory([{here: share}])
        )
        population = sweep.scheduler == "pbt"
        tuner = tune.Tuner(
            trainable,
            tune_config=TuneConfig(
                search_alg=searcher,
                scheduler=rules.scheduler(sweep, self._recipe, self._dimensions, journal),
                num_samples=remaining,
                # A population needs all its trials known, and takes turns; others are drawn when there is room.
                max_concurrent_trials=None if population else self.at_once,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name=time.strftime("%Y%m%d-%H%M%S"),
                storage_path=str(results.local(journal.directory) / "ray"),
                failure_config=FailureConfig(max_failures=_DEATHS),
                checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        return tuner, searcher

    def _look(self, bar: terminal.Progress) -> None:
        """Tell of trials that have ended since the last look."""
        ended = [t for t in list(self._journal.trials.values()) if t.status != "running"]
        new = [trial for trial in ended if trial.number not in self._shown]
        for trial in new:
            self._shown.add(trial.number)
            terminal.say(results.line(trial, self._sweep.metric))
        best = self._journal.best(self._sweep.mode)
        facts = f"{len(self._journal.unfinished)} running"
        if best is not None and best.value is not None:
            facts += f"  best {short(best.value)} (trial {best.number})"
        bar.update(len(ended), facts)
        if new:
            self._publish()
            if best is not None and best.value is not None:
                self._tell(best.value, step=len(ended))

    def _publish(self) -> None:
        try:
            results.publish(self._sweep, self._recipe, self._dimensions, self._journal)
        except Exception as error:  # the trials go on, and it is made again after the next one
            _log.exception("results")
            terminal.say(f"note: the results could not be written: {error}")

    def _tell(self, best: float, *, step: int) -> None:
        try:
            tracking.connect(self._uri).log_metric(self._parent, "sweep/best", best, step=step)
        except Exception as error:
            _log.warning("sweep/best: %s", error)

    def _leave(self) -> None:
        """Have the running trials' runs saved and left."""
        root = storage.absolute(self._sweep.run.storage)
        runs = {t.run: RunDirectory(storage.join(root, t.run)) for t in self._journal.unfinished}
        asked: set[tuple[str, int]] = set()
        deadline = time.monotonic() + _LEAVING_S
        while time.monotonic() < deadline:
            busy = [name for name, run in runs.items() if owner.read(run) is not None]
            if not busy:
                return
            for name in busy:
                newest = runs[name].newest_attempt()
                if newest and (name, newest.number) not in asked:
                    runs[name].request_stop(newest.number, "the sweep was interrupted")
                    asked.add((name, newest.number))
            time.sleep(_POLL_S)

    # --- after -------------------------------------------------------------------------------------

    def _finish(self, *, interrupted: bool) -> Result:
        journal, sweep = self._journal, self._sweep
        directory, where = journal.directory, storage.redact(journal.directory.uri)
        best = journal.best(sweep.mode)
        self._publish()
        status: tracking.Status = "FINISHED"
        if interrupted:
            code, status = INTERRUPTED, "KILLED"
            done = f"{len(journal.ended)} of {sweep.trials} trials"
            message = f"stopped after {done}; the same command goes on with {where}"
        elif self._error is not None or journal.unfinished or len(journal.ended) < sweep.trials:
            code, status = STOPPED, "FAILED"
            lines = str(self._error or "trials did not end").strip().splitlines()
            message = (
                f"Ray Tune gave up: {lines[-1] if lines else 'no reason'}\n  log: {results.local(directory) / 'logs'}\n"
                f"  the same command goes on with {where}"
            )
        elif best is None:
            code, status = STOPPED, "FAILED"
            message = (
                f"all {len(journal.ended)} trials failed; the first: {journal.trials[0].message}"
            )
            directory.write_json({"trials": len(journal.ended)}, "finished.json")
        else:
            code, message = DONE, self._told(best, where)
            directory.write_json({"trials": len(journal.ended)}, "finished.json")
        tracking.log_artifacts(self._uri, run_id=self._parent, folder=results.folder(directory))
        tracking.finish_run(self._uri, run_id=self._parent, status=status)
        return Result(code, directory, message)

    def _told(self, best: Trial, where: str) -> str:
        failed = [trial for trial in self._journal.ended if trial.status == "failed"]
        lines = [
            f"finished {len(self._journal.ended)} trials"
            + (f", {len(failed)} of which failed" if failed else ""),
            f"  {results.line(best, self._sweep.metric)}",
            f"  its recipe: {where}/results/best.yaml",
            f"  all results: {where}/results/results.html",
        ]
        return "\n".join(lines)
