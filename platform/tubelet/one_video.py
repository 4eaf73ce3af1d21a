"""``tubelet predict VIDEO``: what a registered model says of one video, here and now, without Ray.

Prints the likeliest labels and draws the frames that the model saw. The video is read from a path, a bucket or the
web, in a process of its own, which may crash or hang without harm.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge

from clips import DecodeConfig, DecodeError, Video, storage
from clips.disposable import take_clips
from clips.load import Take
from tubelet import models, registry, tracking, visualize
from tubelet.config import UserError
from tubelet.refusals import redact
from videomae import class_probabilities, normalise

_ALIAS = "champion"


@dataclass(frozen=True)
class PredictOne:
    """Arguments of ``tubelet predict VIDEO``."""

    video: str
    """Path, ``s3://`` or ``https://``."""
    model: str | None = None
    """``models:/NAME@ALIAS``, or the folder of a fine-tuned run or export; null: the only registered champion."""
    top_k: Annotated[int, Ge(1)] = 5
    views: Annotated[int, Ge(1)] | None = None
    """Clips spread over the video; null: as the model is registered, else 1."""
    crops: Annotated[int, Ge(1)] | None = None
    stride: Annotated[int, Ge(1)] | None = None
    picture: str | None = None
    """Where to draw the frames; null: ``<video's name>.prediction.png`` in this folder."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    storage: str = "build/runs"
    """Where MLflow's file is when MLFLOW_TRACKING_URI names no server."""


@dataclass(frozen=True)
class Answer:
    """What the model says."""

    model: str
    labels: tuple[str, ...]
    """Likeliest first."""
    probabilities: tuple[float, ...]
    picture: str
    """Where the frames are drawn."""


def predict(asked: PredictOne, *, scratch: Path) -> Answer:
    """Classify the video and draw what the model saw of it.

    Args:
        asked: the command's arguments.
        scratch: local folder for what must be copied.

    Raises:
        UserError: no such model or video, or the video cannot be decoded.
    """
    name = asked.model or only_champion(tracking.resolve_uri(storage.absolute(asked.storage)))
    source = models.find_one(name, storage_root=asked.storage, folder=scratch)
    crops = asked.crops or source.crops
    take = _take(asked, source, crops=crops)
    try:
        clips_VTHWC = take_clips(take)
    except DecodeError as error:
        raise UserError(f"{storage.redact(asked.video)}: {error}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.inference_mode():
        inputs = normalise(torch.from_numpy(clips_VTHWC).to(device))
        logits_BK = models.network(source.export).to(device)(inputs)
        shares_K = class_probabilities(logits_BK, several=source.export.several).mean(0)
    best = shares_K.topk(min(asked.top_k, len(source.classes)))
    labels = tuple(source.classes[i] for i in best.indices.tolist())
    probabilities = tuple(best.values.tolist())
    title = storage.redact(asked.video).rsplit("/", 1)[-1]
    picture = asked.picture or f"{title.rpartition('.')[0] or title}.prediction.png"
    drawn = visualize.prediction_picture(
        clips_VTHWC[crops // 2 :: crops],  # crops of one clip are neighbours
        title=title,
        labels=labels,
        probabilities=probabilities,
        crops=crops,
    )
    storage.write_bytes(picture, drawn)
    return Answer(name, labels, probabilities, picture)


def only_champion(uri: str) -> str:
    """Address of the champion, where the registry has one model with that alias.

    Raises:
        UserError: it has none, or several; the message lists them.
    """
    names = registry.names(uri)
    champions = [name for name in names if _ALIAS in registry.aliases(name, uri=uri)]
    if len(champions) == 1:
        return f"models:/{champions[0]}@{_ALIAS}"
    there = ", ".join(f"models:/{name}@{_ALIAS}" for name in champions)
    if champions:
        raise UserError(f"{redact(uri)} has {len(champions)} champions: name one, model={there}")
    raise UserError(
        f"no model at {redact(uri)} has the alias {_ALIAS} (registered: {', '.join(names) or 'none'}); name a model: "
        "model=models:/NAME@ALIAS or the folder of a fine-tuned run"
    )


def _take(asked: PredictOne, source: models.Source, *, crops: int) -> Take:
    nothing: dict[str, Any] = dict.fromkeys(
        ("label", "start_s", "end_s", "frames", "fps", "duration_s", "width", "height")
    )
    video = Video(
        uri=storage.absolute(asked.video),
        video_id=asked.video,
        row=0,
        size=0,
        labels=(),
        **nothing,
    )
    config = source.export.config
    return Take(
        video,
        source.clip(stride=asked.stride),
        config.frames,
        config.image_size,
        asked.decode,
        views=asked.views or source.views,
        crops=crops,
    )
