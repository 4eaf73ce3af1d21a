"""Class probabilities of videos with Ray Data: each is opened once, for all its views and all models.

``groups of rows -> decode (CPU tasks) -> classify (actors that hold the models)``. A prediction is the mean of the
probabilities over a video's views. A video that cannot be decoded keeps its row, with the reason and no probabilities.

The same bits at any number of actors: sums in a matrix product depend on the shape of the batch, so a group is the
same videos whoever has it, padded to the same number, and goes through the models at once. Each row comes back once,
or that is an error.

Cost: the last group's padding; a group is as many videos as have 64 MB of clips, one at 5 x 3 views of 224 pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from numpy.typing import NDArray

from clips import ClipConfig, DecodeConfig, DecodeError, LocalTable
from clips.disposable import take_clips
from clips.load import Take
from tubelet import models
from videomae import Export, class_probabilities, normalise

_MOST_VIDEOS, _GROUP_BYTES = 16, 64 << 20


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
    exports: Sequence[Export],
    views: Views,
    decode: DecodeConfig,
    gpus: bool,
    workers: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> pa.Table:
    """Predict rows of a manifest with one or several models of the same input size.

    Args:
        table: the manifest's look-up.
        rows: which of its rows.
        exports: the classifiers.
        views: how each video is looked at.
        decode: how it is decoded.
        gpus: whether models run on a GPU each.
        workers: actors that hold the models.
        progress: told how many videos are done.

    Returns:
        One row a video, in the order of ``rows``: row, video_id, start_s (null without), label (-1 without), reason
        (empty when decoded), and ``model_0``, ``model_1``, ...: its probabilities, a list each.

    Raises:
        RuntimeError: a row came back twice, or not at all.
    """
    shape = exports[0].config.frames, exports[0].config.image_size
    each = group_size(views, *shape)
    decoder: Any = Groups(Decoder(table, rows, shape, views, decode), each)
    groups = max(1, -(-len(rows) // each))
    dataset = (
        ray.data.range(groups, override_num_blocks=groups)
        .map_batches(decoder, batch_size=1, num_cpus=1)
        .map_batches(
            Classifiers,
            fn_constructor_args=([ray.put(export) for export in exports], each),
            batch_size=None,
            concurrency=workers,
            num_cpus=0
            if gpus
            else 0.5,  # not 1 like a decoding task: Ray Data would decode in the actors
            num_gpus=1 if gpus else 0,
        )
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    batches: list[pa.Table] = []
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        batches.append(batch)
        progress(sum(len(b) for b in batches))
    found = pa.concat_tables(batches).sort_by("place")
    if found["place"].to_pylist() != list(range(len(rows))):
        raise RuntimeError(
            f"{len(rows)} videos were to be predicted once, and came {len(found)} times"
        )
    starts = pa.array(found["start_s"].to_numpy(), from_pandas=True)  # NaN becomes null
    found = found.set_column(found.schema.get_field_index("start_s"), "start_s", starts)
    for number in range(len(exports)):
        name = f"model_{number}"
        tensors = found[name].to_numpy(zero_copy_only=False)  # a type of Ray Data's own until here
        shares = pa.array(list(tensors), pa.list_(pa.float32()))
        found = found.set_column(found.schema.get_field_index(name), name, shares)
    return found.drop_columns(["place"])


def group_size(views: Views, frames: int, size: int) -> int:
    """How many videos go through the models at once."""
    video = views.views * views.crops * frames * size * size * 3
    return max(1, min(_MOST_VIDEOS, _GROUP_BYTES // video))


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
            "start_s": np.array([v.start_s for v in videos], np.float64),  # NaN without one
            "label": np.array([-1 if v.label is None else v.label for v in videos], np.int64),
            "reason": np.array(reasons, dtype=object),
            "clips": clips,
        }


@dataclass(frozen=True)
class Groups:
    """From the number of a group to all views of its videos."""

    decoder: Decoder
    each: int
    """Videos of a group."""

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Ray Data's map function; a batch is one number."""
        (group,) = batch["id"]
        place = np.arange(group * self.each, min((group + 1) * self.each, len(self.decoder.rows)))
        return {**self.decoder({"id": place}), "group": np.full(len(place), group)}


class Classifiers:
    """The models, loaded once by the actor that runs them.

    Args:
        exports: the models, as references: weights travel through Ray's object store, since what was fetched from the
            registry lies where only the driver sees it.
        each: videos of a group; smaller groups are filled up.
    """

    def __init__(self, exports: Sequence[Any], each: int) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._each = each
        found: list[Export] = [ray.get(export) for export in exports]
        self._models = [(models.network(e).to(self._device), e.several) for e in found]

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """Ray Data's map function; a block holds whole groups."""
        clips_NVTHWC, group_N = batch.pop("clips"), batch.pop("group")
        decoded_N = batch["reason"] == ""
        parts = [self._classify(clips_NVTHWC[group_N == group]) for group in np.unique(group_N)]
        for number, of_groups in enumerate(zip(*parts, strict=True)):
            mean_NK = np.concatenate(of_groups)
            mean_NK[~decoded_N] = np.nan
            batch[f"model_{number}"] = mean_NK
        return batch

    @torch.inference_mode()
    def _classify(self, clips_NVTHWC: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Probabilities of a group's videos by each model, [N, K]."""
        count, views, *shape = clips_NVTHWC.shape
        full = np.zeros((self._each, views, *shape), np.uint8)
        full[:count] = clips_NVTHWC
        clips_BCTHW = normalise(torch.from_numpy(full.reshape(-1, *shape)).to(self._device))
        found: list[NDArray[np.float32]] = []
        for model, several in self._models:
            probabilities_BK = class_probabilities(model(clips_BCTHW), several=several)
            mean_EK = probabilities_BK.view(self._each, views, -1).mean(1)
            found.append(mean_EK[:count].cpu().numpy())
        return found
