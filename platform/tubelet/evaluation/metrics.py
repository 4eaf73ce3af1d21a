"""Accuracies from class probabilities; sums first, ratios last, so that no batch boundary shows."""

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
    """Share of videos whose class is among the five likeliest."""
    mean_class: float
    """Mean over the classes that occur of the share of their videos that are right."""
    right_by_class: NDArray[np.int64]
    """[K] videos predicted right."""
    videos_by_class: NDArray[np.int64]
    """[K] videos there are."""


def accuracy(probabilities_VK: NDArray[np.floating], labels_V: NDArray[np.int64]) -> Accuracy:
    """Compare predictions with labels.

    Args:
        probabilities_VK: one row a video.
        labels_V: class index of each, all at least 0.

    Raises:
        ValueError: there are no videos, or a label lies outside the classes.
    """
    videos, classes = probabilities_VK.shape
    if videos == 0:
        raise ValueError("no labelled video to evaluate on")
    if labels_V.min() < 0 or labels_V.max() >= classes:
        raise ValueError(
            f"labels lie between {labels_V.min()} and {labels_V.max()}, the model has classes 0 to {classes - 1}"
        )
    own_V1 = np.take_along_axis(probabilities_VK, labels_V[:, None], axis=1)
    # Rank by how many classes are likelier; equal ones count in order of their index, as argmax does.
    likelier_VK = probabilities_VK > own_V1
    tied_before_VK = (probabilities_VK == own_V1) & (np.arange(classes) < labels_V[:, None])
    rank_V = (likelier_VK | tied_before_VK).sum(1)
    right_K = np.bincount(labels_V[rank_V == 0], minlength=classes)
    count_K = np.bincount(labels_V, minlength=classes)
    present_K = count_K > 0
    return Accuracy(
        videos=videos,
        top1=float((rank_V == 0).mean()),
        top5=float((rank_V < 5).mean()),
        mean_class=float((right_K[present_K] / count_K[present_K]).mean()),
        right_by_class=right_K,
        videos_by_class=count_K,
    )
