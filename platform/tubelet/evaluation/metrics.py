"""Accuracies from class scores; sums first, ratios last, so that no batch boundary shows.

V videos, K classes. A video may have several classes: it is right when the likeliest one is among them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Accuracy:
    """Of one model on labelled videos."""

    videos: int
    top1: float
    """Share of videos whose likeliest class is theirs, 0 to 1."""
    top5: float
    """Share of videos with a class among the five likeliest."""
    mean_class: float
    """Mean over the classes that occur of the share of their videos that are right."""
    mean_ap: float
    """Mean over the classes that occur of ``average_precision``."""
    right_by_class: NDArray[np.int64]
    """[K] videos predicted right."""
    videos_by_class: NDArray[np.int64]
    """[K] videos there are."""
    ap_by_class: NDArray[np.float64]
    """[K] average precision, NaN for classes that do not occur."""
    confusion: NDArray[np.int64]
    """[K, K] videos of a class (row) by their likeliest class (column)."""


def one_class_each(labels_V: NDArray[np.int64], *, classes: int) -> NDArray[np.bool_]:
    """Which classes a video has, [V, K], from one class index a video.

    Raises:
        ValueError: a label lies outside the classes.
    """
    if len(labels_V) and (labels_V.min() < 0 or labels_V.max() >= classes):
        raise ValueError(
            f"labels lie between {labels_V.min()} and {labels_V.max()}, the model has classes 0 to {classes - 1}"
        )
    return labels_V[:, None] == np.arange(classes)


def accuracy(scores_VK: NDArray[np.floating], truth_VK: NDArray[np.bool_]) -> Accuracy:
    """Compare predictions with the classes that videos have, at least one each.

    Raises:
        ValueError: there are no videos, or one has no class.
    """
    videos, classes = scores_VK.shape
    if videos == 0:
        raise ValueError("no labelled video to evaluate on")
    if not truth_VK.any(1).all():
        raise ValueError(f"{int((~truth_VK.any(1)).sum())} of {videos} videos have no class")
    # Of equally likely classes the first counts, as argmax has it.
    order_VK = np.argsort(-scores_VK, axis=1, kind="stable")
    best_V = np.take_along_axis(truth_VK, order_VK, axis=1).argmax(1)
    first_V = order_VK[:, 0]
    count_K = truth_VK.sum(0)
    confusion_KK = np.zeros((classes, classes), np.int64)
    video_P, class_P = np.nonzero(truth_VK)
    np.add.at(confusion_KK, (class_P, first_V[video_P]), 1)
    right_K = confusion_KK.diagonal().copy()
    present_K = count_K > 0
    ap_K = np.array([average_precision(scores_VK[:, k], truth_VK[:, k]) for k in range(classes)])
    return Accuracy(
        videos=videos,
        top1=float((best_V == 0).mean()),
        top5=float((best_V < 5).mean()),
        mean_class=float((right_K[present_K] / count_K[present_K]).mean()),
        mean_ap=float(ap_K[present_K].mean()),
        right_by_class=right_K,
        videos_by_class=count_K.astype(np.int64),
        ap_by_class=ap_K,
        confusion=confusion_KK,
    )


def right(scores_VK: NDArray[np.floating], truth_VK: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a video's likeliest class is one of its own, [V]; of equally likely ones the first counts."""
    likeliest_V = np.nan_to_num(scores_VK).argmax(1)
    return np.take_along_axis(truth_VK, likeliest_V[:, None], axis=1)[:, 0]


def average_precision(score_V: NDArray[np.floating], truth_V: NDArray[np.bool_]) -> float:
    """Precision averaged over the recall that each threshold adds; NaN without a true one.

    Not interpolated; equal scores pass a threshold together (Manning et al. 2008, chapter 8.4).
    """
    positives = int(truth_V.sum())
    if not positives:
        return float("nan")
    order = np.argsort(-score_V, kind="stable")
    found_V = np.cumsum(truth_V[order])
    last_V = np.append(np.diff(score_V[order]) != 0, True)  # the last one of equal scores
    taken = np.flatnonzero(last_V)
    precision, recall = found_V[taken] / (taken + 1), found_V[taken] / positives
    return float((np.diff(recall, prepend=0.0) * precision).sum())
