"""One MLflow run per logical run, from the driver's side: create or continue, describe, finish.

A logical run (`run.name`) is one MLflow run however often it is started again: the caller keeps the
run id in the run directory and gives it back. Metrics do not come through here, they go through
`tubelet.spool`.

Where: `MLFLOW_TRACKING_URI` when set; otherwise an SQLite file and an artifact folder under
`run.storage`, which need no server. Experiments get an explicit artifact location, since MLflow's
default is the working directory of whoever came first.

What a run holds: experiment `tubelet/<job>`, name `run.name`, tags
`tubelet.{run,attempt,manifest,revision}`, the flattened recipe as parameters (written once, as
MLflow's are immutable; a value that a later attempt changed is told in the tag `tubelet.changed`)
and the whole recipe as the artifact `recipe.yaml`. User names, passwords and queries of URIs are
replaced by `***` in everything that is written.

Cost: the first call on a new SQLite file creates its tables, 4 to 10 s; later calls take
milliseconds. `start_run` fails within some 15 s when the server does not answer; the calls made
after training only warn, because finished work must not fail on its description.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from tubelet.config import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

LONGEST_KEY = 250
LONGEST_VALUE = 500
PARAMETERS_PER_BATCH = 100
REQUEST_RETRIES = "3"

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
# An "@" ends the userinfo if nothing before it is a path, or if a ":" (user:secret) precedes it:
# pasted secrets contain "/".
_USERINFO = re.compile(r"(://)(?:[^\s/@'\",]+|[^\s/@:'\",]*:[^\s'\",]*)@")
_QUERY = re.compile(r"(://[^\s?'\",]*)\?[^\s'\",]+")


class TrackingError(UserError):
    """MLflow cannot be used as asked; the message says what to set."""


def resolve_uri(storage: str) -> str:
    """Tracking URI of runs stored under `storage`.

    Args:
        storage: `run.storage`, an absolute local folder or a remote URI.

    Raises:
        TrackingError: the storage is remote and no server is named.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    folder = _local_folder(storage)
    if folder is None:
        raise TrackingError(
            f"run.storage is {redact(storage)}, where an SQLite file cannot live: set "
            "MLFLOW_TRACKING_URI to an MLflow server (http://...) or to a database"
        )
    if not folder.is_absolute():
        raise TrackingError(f"run.storage must be an absolute folder here, got {storage!r}")
    return f"sqlite:///{folder / 'mlflow.db'}"


def start_run(
    uri: str,
    *,
    storage: str,
    job: str,
    name: str,
    parameters: Mapping[str, object],
    recipe: str,
    attempt: int,
    manifest: str,
    revision: str,
    run_id: str | None = None,
) -> str:
    """Create the MLflow run of a logical run, or continue it, and describe it.

    Args:
        uri: tracking URI, as `resolve_uri` gives it.
        storage: `run.storage`; artifacts of a database's runs go to `<storage>/mlartifacts`.
        job: "pretrain", "finetune", ...; the experiment is `tubelet/<job>`.
        name: `run.name`.
        parameters: the flattened recipe, dotted key to value.
        recipe: the resolved recipe as YAML.
        attempt: number of this start of the logical run, from 1.
        manifest: hash of the data manifest.
        revision: code revision.
        run_id: MLflow run to continue; None creates one.

    Returns:
        The run id, to be kept in the run directory.

    Raises:
        TrackingError: the server does not answer, or the run or its experiment was deleted.
    """
    tags = {
        "tubelet.run": name,
        "tubelet.attempt": str(attempt),
        "tubelet.manifest": manifest,
        "tubelet.revision": revision,
    }
    try:
        client = connect(uri)
        if run_id is None:
            experiment = _experiment(client, uri, storage=storage, name=f"tubelet/{job}")
            run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        else:
            _continue(client, uri, run_id=run_id)
            for key, value in tags.items():
                client.set_tag(run_id, key, value)
        _log_parameters(client, run_id, parameters)
        client.log_text(run_id, redact(recipe), "recipe.yaml")
    except Exception as error:
        if isinstance(error, TrackingError):
            raise
        raise TrackingError(
            f"MLflow at {redact(uri)} failed ({_first_line(error)}): check that it runs and that "
            "MLFLOW_TRACKING_URI names it, or unset that to log to a file under run.storage"
        ) from error
    return run_id


