"""One MLflow run per logical run: find or create it, describe it, say whose fault a failure is.

A logical run (`run.name`) is one MLflow run however often it is started again, and also when the
server was away at its first start: it carries the tag `tubelet.key`, a UUID that the caller keeps
in the run directory, and `claim` finds it again by that before it creates one. Training does not
come through here but through `tubelet.shipping`, which waits out what `start_run` gives up on.

Where: `MLFLOW_TRACKING_URI` when set; otherwise an SQLite file and an artifact folder under
`run.storage`, which need no server. Experiments get an explicit artifact location, since MLflow's
default is the working directory of whoever came first.

What a run holds: experiment `tubelet/<job>`, name `run.name`, tags
`tubelet.{key,run,attempt,manifest,revision}`, the flattened recipe as parameters (written once, as
MLflow's are immutable; a value that a later attempt changed is told in the tag `tubelet.changed`)
and the whole recipe as the artifact `recipe.yaml`. User names, passwords and queries of URIs are
replaced by `***` in everything that is written.

Cost: the first call on a new SQLite file creates its tables, 4 to 10 s; later calls take
milliseconds. `start_run` fails within some 15 s when the server does not answer; `finish_run` and
`log_artifacts` only warn, because finished work must not fail on its description.
"""

import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from tubelet.refusals import DATABASES, TrackingError, first_line, reason, redact, refusal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

LONGEST_KEY = 250
LONGEST_VALUE = 500
PARAMETERS_PER_BATCH = 100
REQUEST_RETRIES = "3"
KEY = "tubelet.key"
TWIN = "tubelet.twin_of"


Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
"""KILLED: interrupted, resumable."""


@dataclass(frozen=True)
class Identity:
    """What makes an MLflow run the one of a logical run."""

    job: str
    """"pretrain", "finetune", ...; the experiment is `tubelet/<job>`."""
    name: str
    """`run.name`."""
    storage: str
    """`run.storage`; artifacts of a database's runs go to `<storage>/mlartifacts`."""
    key: str
    """Unlike that of any other logical run."""
    run_id: str | None = None
    """Where it is known already."""


