"""``tubelet register``: from a finished fine-tuning run's folder to a version in the registry.

Everything that the model card says is read where it was written: the run's record and recipe, its export, its MLflow
run. Of the model that the run started from the card gives name and hash, so that the lineage holds when the name leads
elsewhere; of a pretraining run its MLflow run and its data besides.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from clips import storage
from tubelet import handover, models, origins, registry, tracking
from tubelet.config import UserError
from tubelet.model_card import Card, sha256
from tubelet.refusals import redact
from tubelet.run_directory import RunDirectory
from videomae.weights.export import WEIGHTS_FILE


@dataclass(frozen=True)
class Register:
    """Arguments of ``tubelet register RUN``."""

    run: str
    """Folder of a finished fine-tuning run, ``<run.storage>/<run.name>``."""
    name: str | None = None
    """Of the registered model; null: the run's name."""
    alias: str = "challenger"
    """Moved to the new version. Users load ``champion``, which ``tubelet promote`` moves."""
    draw: Annotated[int, Ge(1)] | None = None
    """Of a run with several draws of labels: which one's model."""
    views: Annotated[int, Ge(1)] = 1
    """Clips spread over each video, whenever the model is asked."""
    crops: Annotated[int, Ge(1)] = 1
    """Squares cut from each clip along its long side."""
    licence: str = Card.licence
    """For the model card: what the weights may be used for."""


@dataclass(frozen=True)
class Registered:
    """What came of it."""

    model_uri: str
    version: str


def register(asked: Register) -> Registered:
    """Register a run's model.

    Raises:
        UserError: the folder holds no finished run of a classifier, or MLflow does not have that run.
    """
    run = RunDirectory(storage.absolute(asked.run))
    record, root = _record(run), run.uri.rpartition("/")[0]
    uri = tracking.resolve_uri(root)
    place = run.uri if asked.draw is None else run.path("export", f"draw_{asked.draw}")
    name = asked.name or record["name"]
    with tempfile.TemporaryDirectory() as scratch:
        found = models.find(place, storage_root=root, folder=Path(scratch))
        if len(found) > 1:
            raise UserError(
                f"{storage.redact(run.uri)} holds {len(found)} models, one for each draw of labels: choose one with "
                f"draw=1 to draw={len(found)}"
            )
        card = Card(
            metrics={} if asked.draw else _metrics(uri, record["mlflow_run_id"]),
            manifest=record["manifest"],
            recipe=storage.read_bytes(run.path("recipe.yaml")).decode(),
            lineage=lineage(record["recipe"].get("head", {}).get("init"), root=root),
            licence=asked.licence,
            revision=record["revision"],
        )
        model_uri = registry.register(
            handover.fetch(found[0].folder, Path(scratch) / "export"),
            uri=uri,
            name=name,
            alias=asked.alias,
            run_id=record["mlflow_run_id"],
            card=card,
            stride=found[0].stride,
            views=asked.views,
            crops=asked.crops,
        )
    return Registered(model_uri, registry.aliases(name, uri=uri)[asked.alias])


def lineage(init: str | None, *, root: str) -> str:
    """Where a run's weights began, in words: what it was, and the hash of the file.

    Args:
        init: ``head.init`` as the run's recipe keeps it.
        root: ``run.storage``.
    """
    if init is None:
        return "random weights"
    place = origins.place_of(init, root=root)
    words = [redact(init)]
    record = RunDirectory(place.removesuffix("/export")).read_json("run.json")
    if record is not None:
        words.append(f"{record['job']} run {record['name']}")
        if record.get("mlflow_run_id"):
            words.append(f"MLflow run {record['mlflow_run_id']}")
        words.append(f"data manifest {record['manifest']}")
    for file in (place, *(storage.join(p, WEIGHTS_FILE) for p in (place, f"{place}/export"))):
        if file.endswith(handover.WEIGHT_SUFFIXES) and storage.exists(file):
            words.append(f"SHA-256 of its weights {_hash(file)}")
            break
    return ", ".join(words)


def _hash(file: str) -> str:
    if storage.is_local(file):
        return sha256(storage.local_path(file))
    with tempfile.NamedTemporaryFile() as copy:
        copy.write(storage.read_bytes(file))
        copy.flush()
        return sha256(copy.name)


def _record(run: RunDirectory) -> dict[str, Any]:
    """The run's record, if it can be registered."""
    record, where = run.read_json("run.json"), storage.redact(run.uri)
    if record is None:
        names = storage.list_names(run.uri)
        raise UserError(
            f"{where} holds no run (no run.json; there is: {', '.join(names[:5]) or 'nothing'}); name a run's folder, "
            "<run.storage>/<run.name>"
        )
    if record["job"] != "finetune":
        raise UserError(
            f"{where} is a {record['job']} run, whose model has no classes: fine-tune it first (jobs/finetune.py)"
        )
    if run.read_json("finished.json") is None:
        raise UserError(f"{where} is not finished: the command that started it goes on with it")
    if not record.get("mlflow_run_id"):
        raise UserError(
            f"MLflow does not have the run of {where} yet: the command that trained it sends it when MLflow answers"
        )
    return record


def _metrics(uri: str, run_id: str) -> dict[str, float]:
    """What the run's own evaluations gave last."""
    told = tracking.connect(uri).get_run(run_id).data.metrics
    return {name: value for name, value in told.items() if name.startswith("eval/")}