def finish_run(uri: str, *, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> bool:
    """Set the run's final status (KILLED: interrupted, resumable); False when MLflow refused."""
    return _attempt(
        uri,
        f"setting run {run_id} to {status}",
        lambda client: client.set_terminated(run_id, status),
    )


def log_artifacts(uri: str, *, run_id: str, folder: str | Path, path: str | None = None) -> bool:
    """Copy a local folder's files to the run's artifacts under `path`; False when MLflow refused.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no folder {folder} to log to MLflow")
    return _attempt(
        uri,
        f"logging {folder} to run {run_id}",
        lambda client: client.log_artifacts(run_id, str(folder), path),
    )


def connect(uri: str) -> "MlflowClient":
    """An MLflow client for tracking and registry at `uri`, telemetry off, without chatter."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", REQUEST_RETRIES)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):  # table creation tells of dozens of migrations
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def redact(text: str) -> str:
    """The text with the user name, password and query of every URI in it replaced by `***`."""
    return _QUERY.sub(r"\1?***", _USERINFO.sub(r"\1***@", text))


def _local_folder(storage: str) -> Path | None:
    scheme = urlsplit(storage).scheme
    if scheme == "file":
        return Path(urlsplit(storage).path)
    return None if scheme else Path(storage)


def _experiment(client: "MlflowClient", uri: str, *, storage: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    location = None  # a server's artifact root is its own affair
    if uri.split(":")[0].split("+")[0] in _DATABASES:
        folder = _local_folder(storage)
        root = storage.rstrip("/") if folder is None else folder.as_uri()
        location = f"{root}/mlartifacts/{name}"
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:  # another run was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the MLflow experiment {name!r} at {redact(uri)} was deleted: restore it "
            f"(mlflow experiments restore --experiment-id {found.experiment_id}) or remove it for "
            "good (mlflow gc)"
        )
    return found.experiment_id


def _continue(client: "MlflowClient", uri: str, *, run_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        stage = client.get_run(run_id).info.lifecycle_stage
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        stage = "missing"
    if stage != "active":
        raise TrackingError(
            f"the run's MLflow run {run_id} is {stage} at {redact(uri)}: point MLFLOW_TRACKING_URI "
            "at the store it was started with, restore it there, or start anew with run.fresh=true"
        )
    client.update_run(run_id, status="RUNNING")


def _log_parameters(client: "MlflowClient", run_id: str, parameters: Mapping[str, object]) -> None:
    from mlflow.entities import Param

    wanted = {
        key[:LONGEST_KEY]: redact(str(value))[:LONGEST_VALUE] for key, value in parameters.items()
    }
    run = client.get_run(run_id).data
    present = run.params
    absent = [Param(key, value) for key, value in wanted.items() if key not in present]
    for first in range(0, len(absent), PARAMETERS_PER_BATCH):
        client.log_batch(run_id, params=absent[first : first + PARAMETERS_PER_BATCH])
    changed = "\n".join(
        f"{key}: {present[key]} -> {value}"
        for key, value in wanted.items()
        if present.get(key, value) != value
    )
    if changed != run.tags.get("tubelet.changed", ""):
        client.set_tag(run_id, "tubelet.changed", changed)


def _attempt(uri: str, what: str, call: Callable[["MlflowClient"], Any]) -> bool:
    try:
        call(connect(uri))
    except Exception as error:
        logger.warning("%s failed at %s: %s", what, redact(uri), _first_line(error))
        return False
    return True


def _first_line(error: Exception) -> str:
    return redact((str(error).strip() or type(error).__name__).splitlines()[0])
