"""Evaluate classifiers on the labelled rows of a manifest: one pass over the videos, however many models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clips import DecodeConfig, Manifest
from tubelet import models, rows
from tubelet.config import UserError
from tubelet.evaluation.inference import Views, predict
from tubelet.evaluation.metrics import Accuracy, accuracy, right


@dataclass(frozen=True)
class Judgement:
    """What came of it."""

    predictions: pa.Table
    """One row a video; see ``inference.predict``."""
    accuracies: list[Accuracy]
    """Of each model, over the videos that could be decoded."""
    right: list[NDArray[np.bool_]]
    """Of each model: whether its likeliest class is one of the video's, False where that could not be decoded, [V]."""
    undecodable: list[str]
    """Videos without a prediction, with the reason."""


def labelled_rows(
    manifest: Manifest, *, held_out: float, split: str | None = None
) -> NDArray[np.int64]:
    """The labelled rows to judge by.

    Args:
        manifest: with labels.
        held_out: share of the videos, where no row has a split; 0: all.
        split: the rows of this split; None: of ``val``, if rows have splits.

    Raises:
        UserError: no row is chosen, or none of them has a label.
    """
    if split is not None or manifest.splits:
        chosen = manifest.in_split(split or "val")
        if not len(chosen):
            there = [f"{name} ({len(manifest.in_split(name))} rows)" for name in manifest.splits]
            raise UserError(
                f"no row of {manifest.uri} has the split {split or 'val'!r}; "
                + (
                    f"name one, split=NAME, of {', '.join(there)}"
                    if there
                    else "its rows have no split"
                )
            )
    elif held_out:
        chosen = manifest.hold_out(held_out)[1]
        if not len(chosen):
            raise UserError(
                f"held_out={held_out:g} holds out none of the {len(manifest)} rows of {manifest.uri}: raise it, or "
                "evaluate on all rows with held_out=0"
            )
    else:
        chosen = np.arange(len(manifest), dtype=np.int64)
    labelled = chosen[np.isin(chosen, manifest.label_pairs()[0])]
    if not len(labelled):
        raise UserError(
            f"none of the {len(chosen)} rows of {manifest.uri} to evaluate on has a label: make the manifest with "
            "labels=folders, or from a list file with labels"
        )
    return labelled


def check(manifest: Manifest, sources: Sequence[models.Source]) -> None:
    """Refuse models that cannot be judged in one pass over these data.

    Raises:
        UserError: they differ in classes or in how clips are taken, or do not know a class of the data.
    """
    first = sources[0]
    for other in sources[1:]:
        if _shown(other) != _shown(first):
            raise UserError(
                f"{other.name} and {first.name} differ in classes, size of clips, stride, sampling or frame rate: "
                "evaluate them apart"
            )
    unknown = sorted(set(manifest.classes) - set(first.classes))
    if unknown:
        raise UserError(
            f"{first.name} knows {len(first.classes)} classes and not {', '.join(unknown[:5])}"
            f"{' and others' if len(unknown) > 5 else ''} of {manifest.uri}"
        )


def _shown(source: models.Source) -> tuple[Any, ...]:
    """What must be alike of models that see the same clips."""
    config = source.export.config
    return source.classes, source.clip(), config.frames, config.image_size


def judge(
    manifest: Manifest,
    chosen: NDArray[np.int64],
    *,
    sources: Sequence[models.Source],
    decode: DecodeConfig,
    views: int = 1,
    crops: int = 1,
    stride: int | None = None,
    gpus: bool = False,
    workers: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Judgement:
    """Predict the chosen rows with every model and compare with their labels.

    Raises:
        UserError: as ``check`` says, or not one of the videos can be decoded.
    """
    check(manifest, sources)
    first = sources[0]
    clip = first.clip(stride=stride)
    predictions = predict(
        manifest.local_table(rows.cache_folder()),
        chosen,
        exports=[source.export for source in sources],
        views=Views(clip, views, crops),
        decode=decode,
        gpus=gpus,
        workers=workers,
        progress=progress,
    )
    reasons = predictions["reason"].to_pylist()
    decoded = np.array([not reason for reason in reasons])
    names = [
        name if start is None else f"{name} from {start:g} s"
        for name, start in zip(
            predictions["video_id"].to_pylist(), predictions["start_s"].to_pylist(), strict=True
        )
    ]
    if not decoded.any():
        raise UserError(
            f"none of the {len(chosen)} videos to evaluate on could be decoded; {names[0]}: {reasons[0]}"
        )
    truth_VK = _truth(manifest, chosen, classes=first.classes)
    scores = [
        np.stack(predictions[f"model_{n}"].to_numpy(zero_copy_only=False))
        for n in range(len(sources))
    ]
    return Judgement(
        predictions,
        [accuracy(scores_VK[decoded], truth_VK[decoded]) for scores_VK in scores],
        [decoded & right(scores_VK, truth_VK) for scores_VK in scores],
        [f"{name}: {reason}" for name, reason in zip(names, reasons, strict=True) if reason],
    )


def _truth(
    manifest: Manifest, chosen: NDArray[np.int64], *, classes: Sequence[str]
) -> NDArray[np.bool_]:
    """Which of a model's classes each chosen row has, [V, K]."""
    rows_P, classes_P = manifest.label_pairs()
    theirs = np.array([classes.index(name) for name in manifest.classes], np.int64)
    here_P = np.isin(rows_P, chosen)
    truth_VK = np.zeros((len(chosen), len(classes)), bool)
    truth_VK[np.searchsorted(chosen, rows_P[here_P]), theirs[classes_P[here_P]]] = True
    return truth_VK
