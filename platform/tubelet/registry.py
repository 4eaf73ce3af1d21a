"""From an exported classifier to a registered model, and back by its alias.

What is registered is an MLflow "models from code" pyfunc (`served_model.py`) with the export
(safetensors and JSON), copies of the packages `videomae` and `clips`, a signature, an input
example, pinned requirements and a model card. It holds no pickle, and loads with MLflow's pickle
switch off and without this repository.

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
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import clips
import videomae
from tubelet.config import UserError
from tubelet.tracking import connect, redact
from videomae import Export

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


class RegistryError(UserError):
    """There is no such model; the message lists those there are."""


@dataclass(frozen=True)
class Card:
    """What the model card says beside what the export says itself."""

    metrics: Mapping[str, float]
    """Held-out results, by metric name."""
    manifest: str
    """Hash of the data manifest the model was fine-tuned on."""
    recipe: str
    """The resolved recipe, as YAML."""
    lineage: str
    """Where the encoder came from, for example the pretraining run."""
    licence: str = "code Apache-2.0; the weights are bound by the terms of the training videos"


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
    text = _card_text(export, card, model_uri=f"models:/{name}@{alias}", run_id=run_id)
    views_of_video = {"stride": stride, "views": views, "crops": crops}
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
        tags={metric: f"{value:.6g}" for metric, value in card.metrics.items()},
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

    name, number = _resolve(client, model_uri, uri=uri)
    location = client.get_model_version_download_uri(name, number)
    with _mlflows_own_warnings_ignored():
        from mlflow.pyfunc import load_model

        return load_model(download_artifacts(location, tracking_uri=uri))


def fetch(model_uri: str, folder: str | Path, *, uri: str) -> tuple[Path, dict[str, int]]:
    """Copy a registered model's export to a local folder, for those who run it without MLflow.

    Args:
        model_uri: `models:/<name>@<alias>` or `models:/<name>/<version>`.
        folder: where to.
        uri: MLflow tracking URI.

    Returns:
        The export's folder, and how its videos are looked at: `stride`, `views`, `crops`.

    Raises:
        RegistryError: there is no such model, alias or version.
    """
    client = connect(uri)
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model

    name, number = _resolve(client, model_uri, uri=uri)
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


def _resolve(client: "MlflowClient", model_uri: str, *, uri: str) -> tuple[str, str]:
    matched = _MODEL_URI.fullmatch(model_uri)
    if matched is None:
        raise RegistryError(
            f"{model_uri!r} is no registered model: write models:/NAME@ALIAS or "
            "models:/NAME/VERSION"
        )
    name, alias, number = matched.groups()
    models = {model.name: model for model in client.search_registered_models()}
    if name not in models:
        raise RegistryError(
            f"no model {name!r} is registered at {redact(uri)}; there is {_list(models)}"
        )
    if alias is not None:
        aliases = models[name].aliases
        if alias not in aliases:
            raise RegistryError(f"model {name!r} has no alias {alias!r}; there is {_list(aliases)}")
        return name, str(aliases[alias])
    found = client.search_model_versions(f"name = '{name}'")
    numbers = sorted((str(each.version) for each in found), key=int)
    if number not in numbers:
        raise RegistryError(f"model {name!r} has no version {number}; there is {_list(numbers)}")
    return name, number


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
        input_example=(pandas.DataFrame({"video_path": ["videos/one.mp4"]}), {"top_k": 5}),
        pip_requirements=[f"{each}=={version(each).split('+')[0]}" for each in REQUIREMENTS],
        model_config=dict(views),
        mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
    )
    for cache in made.rglob("__pycache__"):
        shutil.rmtree(cache)


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


def _card_text(export: Export, card: Card, *, model_uri: str, run_id: str) -> str:
    config = export.config
    names = export.class_names or ()
    shown = ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")
    rows = "\n".join(f"| {metric} | {value:.4g} |" for metric, value in card.metrics.items())
    return f"""Video classifier: VideoMAE ({config.preset}), {config.frames} frames of {config.image_size} x \
{config.image_size} pixels, {export.num_classes} classes{": " + shown if shown else ""}.

| held-out metric | value |
|---|---|
{rows}

| | |
|---|---|
| encoder from | {card.lineage} |
| MLflow run | {run_id} |
| data manifest | {card.manifest} |
| licence | {card.licence} |

## Use

    model = mlflow.pyfunc.load_model("{model_uri}")
    model.predict([{{"video_path": "one.mp4"}}], params={{"top_k": 5}})

A row has `video_path` (a path or URI) or `video` (the file's bytes). The answer has `labels`,
likeliest first, and their `probabilities`.

## Recipe

```yaml
{redact(card.recipe).rstrip()}
```
"""
