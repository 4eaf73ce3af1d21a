"""From an exported classifier to a registered model, and back by its alias.

What is registered is an MLflow "models from code" pyfunc (`served_model.py`) with the export
(safetensors and JSON), copies of the packages `videomae` and `clips`, a signature, an input
example (a real, tiny video), pinned requirements and a model card. It holds no pickle, and loads
with MLflow's pickle switch off and without this repository.

The alias moves last: whoever loads `models:/<name>@<alias>` gets the old version or the whole new
one. MLflow's process-wide tracking URI and its active run are not touched.

Cost: a copy of the weights; a second or two.
"""

import contextlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import clips
import videomae
from clips import synthetic
from tubelet import pace
from tubelet.config import UserError
from tubelet.model_card import Card, card_text, sha256
from tubelet.tracking import connect, redact
from videomae.weights.export import WEIGHTS_FILE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import PyFuncModel

REQUIREMENTS = tuple(
    [
        "mlflow",
        "pandas",
        "torch",
        "numpy",
        "safetensors",
        "av",
        "pyarrow",
        "tenacity",
        "fsspec",
        "s3fs",
        "boto3",
    ]
)
"""What `served_model.py`, `videomae` and `clips` import."""
_MODEL_URI = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))")
_MOST_LISTED = 1000


class RegistryError(UserError):
    """There is no such model; the message lists those there are."""


def register(
    export_folder: str | Path,
    *,
    uri: str,
    name: str,
    alias: str,
    run_id: str,
    card: Card,
    stride: int,
    views: int = 1,
    crops: int = 1,
) -> str:
    """Make a new version of a registered model and point an alias at it.

    Args:
        export_folder: a classifier written by `videomae.save_export`.
        uri: MLflow tracking URI.
        name: registered model; made when there is none.
        alias: "champion", "challenger", ...; moved from the version that has it.
        run_id: MLflow run that made the weights.
        card: for the model card; metrics also become tags of the version.
        stride: frames of the video between two frames of a clip, as the model was evaluated.
        views: clips per video.
        crops: squares per clip.

    Returns:
        `models:/<name>@<alias>`.

    Raises:
        ValueError: the export is not a classifier's.
    """
    from mlflow.exceptions import MlflowException

    export = videomae.load_export(export_folder)
    if export.kind != "classifier":
        raise UserError(
            f"{export_folder} holds a {export.kind} model: only a fine-tuned classifier gives "
            "labels and can be registered"
        )
    weights = sha256(Path(export_folder) / WEIGHTS_FILE)
    text = card_text(
        export, card, model_uri=f"models:/{name}@{alias}", run_id=run_id, weights=weights
    )
    views_of_video = {"stride": stride, **pace.asked(export.extra), "views": views, "crops": crops}
    client = connect(uri)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    experiment = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment, name=name, source_run_id=run_id)
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "model"
            _save(
                made,
                export_folder,
                name=name,
                text=text,
                views=views_of_video,
                ids=(model.model_id, run_id),
            )
            client.log_model_artifacts(model.model_id, str(made))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    _link(client, run_id=run_id, model_id=model.model_id)
    made_version = client.create_model_version(
        name,
        source=model.artifact_location,  # "models:/<id>" would look in the process-wide store
        run_id=run_id,
        tags={
            **{metric: f"{value:.6g}" for metric, value in card.metrics.items()},
            "tubelet.manifest": card.manifest,
            "tubelet.weights": weights,
            "tubelet.lineage": redact(card.lineage),
            "tubelet.licence": card.licence,
            "tubelet.revision": card.revision,
        },
        description=text,
        model_id=model.model_id,
    )
    client.set_registered_model_alias(name, alias, made_version.version)
    return f"models:/{name}@{alias}"


def load(model_uri: str, *, uri: str) -> "PyFuncModel":
    """Load a registered model, with pickle forbidden in this process from here on.

    Its `predict` takes a pandas DataFrame or a list of records with `video_path` or `video`, and
    `params={"top_k": n}`.

    Args:
        model_uri: `models:/<name>@<alias>` or `models:/<name>/<version>`.
        uri: MLflow tracking URI.

    Raises:
        RegistryError: there is no such model, alias or version.
    """
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    client = connect(uri)
    from mlflow.artifacts import download_artifacts

    name, number = resolve(model_uri, uri=uri)
    location = client.get_model_version_download_uri(name, number)
    with _mlflows_own_warnings_ignored():
        from mlflow.pyfunc import load_model

        return load_model(download_artifacts(location, tracking_uri=uri))


