"""Where the weights that a run starts from (``head.init``) come from, and how they stay the same for its whole life.

    NAME                     a run in run.storage
    FOLDER, s3://...         a run's folder, or an export's
    FILE                     .safetensors, or an authors' .pth; local or s3://
    models:/NAME@ALIAS       a registered model, also models:/NAME/VERSION
    runs:/ID/PATH            an artifact of an MLflow run: an export's folder, or a weight file; of a run of ours, which
                             keeps its export in its own folder, also what is there (runs:/ID/export)

The driver ``settle``s it once: an alias becomes the version it leads to, since it may lead elsewhere tomorrow; and what
lies in MLflow is copied to ``<run.storage>/imports``, since workers reach that and need not reach MLflow. Workers
``read`` what was settled. A copy that is there is used again.

Nothing from there is unpickled (``videomae.weights``), and of MLflow's folders only weights and their description are
taken, no code.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from clips import storage
from tubelet import handover, registry, tracking
from tubelet.config import UserError
from tubelet.refusals import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MODELS, _RUNS = "models:/", "runs:/"


def settle(init: str, *, root: str) -> str:
    """Name the origin so that it stays the same, and see to it that workers can read it.

    Args:
        init: as the user wrote it.
        root: ``run.storage``.

    Returns:
        What ``read`` takes and what belongs into the run's recipe.

    Raises:
        UserError: MLflow has no such model, alias, version, run or artifact; the message lists those there are.
    """
    root = storage.absolute(root)
    if init.startswith(_MODELS):
        return _settle_model(init, root=root)
    if init.startswith(_RUNS):
        return _settle_artifact(init, root=root)
    if not _is_name(init):
        return storage.absolute(init)
    runs = storage.list_names(root)
    if init not in runs:
        raise UserError(
            f"no run of this name in {storage.redact(root)}, and no such file; there is "
            f"{', '.join(n for n in runs if storage.exists(storage.join(root, f'{n}/run.json'))) or 'none'}"
        )
    return init


def read(init: str, *, root: str) -> dict[str, Tensor]:
    """Read weights whose origin was settled.

    Raises:
        ValueError: there are none.
    """
    return handover.read_weights(place_of(init, root=storage.absolute(root)))


def place_of(init: str, *, root: str) -> str:
    """Where a settled origin is: a folder or a file that needs no MLflow."""
    for scheme in (_MODELS, _RUNS):
        if init.startswith(scheme):
            return storage.join(root, f"imports/{scheme[:-2]}/{init.removeprefix(scheme)}")
    return storage.join(root, init) if _is_name(init) else init


def _is_name(init: str) -> bool:
    """Whether it can only be the name of a run: a file or folder of this name comes first."""
    is_place = "/" in init or init.endswith(handover.WEIGHT_SUFFIXES)
    return not is_place and not storage.exists(storage.absolute(init))


# --- what lies in MLflow ---------------------------------------------------------------------


def _settle_model(init: str, *, root: str) -> str:
    uri = tracking.resolve_uri(root)
    name, version = registry.resolve(init, uri=uri)
    settled = f"{_MODELS}{name}/{version}"
    place = place_of(settled, root=root)
    if not _is_complete(place):
        with tempfile.TemporaryDirectory() as folder:
            export, _ = registry.fetch(settled, folder, uri=uri)
            handover.copy(export, place)
    return settled


def _settle_artifact(init: str, *, root: str) -> str:
    run_id, _, path = init.removeprefix(_RUNS).strip("/").partition("/")
    settled = f"{_RUNS}{run_id}/{path}".rstrip("/")
    if ".." in path.split("/"):
        raise UserError("the path of an artifact goes down, never up: write runs:/ID/PATH")
    place = place_of(settled, root=root)
    if _is_complete(place):
        return settled
    uri = tracking.resolve_uri(root)
    client = tracking.connect(uri)
    wanted = _wanted(path)
    missing = wanted - _artifacts(client, uri, run_id=run_id, folder=_folder(path))
    if missing:
        own = _own_folder(client, run_id, path)
        if own is not None:
            return own
        raise UserError(_not_there(client, run_id, path, missing))
    _download(uri, run_id, path, place)
    return settled


def _folder(path: str) -> str:
    return path.rpartition("/")[0] if path.endswith(handover.WEIGHT_SUFFIXES) else path


def _wanted(path: str) -> set[str]:
    """Artifacts that make up the weights at a path."""
    if path.endswith(handover.WEIGHT_SUFFIXES):
        return {path}
    return {f"{path}/{name}".lstrip("/") for name in handover.FILES}


def _artifacts(client: "MlflowClient", uri: str, *, run_id: str, folder: str) -> set[str]:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        raise UserError(f"MLflow at {redact(uri)} has no run {run_id!r}") from error
    return {file.path for file in client.list_artifacts(run_id, folder or None)}


def _own_folder(client: "MlflowClient", run_id: str, path: str) -> str | None:
    """Where a run of ours keeps its export, if that is what the path names."""
    said = client.get_run(run_id).data.params
    if not said.get("run.storage") or not said.get("run.name"):
        return None
    run = storage.join(storage.absolute(said["run.storage"]), said["run.name"])
    place = storage.join(run, path or "export")
    return place if _is_complete(place) else None


def _not_there(client: "MlflowClient", run_id: str, path: str, missing: set[str]) -> str:
    folder = _folder(path)
    found = [file.path for file in client.list_artifacts(run_id, folder or None)]
    return (
        f"run {run_id} has no {' and no '.join(sorted(missing))} among its artifacts; in "
        f"{folder or 'its top folder'} there is {', '.join(found) or 'nothing'}; name a folder with "
        "model.safetensors and config.json, or a .safetensors or .pth file"
    )


def _download(uri: str, run_id: str, path: str, place: str) -> None:
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as folder:
        for name in _wanted(path):
            download_artifacts(run_id=run_id, artifact_path=name, dst_path=folder, tracking_uri=uri)
        if path.endswith(handover.WEIGHT_SUFFIXES):
            storage.write_bytes(place, (Path(folder) / Path(path).name).read_bytes())
        else:
            handover.copy(folder, place)


def _is_complete(place: str) -> bool:
    is_file = place.endswith(handover.WEIGHT_SUFFIXES)
    return storage.exists(place if is_file else storage.join(place, handover.FILES[-1]))
