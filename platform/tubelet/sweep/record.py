"""Whether a command may begin a sweep, go on with it, or replace it; and the MLflow run that holds all its trials.

Unlike a run, a sweep needs MLflow's server at its start: its trials' runs are told whose children they are. After that
the server may be away, as for any run.
"""

import uuid
from typing import Any

import pydantic

from clips import storage
from tubelet import cluster, config, resuming, tracking
from tubelet.config import UserError
from tubelet.fit import Job
from tubelet.run_directory import FORMAT_VERSION, KEPT, RunDirectory
from tubelet.sweep import trials
from tubelet.sweep.journal import Journal
from tubelet.sweep.recipe import Sweep
from tubelet.sweep.trials import Recipe
from tubelet.tracked import Tracked

_STATUSES: dict[str, tracking.Status] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
}


def find(directory: RunDirectory, sweep: Sweep, recipe: Recipe, job: Job) -> dict[str, Any]:
    """The sweep's record: a new one, or the existing one if this command may go on with it. Changes nothing.

    Raises:
        UserError: it may not.
    """
    names, where = storage.list_names(directory.uri), storage.redact(directory.uri)
    record = directory.read_json("sweep.json")
    if record is None:
        others = [name for name in names if name not in KEPT]
        if others:
            raise UserError(
                f"{where} holds {others[0]} and no sweep: choose another run.name, or empty it yourself"
            )
    elif not sweep.run.fresh:
        if record["version"] > FORMAT_VERSION:
            raise UserError(
                f"{where} was written by a newer release: resume it with that, or choose another run.name"
            )
        _check_same(record, sweep, recipe, job, where)
        finished = directory.read_json("finished.json")
        if finished and finished["trials"] >= sweep.trials:
            raise UserError(
                f"{where} is finished ({finished['trials']} trials): choose another run.name, run.fresh=true to "
                "delete it and its trials, or go on with more: trials=N"
            )
        record["sweep"] = _plain(sweep)
        return record
    return {
        "version": FORMAT_VERSION,
        "name": sweep.run.name,
        "mlflow_key": uuid.uuid4().hex,
        "manifest": job.manifest_hash,
        "sweep": _plain(sweep),
        "recipe": _plain(recipe),
    }


def begin(
    sweep: Sweep,
    job: Job,
    record: dict[str, Any],
    directory: RunDirectory,
    *,
    mlflow_uri: str,
    root: str,
) -> str:
    """Write the sweep's record and begin, or go on with, its MLflow run; returns that run's id."""
    text = tracking.redact(config.to_yaml(sweep))
    parent = tracking.start_run(
        mlflow_uri,
        storage=root,
        job=sweep.job,
        name=record["name"],
        parameters=config.flatten(sweep),
        recipe=text,
        manifest=job.manifest_hash,
        revision=cluster.revision(),
        key=record["mlflow_key"],
        tags={"tubelet.sweep": record["name"]},
    )
    if sweep.run.fresh:  # now that nothing can be refused any more
        for trial in Journal.read(directory).trials.values():
            storage.remove(storage.join(root, trial.run))
        directory.clear()
    storage.remove(directory.path("finished.json"))
    directory.write_json({**record, "mlflow_run_id": parent}, "sweep.json")
    storage.write_bytes(directory.path("sweep.yaml"), text.encode())
    return parent


def settle(
    sweep: Sweep, recipe: Recipe, journal: Journal, *, mlflow_uri: str, root: str, parent: str
) -> None:
    """Bring to MLflow what it lacks of trials that have ended, but whose runs were killed while they left.

    A run writes its end down before it tells MLflow, so each of the two is looked at.
    """
    for trial in journal.ended:
        directory = RunDirectory(storage.join(root, trial.run))
        record = directory.read_json("run.json")
        if record is None:
            continue
        written = [event["event"] for event in directory.events()][-1:] == ["end"]
        if written and tracking.has_ended(mlflow_uri, run_id=record.get("mlflow_run_id")):
            continue
        whole = trials.recipe_of(sweep, recipe, run=trial.run, values=trial.values)
        job = trials.job_of(whole, trials.tags(sweep, trial.number, parent=parent))
        with Tracked(job, directory, record, uri=mlflow_uri, root=root) as tracked:
            tracked.begin(revision=record["revision"])
            tracked.end(_STATUSES[trial.status])
        if not written:
            directory.record_event(
                "end", code=config.INTERRUPTED, message="killed while it was leaving"
            )


def _check_same(record: dict[str, Any], sweep: Sweep, recipe: Recipe, job: Job, where: str) -> None:
    changed = [
        *config.difference(
            _typed(type(sweep), record["sweep"]), _typed(type(sweep), _plain(sweep))
        ),
        *config.difference(
            _typed(type(recipe), record["recipe"]), _typed(type(recipe), _plain(recipe))
        ),
    ]
    lines = [str(change) for change in changed]
    if record["manifest"] != job.manifest_hash:
        lines.append(f"manifest: {record['manifest'][:12]} -> {job.manifest_hash[:12]}")
    if lines:
        raise UserError(
            f"{where} was started otherwise:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nits trials could not be compared: keep the old values, choose another run.name, or run.fresh=true "
            "to delete it and its trials"
        )


def _plain(recipe: Any) -> dict[str, Any]:
    """As it may be kept, without secrets."""
    return resuming.without_secrets(recipe)


def _typed(schema: type, content: dict[str, Any]) -> Any:
    return pydantic.TypeAdapter(schema).validate_python(content)