def resolve(model_uri: str, *, uri: str) -> tuple[str, str]:
    """Name and version that an address leads to now; an alias may lead elsewhere tomorrow.

    Args:
        model_uri: `models:/<name>@<alias>` or `models:/<name>/<version>`.
        uri: MLflow tracking URI.

    Raises:
        RegistryError: there is no such model, alias or version; the message lists those there are.
    """
    matched = _MODEL_URI.fullmatch(model_uri)
    if matched is None:
        raise RegistryError(
            f"{model_uri!r} is no registered model: write models:/NAME@ALIAS or "
            "models:/NAME/VERSION"
        )
    name, alias, number = matched.groups()
    there = aliases(name, uri=uri)
    if alias is not None:
        if alias not in there:
            raise RegistryError(f"model {name!r} has no alias {alias!r}; there is {_list(there)}")
        return name, there[alias]
    found = connect(uri).search_model_versions(f"name = '{name}'", max_results=_MOST_LISTED)
    numbers = sorted((str(each.version) for each in found), key=int)
    if number not in numbers:
        raise RegistryError(f"model {name!r} has no version {number}; there is {_list(numbers)}")
    return name, number


def aliases(name: str, *, uri: str) -> dict[str, str]:
    """Aliases of a registered model, each with its version.

    Raises:
        RegistryError: there is no such model.
    """
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise RegistryError(
            f"no model {name!r} is registered at {redact(uri)}; there is {_list(names(uri))}"
        ) from error
    return {alias: str(number) for alias, number in model.aliases.items()}


def names(uri: str) -> list[str]:
    """Names of the registered models, the first thousand of them."""
    found = connect(uri).search_registered_models(max_results=_MOST_LISTED)
    return [model.name for model in found]


def fetch(model_uri: str, folder: str | Path, *, uri: str) -> tuple[Path, dict[str, Any]]:
    """Copy a registered model's export to a local folder, for those who run it without MLflow.

    Args:
        model_uri: `models:/<name>@<alias>` or `models:/<name>/<version>`.
        folder: where to.
        uri: MLflow tracking URI.

    Returns:
        The export's folder, and how its videos are looked at: `stride`, `sampling`, `fps`, `views`, `crops`.

    Raises:
        RegistryError: there is no such model, alias or version.
    """
    client = connect(uri)
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model

    name, number = resolve(model_uri, uri=uri)
    location = client.get_model_version_download_uri(name, number)
    local = download_artifacts(location, dst_path=str(folder), tracking_uri=uri)
    flavour = Model.load(local).flavors["python_function"]
    export = Path(local) / flavour["artifacts"]["export"]["path"]
    return export, dict(flavour["config"])


@contextlib.contextmanager
def _mlflows_own_warnings_ignored() -> Iterator[None]:
    """Importing `mlflow.pyfunc` warns of MLflow's own type hints, which nobody here can change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\.")
        yield


def _list(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(names) if names else "none"


def _save(
    made: Path,
    export_folder: str | Path,
    *,
    name: str,
    text: str,
    views: Mapping[str, int],
    ids: tuple[str, str],
) -> None:
    """Write the pyfunc model's folder."""
    import pandas
    from mlflow.models import Model

    with _mlflows_own_warnings_ignored():
        from mlflow.pyfunc import save_model

    card = made.parent / "README.md"
    card.write_text(f"# {name}\n\n{text}")
    model_id, run_id = ids
    save_model(
        made,
        python_model=str(Path(__file__).with_name("served_model.py")),
        artifacts={"export": str(export_folder), "card": str(card)},
        code_paths=[str(Path(package.__path__[0])) for package in (videomae, clips)],
        signature=_signature(),
        input_example=(pandas.DataFrame({"video": [_example()]}), {"top_k": 5}),
        pip_requirements=[f"{each}=={version(each).split('+')[0]}" for each in REQUIREMENTS],
        model_config=dict(views),
        mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
    )
    for cache in made.rglob("__pycache__"):
        shutil.rmtree(cache)


def _example() -> bytes:
    """A video of a kilobyte or two, so that the input example can be sent to a server as it is."""
    config = synthetic.MotionConfig(size=32, frames=16, fps=16, gop=16)
    return synthetic.encode(
        synthetic.motion_frames(0, seed=0, config=config), synthetic.Encoding(fps=16, gop=16)
    )


def _signature() -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "video_path", required=False),
                ColSpec(DataType.binary, "video", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(Array(DataType.string), "labels"),
                ColSpec(Array(DataType.double), "probabilities"),
            ]
        ),
        params=ParamSchema([ParamSpec("top_k", DataType.long, 5)]),
    )


def _link(client: "MlflowClient", *, run_id: str, model_id: str) -> None:
    """Show the model on its run's page."""
    from mlflow.entities import LoggedModelOutput

    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
