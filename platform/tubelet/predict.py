"""Predict the labels of videos: find and probe them, classify what can be decoded, write Parquet and a picture."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clips import ClipConfig, Manifest, Rejected, load_views
from clips.pipeline import PrepareConfig, find, prepare
from tubelet import cluster, models, rows, terminal, visualize
from tubelet.evaluation.inference import Views, predict
from tubelet.recipes import Predict


@dataclass(frozen=True)
class Predictions:
    """What came of it."""

    table: pa.Table
    """video_id, labels and probabilities (likeliest first; empty when undecodable), reason."""
    rejected: tuple[Rejected, ...]
    """Files that are no usable videos."""
    picture: Path | None
    """The frames that the first prediction was made from; None when nothing could be decoded."""


def run(recipe: Predict, source: models.Source) -> Predictions:
    """Predict everything that ``recipe.source`` names; connects to Ray once that is found.

    Raises:
        ValueError: nothing usable is there (of clips' kinds: the user's mistake).
    """
    folder = Path(recipe.output)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = PrepareConfig(
        source=recipe.source, manifest=str(folder / "manifest.parquet"), decode=recipe.decode
    )
    found = find(wanted)
    gpus = cluster.connect(trainer_cpus=1).gpus > 0
    prepared = prepare(wanted, found=found)
    manifest = prepared.manifest
    views = Views(
        ClipConfig(stride=recipe.stride or source.stride),
        recipe.views or source.views,
        recipe.crops or source.crops,
    )
    with terminal.progress("predict", len(manifest), unit="videos") as bar:
        raw = predict(
            manifest.local_table(rows.cache_folder()),
            np.arange(len(manifest), dtype=np.int64),
            exports=[source.folder],
            views=views,
            decode=recipe.decode,
            gpus=gpus,
            progress=bar.update,
        )
    table = likeliest(raw, source.classes, top_k=recipe.top_k)
    pq.write_table(table, folder / "predictions.parquet")
    picture = folder / "prediction.png"
    picture.unlink(missing_ok=True)
    if "" not in table["reason"].to_pylist():
        return Predictions(table, prepared.rejected, None)
    picture.write_bytes(_picture(manifest, table, source, views, recipe))
    return Predictions(table, prepared.rejected, picture)


def likeliest(raw: pa.Table, classes: tuple[str, ...], *, top_k: int) -> pa.Table:
    """From probabilities of all classes to the likeliest ``top_k``, by name."""
    count = min(top_k, len(classes))
    labels: list[list[str]] = []
    shares: list[list[float]] = []
    for reason, row in zip(raw["reason"].to_pylist(), raw["model_0"].to_pylist(), strict=True):
        order = [] if reason else np.argsort(-np.asarray(row), kind="stable")[:count].tolist()
        labels.append([classes[i] for i in order])
        shares.append([float(row[i]) for i in order])
    return pa.table(
        {
            "video_id": raw["video_id"],
            "labels": pa.array(labels, pa.list_(pa.string())),
            "probabilities": pa.array(shares, pa.list_(pa.float32())),
            "reason": raw["reason"],
        }
    )


def _picture(
    manifest: Manifest, table: pa.Table, source: models.Source, views: Views, recipe: Predict
) -> bytes:
    """The first decodable video's middle clip, as the model sees it, with its likeliest labels."""
    first = table["reason"].to_pylist().index("")
    config = source.export.config
    frames_VTHWC = load_views(
        manifest.video(first),
        views.clip,
        frames=config.frames,
        size=config.image_size,
        decode=recipe.decode,
    )
    return visualize.prediction_picture(
        frames_VTHWC[0],
        title=table["video_id"][first].as_py(),
        labels=table["labels"][first].as_py(),
        probabilities=table["probabilities"][first].as_py(),
    )
