"""The registered model's code: MLflow runs this file whenever the model is loaded.

It travels inside the model (MLflow calls this "models from code": no pickle), beside the folders
`videomae` and `clips` and the exported weights, and imports nothing of tubelet or Ray: the model
loads wherever those two packages' requirements are installed. Only MLflow runs it; nobody imports
it.

Input: a pandas DataFrame, or records, with a column `video_path` (path, `https://` or `s3://`) or
`video` (the encoded bytes). Output: for every row the likeliest labels and their probabilities,
likeliest first. Clips are cut as in evaluation: `views` clips spread evenly over the video times
`crops` squares, without chance, their probabilities averaged.

Behind a server (`mlflow models serve`) only bytes are taken: a stranger's path would be opened with
the server's eyes, its files, its network and its credentials. Who runs the server may allow paths
with `TUBELET_SERVE_PATHS=true` in its environment; a request cannot.

Cost: decoding plus one forward pass per view and crop; one video in memory at a time.

Shapes: V views times crops, T frames, S input size, C channels, K classes.
"""

import os
import sys
from typing import Any

import pandas
import torch
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

import clips
import videomae
from clips import storage

ALLOW_PATHS = "TUBELET_SERVE_PATHS"
"""Environment variable of whoever runs a server: `true` lets requests name files and addresses."""
_SERVERS = ("mlflow.pyfunc.scoring_server.app", "mlserver", "ray.serve", "bentoml")


class BadRequest(MlflowException, ValueError):
    """What a request asks cannot be done; behind MLflow's server it becomes a 400 with this text."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)


class VideoClassifierModel(PythonModel):
    """A fine-tuned classifier that takes videos and gives names."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from the exported weights, on the CPU."""
        export = videomae.load_export(context.artifacts["export"])
        assert export.num_classes is not None
        assert export.pooling is not None
        self.network = videomae.build_classifier(
            export.config, num_classes=export.num_classes, pooling=export.pooling
        ).eval()
        self.network.load_state_dict(export.state_dict)
        self.labels = export.class_names or tuple(map(str, range(export.num_classes)))
        self.several = export.several
        self.model_config = context.model_config

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]: the base is not annotated
        self,
        context: PythonModelContext,
        model_input: pandas.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[dict[str, list]]:
        """Classify every row's video.

        Args:
            context: not used; `load_context` has read it.
            model_input: rows with `video_path` or `video`.
            params: `top_k`, how many labels to give; at most all of them.

        Raises:
            BadRequest: a row names no video, or one that cannot be read, or a path behind a server;
                a `ValueError`.
        """
        top_k = int((params or {}).get("top_k", 5))
        if top_k < 1:
            raise BadRequest(f"top_k={top_k} must be at least 1")
        records = model_input.to_dict("records")
        videos = [_video_of(record, row=row) for row, record in enumerate(records)]
        answers = []
        for row, source in enumerate(videos):
            try:
                probabilities_K = self._classify(source)
            except (clips.DecodeError, clips.StorageError) as error:
                raise BadRequest(f"row {row}, {_name_of(source)}: {error}") from error
            best = probabilities_K.topk(min(top_k, len(self.labels)))
            answers.append(
                {
                    "labels": [self.labels[index] for index in best.indices.tolist()],
                    "probabilities": best.values.tolist(),
                }
            )
        return answers

    @torch.inference_mode()
    def _classify(self, source: str | bytes) -> torch.Tensor:
        config = self.network.config
        name = _name_of(source)
        video = clips.Video(
            uri=name if isinstance(source, bytes) else source,
            video_id=name,
            row=0,
            size=0,
            label=None,
            labels=(),
            start_s=None,
            end_s=None,
            frames=None,
            fps=None,
            duration_s=None,
            width=None,
            height=None,
        )
        frames_VTSSC = clips.load_views(
            video,
            clips.ClipConfig(
                stride=self.model_config["stride"],
                sampling=self.model_config.get("sampling", "strided"),
                fps=self.model_config.get("fps"),
            ),
            frames=config.frames,
            size=config.image_size,
            views=self.model_config["views"],
            crops=self.model_config["crops"],
            source=source if isinstance(source, bytes) else None,
        )
        logits_VK = self.network(videomae.normalise(torch.from_numpy(frames_VTSSC)))
        return videomae.class_probabilities(logits_VK, several=self.several).mean(0)


def _video_of(record: dict[Any, Any], *, row: int) -> str | bytes:
    """A row's video: its path or URI, or its bytes."""
    source, path = record.get("video"), record.get("video_path")
    if isinstance(path, str) and _is_served() and not _paths_are_allowed():
        raise BadRequest(
            f"row {row} has a `video_path`, and this server opens no paths or URLs for its callers: "
            "send the file's bytes as `video` (base64 in JSON). Who runs the server can allow paths "
            f"with {ALLOW_PATHS}=true in its environment"
        )
    if isinstance(source, bytes) and isinstance(path, str):
        raise BadRequest(f"row {row} has both `video` and `video_path`: give one of them")
    if isinstance(source, bytes):
        return source
    if isinstance(path, str):
        return path
    raise BadRequest(
        f"row {row} has neither `video_path` (a path or URI) nor `video` (the file's bytes); its "
        f"columns are {sorted(map(str, record))}"
    )


def _name_of(source: str | bytes) -> str:
    """What messages call a video."""
    return f"the {len(source)} bytes" if isinstance(source, bytes) else storage.redact(source)


def _is_served() -> bool:
    """Whether strangers may be asking: MLflow's server says so, others show by being loaded."""
    told = os.environ.get("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "").lower() == "true"
    return told or any(server in sys.modules for server in _SERVERS)


def _paths_are_allowed() -> bool:
    return os.environ.get(ALLOW_PATHS, "").lower() in ("1", "true")


set_model(VideoClassifierModel())
