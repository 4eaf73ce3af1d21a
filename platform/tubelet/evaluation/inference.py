"""Class probabilities of videos with Ray Data: each is opened once, for all its views and all models.

``range -> decode (CPU tasks) -> classify (actors that hold the models)``. A prediction is the mean of the probabilities
over a video's views. A video that cannot be decoded keeps its row, with the reason and no probabilities.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from numpy.typing import NDArray

from clips import ClipConfig, DecodeConfig, DecodeError, LocalTable
from clips.disposable import take_clips
from clips.load import Take
from tubelet import handover
from tubelet.config import UserError
from videomae import build_classifier, normalise

_VIDEOS_PER_BATCH = 16


@dataclass(frozen=True)
class Views:
    """How a video is looked at: ``views`` clips spread over it, each cut into ``crops`` squares."""

    clip: ClipConfig
    views: int = 1
    crops: int = 1


def predict(
    table: LocalTable,
    rows: NDArray[np.int64],
    *,
    exports: Sequence[str],
    views: Views,
    decode: DecodeConfig,
    gpus: bool,
    progress: Callable[[int], None] = lambda done: None,
) -> pa.Table:
    """Predict rows of a manifest with one or several models of the same input size.

    Args:
        table: the manifest's look-up.
        rows: which of its rows.
        exports: folders of classifiers.
        views: how each video is looked at.
        decode: how it is decoded.
        gpus: whether models run on a GPU each.
        progress: told how many videos are done.

    Returns:
        One row a video, in the order of ``rows``: row, video_id, label (null without), reason (empty when decoded),
        and ``model_0``, ``model_1``, ...: its probabilities.

    Raises:
        UserError: an export is not a classifier, or they differ in input size.
    """
    models = [handover.read(uri) for uri in exports]
    for uri, export in zip(exports, models, strict=True):
        if export.kind != "classifier":
            raise UserError(
                f"{uri} is a {export.kind} model without classes: evaluate a fine-tuned one"
            )
        if export.config.grid != models[0].config.grid:
            raise UserError(
                f"{uri} takes clips of another size than {exports[0]}: evaluate them apart"
            )
    del models
    decoder: Any = Decoder(table, rows, frames_and_size(exports[0]), views, decode)
    dataset = (
        ray.data.range(len(rows), override_num_blocks=max(1, -(-len(rows) // _VIDEOS_PER_BATCH)))
        .map_batches(decoder, batch_size=_VIDEOS_PER_BATCH, num_cpus=1)
        .map_batches(
            Classifiers,
            fn_constructor_args=(list(exports),),
            batch_size=_VIDEOS_PER_BATCH,
            concurrency=1,
            num_cpus=0 if gpus else 1,
            num_gpus=1 if gpus else 0,
        )
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    batches: list[pa.Table] = []
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        batches.append(batch)
        progress(sum(len(b) for b in batches))
    return pa.concat_tables(batches).sort_by("place").drop_columns(["place"])


def frames_and_size(export: str) -> tuple[int, int]:
    """Frames and pixels of a classifier's input."""
    config = handover.read(export).config
    return config.frames, config.image_size


@dataclass(frozen=True)
class Decoder:
    """From places in ``rows`` to all views of their videos."""

    table: LocalTable
    rows: NDArray[np.int64]
    shape: tuple[int, int]
    views: Views
    decode: DecodeConfig

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Ray Data's map function."""
        frames, size = self.shape
        count = self.views.views * self.views.crops
        place = batch["id"]
        clips = np.zeros((len(place), count, frames, size, size, 3), np.uint8)
        videos = [self.table.video(int(self.rows[i])) for i in place]
        reasons = [""] * len(place)
        for i, video in enumerate(videos):
            try:
                clips[i] = take_clips(
                    Take(
                        video,
                        self.views.clip,
                        frames,
                        size,
                        self.decode,
                        views=self.views.views,
                        crops=self.views.crops,
                    )
                )
            except DecodeError as error:
                reasons[i] = str(error)
        return {
            "place": place,
            "row": np.array([v.row for v in videos], np.int64),
            "video_id": np.array([v.video_id for v in videos], dtype=object),
            "label": np.array([-1 if v.label is None else v.label for v in videos], np.int64),
            "reason": np.array(reasons, dtype=object),
            "clips": clips,
        }


class Classifiers:
    """The models, loaded once by the actor that runs them."""

    def __init__(self, exports: list[str]) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._models = []
        for uri in exports:
            export = handover.read(uri)
            assert export.num_classes is not None
            assert export.pooling is not None
            model = build_classifier(
                export.config, num_classes=export.num_classes, pooling=export.pooling
            )
            model.load_state_dict(export.state_dict)
            self._models.append(model.eval().to(self._device))

    @torch.inference_mode()
    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """Ray Data's map function."""
        clips_NVTHWC = batch.pop("clips")
        count, views = clips_NVTHWC.shape[:2]
        flat = torch.from_numpy(clips_NVTHWC.reshape(-1, *clips_NVTHWC.shape[2:]).copy())
        clips_BCTHW = normalise(flat.to(self._device))
        decoded = batch["reason"] == ""
        for number, model in enumerate(self._models):
            logits_BK = model(clips_BCTHW).float()
            mean_NK = logits_BK.softmax(-1).view(count, views, -1).mean(1).cpu().numpy()
            mean_NK[~decoded] = np.nan
            batch[f"model_{number}"] = mean_NK
        return batch