@dataclass(frozen=True)
class Description:
    """What is told about a run, whatever its metrics are."""

    parameters: Mapping[str, object]
    """The flattened recipe, dotted key to value."""
    manifest: str
    """Hash of the data manifest."""
    revision: str
    """Of the code."""
    began_with: Mapping[str, object] = field(default_factory=dict)
    """Parameters of the run's first start, where others may have come to be since."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Beside those that every run has."""


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
    manifest: str,
    revision: str,
    key: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Create and describe the MLflow run of a job that ships nothing in the background.

    Args:
        uri: tracking URI, as `resolve_uri` gives it.
        storage: see `Identity`.
        job: see `Identity`.
        name: see `Identity`.
        parameters: see `Description`.
        recipe: the resolved recipe as YAML.
        manifest: see `Description`.
        revision: see `Description`.
        key: see `Identity`; a run that has it already goes on. None: a new run.
        tags: see `Description`.

    Returns:
        The run id.

    Raises:
        TrackingError: the server does not answer, or the experiment was deleted.
    """
    identity = Identity(job, name, storage, key=key or uuid.uuid4().hex)
    try:
        client = connect(uri)
        run_id = claim(client, uri, identity)
        description = Description(parameters, manifest, revision, tags=tags or {})
        describe(client, run_id, identity, description)
        if client.get_run(run_id).info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        client.log_text(run_id, redact(recipe), "recipe.yaml")
    except Exception as error:
        raise refusal(error, uri) or TrackingError(
            f"MLflow at {redact(uri)} does not answer ({reason(error)}): check that it runs and that "
            "MLFLOW_TRACKING_URI names it, or unset that to log to a file under the storage"
        ) from error
    return run_id


def claim(client: "MlflowClient", uri: str, identity: Identity) -> str:
    """The id of the run's MLflow run, which is created when there is none.

    A request to create that was never answered may have been heard, even later than the next one.
    So whoever creates looks again; of several runs with one key the one that has been described
    counts, or else the first, and the others, which hold nothing, are deleted.
    """
    mine = _runs_with_key(client, look(client, uri, identity), identity.key)
    if identity.run_id is None and not mine:
        experiment = _experiment(
            client, uri, storage=identity.storage, name=_experiment_of(identity)
        )
        client.create_run(experiment, run_name=identity.name, tags={KEY: identity.key})
        mine = _runs_with_key(client, experiment, identity.key)
    chosen = identity.run_id or min(mine, key=_precedence).info.run_id
    for run in mine:
        if run.info.run_id != chosen and not _described(run):
            client.set_tag(run.info.run_id, TWIN, chosen)
            client.delete_run(run.info.run_id)
    return chosen


def look(client: "MlflowClient", uri: str, identity: Identity) -> str | None:
    """Ask, and change nothing; returns the id of the experiment if it exists.

    Raises:
        TrackingError: the run or its experiment was deleted.
    """
    name = _experiment_of(identity)
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the MLflow experiment {name!r} at {redact(uri)} was deleted: restore it "
            f"(mlflow experiments restore --experiment-id {found.experiment_id}) or remove it for "
            "good (mlflow gc)"
        )
    if identity.run_id is not None:
        _check_known(client, uri, run_id=identity.run_id)
    return None if found is None else found.experiment_id


def describe(
    client: "MlflowClient", run_id: str, identity: Identity, description: Description
) -> None:
    """Write tags and parameters; what is there already stays."""
    for parameters in (description.began_with, description.parameters):
        if parameters:
            _log_parameters(client, run_id, parameters)
    tags = {
        **description.tags,
        KEY: identity.key,
        "tubelet.manifest": description.manifest,
        "tubelet.revision": description.revision,
        "tubelet.run": identity.name,  # last: it marks the run as described
    }
    for key, value in tags.items():
        client.set_tag(run_id, key, value)


def has_ended(uri: str, *, run_id: str | None) -> bool:
    """Whether MLflow knows of a run that has ended."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return False
    try:
        return connect(uri).get_run(run_id).info.status != "RUNNING"
    except MlflowException:  # whoever then wants to tell it so is told what is wrong
        return False


def finish_run(uri: str, *, run_id: str, status: Status) -> bool:
    """Set the run's final status; False when MLflow refused."""
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


def redacted(parameters: Mapping[str, object]) -> dict[str, str]:
    """Parameters as they may be written, cut to what MLflow takes."""
    return {
        key[:LONGEST_KEY]: redact(str(value))[:LONGEST_VALUE] for key, value in parameters.items()
    }


def _local_folder(storage: str) -> Path | None:
    scheme = urlsplit(storage).scheme
    if scheme == "file":
        return Path(urlsplit(storage).path)
    return None if scheme else Path(storage)


def _experiment_of(identity: Identity) -> str:
    return f"tubelet/{identity.job}"


def _experiment(client: "MlflowClient", uri: str, *, storage: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    location = None  # a server's artifact root is its own affair
    if uri.split(":")[0].split("+")[0] in DATABASES:
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
    return found.experiment_id


def _runs_with_key(client: "MlflowClient", experiment: str | None, key: str) -> Sequence["Run"]:
    if experiment is None:
        return []
    return client.search_runs([experiment], filter_string=f"tags.`{KEY}` = '{key}'")


def _described(run: "Run") -> bool:
    return "tubelet.run" in run.data.tags


def _precedence(run: "Run") -> tuple[bool, bool, int, str]:
    deleted_half_way = TWIN in run.data.tags
    return deleted_half_way, not _described(run), run.info.start_time, run.info.run_id


def _check_known(client: "MlflowClient", uri: str, *, run_id: str) -> None:
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


def _log_parameters(client: "MlflowClient", run_id: str, parameters: Mapping[str, object]) -> None:
    from mlflow.entities import Param

    wanted = redacted(parameters)
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
        logger.warning("%s failed at %s: %s", what, redact(uri), first_line(error))
        return False
    return True
