"""The registered model's code: MLflow runs this file whenever the model is loaded.

It travels inside the model (MLflow calls this "models from code": no pickle), beside the folders
`videomae` and `clips` and the exported weights, and imports nothing of tubelet or Ray: the model
loads wherever those two packages' requirements are installed. Only MLflow runs it; nobody imports
it.

Input: a pandas DataFrame, or records, with a column `video_path` (path or URI) or `video` (the
encoded bytes). Output: for every row the likeliest labels and their probabilities, likeliest first.
Clips are cut as in evaluation: `views` clips spread evenly over the video times `crops` squares,
without chance, their probabilities averaged.

Cost: decoding plus one forward pass per view and crop; one video in memory at a time.

Shapes: V views times crops, T frames, S input size, C channels, K classes.
"""

from typing import Any

import pandas
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

import clips
import videomae


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
            ValueError: a row names no video, or its video cannot be read.
        """
        top_k = int((params or {}).get("top_k", 5))
        if top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1")
        answers = []
        for row, record in enumerate(model_input.to_dict("records")):
            source, path = record.get("video"), record.get("video_path")
            if isinstance(source, bytes):
                name = f"the {len(source)} bytes"
            elif isinstance(path, str):
                name, source = path, None
            else:
                raise ValueError(
                    f"row {row} has neither `video_path` (a path or URI) nor `video` (the file's "
                    f"bytes); its columns are {sorted(map(str, record))}"
                )
            try:
                probabilities_K = self._classify(name, source)
            except (clips.DecodeError, clips.StorageError) as error:
                raise ValueError(f"row {row}, {name}: {error}") from error
            best = probabilities_K.topk(min(top_k, len(self.labels)))
            answers.append(
                {
                    "labels": [self.labels[index] for index in best.indices.tolist()],
                    "probabilities": best.values.tolist(),
                }
            )
        return answers

    @torch.inference_mode()
    def _classify(self, name: str, source: bytes | None) -> torch.Tensor:
        config = self.network.config
        video = clips.Video(
            uri=name,
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
            clips.ClipConfig(stride=self.model_config["stride"]),
            frames=config.frames,
            size=config.image_size,
            views=self.model_config["views"],
            crops=self.model_config["crops"],
            source=source,
        )
        logits_VK = self.network(videomae.normalise(torch.from_numpy(frames_VTSSC)))
        return logits_VK.softmax(-1).mean(0)


set_model(VideoClassifierModel())
