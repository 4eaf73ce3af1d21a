"""Whether a job may begin a run, go on with it, or replace it: what the folder's record says against what is asked.

Nothing is changed here, so a refusal costs nothing.
"""

import json
from dataclasses import asdict
from typing import Any

import pydantic

from clips import storage
from tubelet import cluster, config, tracking
from tubelet.config import UserError
from tubelet.fit import Job
from tubelet.run_directory import FORMAT_VERSION, KEPT, RunDirectory


def new(job: Job) -> dict[str, Any]:
    """The record of a run that begins."""
    return {
        "version": FORMAT_VERSION,
        "job": job.kind,
        "name": job.recipe.run.name,
        "manifest": job.manifest_hash,
        "revision": cluster.revision(),
        "starts": 0,
        "plan": plan_of(job),
        "recipe": without_secrets(job.recipe),
    }


def fresh(directory: RunDirectory, job: Job) -> dict[str, Any]:
    """A new record for a folder that may be cleared: it holds a run, or nothing but logs."""
    names = storage.list_names(directory.uri)
    others = [name for name in names if name not in KEPT]
    if others and "run.json" not in names:
        raise UserError(
            f"run.fresh=true deletes a run, but {storage.redact(directory.uri)} holds {others[0]} and no run: "
            f"choose another run.name, or empty it yourself"
        )
    return new(job)


def resumed(directory: RunDirectory, job: Job) -> dict[str, Any]:
    """The run's record: a new one, or the existing one if this job may continue it."""
    record = directory.read_json("run.json")
    if record is None:
        return new(job)
    where = storage.redact(directory.uri)
    if record["version"] > FORMAT_VERSION:
        raise UserError(
            f"{where} was written by a newer release (format version {record['version']}, this one reads "
            f"{FORMAT_VERSION}): resume it with that release, or choose another run.name"
        )
    if record["job"] != job.kind:
        raise UserError(
            f"{where} holds a {record['job']} run: choose another run.name, or run.fresh=true to delete it"
        )
    if record["manifest"] != job.manifest_hash:
        raise UserError(
            f"{where} was started on other data (manifest {record['manifest'][:12]}, now {job.manifest_hash[:12]}): "
            f"give it the manifest it began with, choose another run.name, or run.fresh=true to delete it"
        )
    schema = pydantic.TypeAdapter(type(job.recipe))
    now = without_secrets(job.recipe)
    changed = config.difference(
        *(schema.validate_json(json.dumps(r)) for r in (record["recipe"], now))
    )
    refused = [c for c in changed if c.key not in job.recipe.resume.allow]
    if refused:
        raise UserError(
            f"{where} was started with another recipe:\n"
            + "\n".join(f"  {c}" for c in refused)
            + "\nkeep the old values, choose another run.name, run.fresh=true to delete it, or allow the change"
            f" with 'resume.allow=[{', '.join(c.key for c in refused)}]'"
        )
    finished = directory.read_json("finished.json")
    if finished and is_finished(directory, job) and finished.get("tracked", True):
        raise UserError(
            f"{where} is finished ({finished['step']} steps): choose another run.name, run.fresh=true to delete it, "
            + (
                "or train on with more patience: schedule.patience=null"
                if "patience" in finished
                else "or train on with more epochs: schedule.epochs=N 'resume.allow=[schedule.epochs]'"
            )
        )
    record["recipe"], record["plan"] = now, plan_of(job)
    return record


def is_finished(directory: RunDirectory, job: Job) -> bool:
    """Whether the run has made all the steps that this job asks for; MLflow may still lack some of it."""
    finished = directory.read_json("finished.json")
    if finished is None:
        return False
    patience = job.recipe.schedule.patience
    early = "patience" in finished and patience is not None and patience <= finished["patience"]
    return finished["step"] >= job.plan.ledger.steps or early


def everything_tracked(directory: RunDirectory) -> None:
    """Note that MLflow has all of a finished run."""
    finished = directory.read_json("finished.json")
    assert finished is not None
    finished.pop("tracked", None)
    directory.write_json(finished, "finished.json")


def plan_of(job: Job) -> dict[str, Any]:
    """What the order of samples follows from, for those who have the run's folder alone (``proof``)."""
    return {**asdict(job.plan.ledger), "copies": job.plan.copies}


def without_secrets(recipe: Any) -> dict[str, Any]:
    """The recipe as it may be kept: user names, passwords and queries of URIs replaced."""
    return json.loads(tracking.redact(json.dumps(config.to_dict(recipe))))
