"""Predict the labels of all videos of a source on Ray, and go on where that was interrupted.

The source is scanned first (``clips.preparation``, which resumes by itself); then every video that has no prediction
yet is decoded and classified, and what comes of it is kept in parts (``parts``): a kill costs the videos under way and
the unfinished parts. A video that cannot be decoded is listed apart, with the reason, and ends nothing. A storage that
fails ends the work, which the same command continues.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clips import Rejected, storage
from clips.disposable import take_clips
from clips.earlier import rejected_place, write_rejected
from clips.load import Take
from clips.manifest import Manifest
from clips.pipeline import (
    PrepareConfig,
    Prepared,
    ScanStopped,
    compare,
    find,
    look_inside,
    settle,
)
from tubelet import cluster, file_jobs, models, rows, terminal, visualize
from tubelet.evaluation.inference import Decoder, Views
from tubelet.labelling import labelled
from tubelet.parts import Gathering, Key, Part, Parts, deal, keys_of
from tubelet.recipes import Predict

_SHOWN = 10


@dataclass(frozen=True)
class Predictions:
    """What came of it."""

    uri: str
    """Folder of the parts."""
    predicted: int
    first: tuple[dict[str, Any], ...]
    """A few of them, to show."""
    rejected: tuple[Rejected, ...]
    """Files that are no usable videos, and videos that could not be decoded."""
    reasons: dict[str, int]
    """How many of them for each reason."""
    rejected_uri: str
    """Where all of them are listed."""
    picture: str | None
    """The frames that the first prediction was made from; None when nothing could be decoded."""

    def summary(self) -> str:
        """Where everything is, in a line for people."""
        text = (
            f"{self.predicted} videos predicted, {len(self.rejected)} files rejected: "
            f"{storage.redact(self.uri)}"
        )
        return (
            f"{text}; frames of the first in {storage.redact(self.picture)}"
            if self.picture
            else text
        )


def run(recipe: Predict, source: models.Source) -> Predictions:
    """Predict everything that ``recipe.source`` names; connects to Ray once that is found.

    Raises:
        UserError: the folder holds predictions of another kind.
        ValueError: nothing usable is there (of clips' kinds: the user's mistake).
        file_jobs.Stopped: the storage has failed in the middle; the same call goes on from there.
    """
    folder = storage.absolute(recipe.output)
    parts = Parts(folder)
    views = _views(recipe, source)
    asked = _question(recipe, source, views)
    if not recipe.fresh:
        file_jobs.check_same(asked, _told_in(folder), holds="predictions", by=source.name)
    prepared = _scan(recipe, folder)
    if recipe.fresh:  # now that nothing can be refused any more
        parts.clear()
    file_jobs.told(asked, _told_in(folder), by=source.name)
    manifest = prepared.manifest
    videos = keys_of(manifest.table)
    done = parts.settled(videos, retry=recipe.retry_rejected)
    todo = deal(videos, done, taken=parts.names())
    if done:
        terminal.say(f"{len(done)} of {len(videos)} videos were predicted before")
    if todo:
        _predict(recipe, source, views, manifest, videos, todo, parts=parts)
    return _summary(recipe, source, views, prepared, parts=parts, folder=folder)


# --- before ----------------------------------------------------------------------------------


def _views(recipe: Predict, source: models.Source) -> Views:
    return Views(
        source.clip(stride=recipe.stride),
        recipe.views or source.views,
        recipe.crops or source.crops,
    )


def _question(recipe: Predict, source: models.Source, views: Views) -> dict[str, Any]:
    """What makes predictions those of one question."""
    return {
        "source": storage.redact(storage.absolute(recipe.source)),
        "weights": source.digest,
        "stride": views.clip.stride,
        "sampling": views.clip.sampling,
        "fps": views.clip.fps,
        "views": views.views,
        "crops": views.crops,
        "top_k": recipe.top_k,
    }


def _told_in(folder: str) -> str:
    return storage.join(folder, "predict.json")


def _scan(recipe: Predict, folder: str) -> Prepared:
    """Find the videos and look inside those that are new or have changed."""
    wanted = PrepareConfig(
        source=recipe.source,
        manifest=storage.join(folder, "manifest.parquet"),
        retry_rejected=recipe.retry_rejected,
        decode=recipe.decode,
    )
    with file_jobs.counting("list", None, unit="files") as show:
        found = find(wanted, progress=show)
    plan = compare(wanted, found)
    if plan.known or plan.resumed:
        terminal.say(plan.summary())
    if len(plan.todo):
        cluster.connect(trainer_cpus=1)
        try:
            with file_jobs.progress("probe", len(plan.todo), unit="files", kept="kept") as show:
                look_inside(wanted, plan, progress=show)
        except ScanStopped as error:
            raise file_jobs.Stopped(str(error)) from error
    return settle(wanted, plan)


# --- predicting ------------------------------------------------------------------------------


def _predict(
    recipe: Predict,
    source: models.Source,
    views: Views,
    manifest: Manifest,
    videos: Sequence[Key],
    todo: Sequence[Part],
    *,
    parts: Parts,
) -> None:
    """Predict the videos of some parts, and write each part when it is complete."""
    left = np.array([row for part in todo for row in part.rows], np.int64)
    config = source.export.config
    decoder = Decoder(
        manifest.local_table(rows.cache_folder()),
        left,
        (config.frames, config.image_size),
        views,
        recipe.decode,
    )
    gathering, written = Gathering(todo), 0
    cpus = cluster.connect(trainer_cpus=1)
    total = len(videos)
    done = total - len(left)
    with (
        file_jobs.stopping(
            lambda: f"{written} of {len(left)} videos were predicted until then and are kept"
        ),
        terminal.progress("predict", total, unit="videos", done=done) as bar,
    ):
        for rows_done in labelled(
            decoder, source, views, top_k=recipe.top_k, found=cpus, count=len(left)
        ):
            for part, made in gathering.add(rows_done):
                _keep(part, made, videos, parts=parts)
                written += len(made)
            bar.update(done + written)


def _keep(part: Part, made: list[dict[str, Any]], videos: Sequence[Key], *, parts: Parts) -> None:
    predicted: list[dict[str, Any]] = []
    undecodable: list[dict[str, Any]] = []
    for row, answer in zip(part.rows, made, strict=True):
        identity = videos[row]._asdict()
        if answer["reason"]:
            kind, _, message = answer["reason"].partition(": ")
            undecodable.append({**identity, "reason": kind, "message": message})
        else:
            answers = {name: answer[name] for name in ("labels", "probabilities")}
            predicted.append({**identity, **answers})
    parts.write(part.name, predicted, undecodable)


# --- after -----------------------------------------------------------------------------------


def _summary(
    recipe: Predict,
    source: models.Source,
    views: Views,
    prepared: Prepared,
    *,
    parts: Parts,
    folder: str,
) -> Predictions:
    """List what is bad, draw the first prediction, count."""
    bad = [
        Rejected(row["video_id"], row["reason"], row["message"])
        for row in parts.undecodable().to_pylist()
    ]
    rejected = sorted([*prepared.rejected, *bad], key=lambda each: each.video_id)
    rejected_uri = rejected_place(storage.join(folder, "predict.parquet"))
    write_rejected(((each, None) for each in rejected), rejected_uri)
    first: list[dict[str, Any]] = []
    predicted = 0
    for table in parts.predicted():
        predicted += len(table)
        first += table.slice(0, _SHOWN - len(first)).to_pylist()
    picture = storage.join(folder, "prediction.png")
    if first:
        storage.write_bytes(picture, _picture(prepared.manifest, first[0], source, views, recipe))
    return Predictions(
        uri=parts.uri,
        predicted=predicted,
        first=tuple(first),
        rejected=tuple(rejected),
        reasons=dict(Counter(each.reason for each in rejected).most_common()),
        rejected_uri=rejected_uri,
        picture=picture if first else None,
    )


def _picture(
    manifest: Manifest,
    answer: dict[str, Any],
    source: models.Source,
    views: Views,
    recipe: Predict,
) -> bytes:
    """What the model saw of the first video, with its likeliest labels."""
    own = Key(*(answer[name] for name in Key._fields))
    video, config = manifest.video(keys_of(manifest.table).index(own)), source.export.config
    take = Take(
        video,
        views.clip,
        config.frames,
        config.image_size,
        recipe.decode,
        views=views.views,
        crops=views.crops,
    )
    return visualize.prediction_picture(
        take_clips(take)[views.crops // 2 :: views.crops],  # crops of one clip are neighbours
        title=answer["video_id"],
        labels=answer["labels"],
        probabilities=answer["probabilities"],
        crops=views.crops,
    )
