"""Run a loop on ``min..max`` workers until it is done: start, watch, resume, stop.

``run`` is the driver's side of a run. It finds the run by name and decides whether it is new, goes on, or is finished;
starts Ray Train with our feed and hooks; shows progress; and turns Ctrl-C or SIGTERM into "save now, leave cleanly".
Worker deaths and resizes never come back here: Ray Train's controller restarts the group from the attempt that
``membership`` writes down. A killed driver loses nothing either: the same command goes on from the last commit.

The state of a run is its directory; this process holds none that matters.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clips import storage
from tubelet import cluster, config, owner, resuming, terminal, tracking
from tubelet.config import DONE, INTERRUPTED, STOPPED, UserError
from tubelet.fit import Fit, Job, spool_folder
from tubelet.owner import Ownership
from tubelet.run_directory import RunDirectory
from tubelet.tracked import Tracked
from tubelet.watch import Watch

_MOST_CONTROLLERS = 10


class TrainingStopped(Exception):
    """A run ended with a diagnosis; for callers of ``run`` that have no use for its result then."""


@dataclass(frozen=True)
class Result:
    """How a call of ``run`` ended."""

    code: int
    """Exit code: 0 done, 3 stopped with a diagnosis, 75 interrupted and resumable."""
    run: RunDirectory
    mlflow_uri: str
    mlflow_run_id: str | None
    """None when MLflow has not answered since the run began."""
    message: str
    metrics: dict[str, float]
    """The newest value of each metric."""

    def summary(self) -> str:
        """What the user reads last."""
        return self.message


def run(job: Job, *, asked: list[str] | None = None) -> Result:
    """Bring a run to its end, or to the point where it can be resumed.

    Args:
        job: the run.
        asked: whoever calls this from a thread beside the main one appends a reason here to have the run saved and
            left, as a signal does.

    Raises:
        UserError: what the user asked for cannot be done; nothing was changed.
    """
    section = job.recipe.run
    if section.name is None:
        raise UserError(
            "run.name is null: name the run, since its folder in run.storage has its name"
        )
    root = storage.absolute(section.storage)
    directory = RunDirectory(storage.join(root, section.name))
    mlflow_uri = tracking.resolve_uri(root)
    record = resuming.fresh(directory, job) if section.fresh else resuming.resumed(directory, job)
    with terminal.console_and_log(_log_file(directory)), _owning(directory) as held:
        tracked = Tracked(job, directory, record, uri=mlflow_uri, root=root)
        if not section.fresh and resuming.is_finished(directory, job):
            return _ship_rest(job, directory, record, tracked)
        trainers = job.recipe.elastic.max_workers * job.recipe.elastic.cpus_per_worker
        found = cluster.connect(trainer_cpus=trainers, store_bytes=_store_bytes(job))
        workers = _workers(job, found)
        with tracked:
            if section.fresh:  # now that nothing can be refused any more
                directory.clear()
            record["starts"] += 1
            directory.write_json(record, "run.json")
            recipe = tracking.redact(config.to_yaml(job.recipe))
            storage.write_bytes(directory.path("recipe.yaml"), recipe.encode())
            tracked.begin(revision=cluster.revision())
            _announce(job, directory, record, workers=workers, found=found)
            return _watch(job, directory, held, tracked, workers=workers, asked=asked)


# --- before ----------------------------------------------------------------------------------------


def _workers(job: Job, found: cluster.Cluster) -> tuple[int, int]:
    """The (smallest, largest) group that the run may have; what this machine alone cannot hold is refused."""
    elastic, decode_cpus = job.recipe.elastic, job.recipe.data.decode_cpus
    if job.recipe.data.decode_nodes == "labelled":
        if not found.data_cpus:
            label = "=".join(cluster.DATA_NODES)
            terminal.say(
                f"note: no node is labelled {label} yet (data.decode_nodes=labelled): training waits for one"
            )
        found = replace(found, cpus=found.cpus - found.data_cpus)
        decode_cpus = 0.0
    if (
        not found.local
    ):  # nodes may still join: the group waits for them, and says so (membership.scaling)
        return elastic.min_workers, elastic.max_workers
    sizes: dict[str, Any] = {"cpus_per_worker": elastic.cpus_per_worker, "decode_cpus": decode_cpus}
    cluster.check_room(found, min_workers=elastic.min_workers, **sizes)
    if elastic.device == "cuda" and found.gpus < elastic.min_workers:
        raise UserError(
            f"elastic.device=cuda, but this machine has {found.gpus:g} GPUs for elastic.min_workers "
            f"({elastic.min_workers}): use elastic.device=auto, or fewer workers"
        )
    most = cluster.room_for(found, max_workers=elastic.max_workers, **sizes)
    if most < elastic.max_workers:
        terminal.say(
            f"note: {found.cpus:g} CPUs hold {most} of elastic.max_workers ({elastic.max_workers}) beside decoding"
        )
    return elastic.min_workers, max(most, elastic.min_workers)


def _store_bytes(job: Job) -> int:
    return cluster.store_bytes(
        job.plan.unit_bytes,
        workers=job.recipe.elastic.max_workers,
        prefetch=job.recipe.data.prefetch,
    )


def _announce(
    job: Job,
    directory: RunDirectory,
    record: dict[str, Any],
    *,
    workers: tuple[int, int],
    found: cluster.Cluster,
) -> None:
    ledger = job.plan.ledger
    parent = directory.resume_point(directory.newest_attempt())
    group = f"{workers[0]}" if workers[0] == workers[1] else f"{workers[0]} to {workers[1]}"
    lines = {
        "run": f"{record['name']} in {storage.redact(directory.uri)}",
        "resumes": f"at step {parent.step} of {ledger.steps}" if parent else None,
        "length": f"{ledger.steps} steps of {ledger.batch} visits: {ledger.epochs} epochs of "
        + (f"{ledger.visits_per_epoch} visits of " if ledger.parts else "")
        + f"{ledger.rows} videos"
        + (f", {ledger.draws} draws" if ledger.draws > 1 else ""),
        **job.notes,
        "workers": f"{group} of {found.cpus:g} CPUs and {found.gpus:g} GPUs",
    }
    for name, text in lines.items():
        if text:
            terminal.say(f"  {name:<14} {text}")


# --- during ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _owning(directory: RunDirectory) -> Iterator[Ownership]:
    """Keep other drivers off the run meanwhile."""
    held = owner.take(directory, say=terminal.say)
    try:
        yield held
    finally:
        held.release()


@contextlib.contextmanager
def signals(received: list[str]) -> Iterator[list[str]]:
    """The names of SIGINT and SIGTERM as they arrive; a second one ends the process at once."""

    def note(number: int, frame: Any) -> None:
        received.append(signal.Signals(number).name)
        if len(received) > 1:
            raise SystemExit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(
    job: Job,
    directory: RunDirectory,
    held: Ownership,
    tracked: Tracked,
    *,
    workers: tuple[int, int],
    asked: list[str] | None,
) -> Result:
    """Run Ray Train, show progress until it ends; pass a signal on to whatever attempt is running."""
    fit = Fit(job, directory, key=tracked.key, workers=workers)
    controllers = 1
    watch = Watch(job.recipe, directory, tracked.points)
    told: int | None = None
    with (
        signals([] if asked is None else asked) as received,
        terminal.progress(job.kind, job.plan.ledger.steps, done=watch.step) as bar,
    ):
        while fit.running() or (
            fit.controller_died and not received and controllers < _MOST_CONTROLLERS
        ):
            if held.lost_to:
                raise UserError(
                    f"{held.lost_to} has taken over {storage.redact(directory.uri)}: this driver ends"
                )
            if fit.controller_died:
                terminal.say(
                    "the controller has died; another one goes on from the last checkpoint"
                )
                directory.record_event("controller_died")
                fit = Fit(job, directory, key=tracked.key, workers=workers)
                controllers += 1
            watch.look(bar)
            if watch.new_pictures:
                tracked.draw()
            if received:
                attempt = directory.newest_attempt()
                if attempt and attempt.number != told and attempt.ray_run == fit.ray_run:
                    terminal.say(f"{received[0]}: saving a checkpoint; a second one stops at once")
                    directory.request_stop(attempt.number, received[0])
                    told = attempt.number
        watch.look(bar)
    patience = job.recipe.schedule.patience
    return _finish(directory, fit, watch, tracked, stopped_by=received, patience=patience)


# --- after -----------------------------------------------------------------------------------------


def _finish(
    directory: RunDirectory,
    fit: Fit,
    watch: Watch,
    tracked: Tracked,
    *,
    stopped_by: list[str],
    patience: int | None,
) -> Result:
    from tubelet.worker import read_outcome

    attempt = directory.newest_attempt()
    outcome = read_outcome(directory, attempt.number) if attempt else None
    tracked.draw()
    tracked.keep_quarantine()
    where, log = storage.redact(directory.uri), _log_file(directory)
    if fit.error is None and outcome and outcome.kind == "finished":
        early = {"patience": patience} if outcome.message else {}
        directory.write_json({"step": outcome.step, **early, "tracked": False}, "finished.json")
        code, message = DONE, f"finished after {outcome.step} steps; results in {where}"
        if outcome.message:
            message += f"; {outcome.message} (schedule.patience)"
    elif stopped_by or (outcome and outcome.kind == "stopped"):
        tip = directory.resume_point(directory.newest_attempt())
        at = f"at step {tip.step}" if tip else "at its beginning"
        code, message = INTERRUPTED, f"stopped; the same command resumes {where} {at}"
    elif outcome and outcome.kind == "diverged":
        code, message = STOPPED, f"{outcome.message}; the last checkpoint in {where} is from before"
    elif outcome and outcome.kind == "bad_data":
        code = STOPPED
        message = (
            f"{outcome.message}\nare these the files of the manifest, and can the storage be reached? "
            f"The same command resumes {where} at step {outcome.step}; data.max_bad_fraction=... allows more"
        )
    elif outcome and outcome.kind == "unsaved":
        tip = directory.resume_point(directory.newest_attempt())
        at = f"step {tip.step}" if tip else "the beginning"
        code = STOPPED
        message = (
            f"{storage.redact(outcome.message)}\nmake room there, or see to its access; "
            f"the same command resumes {where} from {at}"
        )
    else:
        tip = directory.resume_point(directory.newest_attempt())
        at = f"step {tip.step}" if tip else "the beginning"
        reason = directory.gave_up() or _reason(fit.error, log)
        code = STOPPED
        message = f"training gave up: {reason}\n  log: {log}\n  the same command resumes {where} from {at}"
    directory.record_event("end", code=code, message=message)
    statuses: dict[int, tracking.Status] = {DONE: "FINISHED", INTERRUPTED: "KILLED"}
    complete = tracked.end(statuses.get(code, "FAILED"))
    if code == DONE and complete:
        resuming.everything_tracked(directory)
    return Result(code, directory, tracked.uri, tracked.run_id, message, watch.newest)


def _ship_rest(
    job: Job, directory: RunDirectory, record: dict[str, Any], tracked: Tracked
) -> Result:
    """Bring to MLflow what it did not take of a run that is finished otherwise."""
    finished, where = directory.read_json("finished.json"), storage.redact(directory.uri)
    assert finished is not None
    steps, here = finished["step"], tracked.points.exists()
    with tracked:
        tracked.begin(revision=record["revision"])
        tracked.draw()
        tracked.keep_quarantine()
        complete = tracked.end("FINISHED", limit_s=None)
    code, message = INTERRUPTED, f"{where} is finished after {steps} steps, but for MLflow"
    if complete and here:
        resuming.everything_tracked(directory)
        code = DONE
        message = f"MLflow now has everything of {where}, finished after {steps} steps"
    elif complete:
        message += (
            f": its points are on the machine that trained it, in {tracked.points.parent}; "
            "the same command sends them from there"
        )
    newest = Watch(job.recipe, directory, tracked.points).newest
    return Result(code, directory, tracked.uri, tracked.run_id, message, newest)


def _reason(error: BaseException | None, log: Path) -> str:
    """Why Ray Train gave up: the last line of the first worker's error, or else of the log."""
    causes = [str(cause) for cause in getattr(error, "worker_failures", {}).values()]
    lines = [line for line in (causes or [str(error)])[0].splitlines() if line.strip()]
    return lines[-1].strip() if lines and error is not None else terminal.tail(log, lines=3)


def _log_file(directory: RunDirectory) -> Path:
    return Path(spool_folder(directory)).parent / "logs" / "driver.log"
