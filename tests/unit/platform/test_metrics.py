"""Accuracies against a reference that sorts each row in plain Python."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tubelet.evaluation.metrics import Accuracy, average_precision, one_class_each
from tubelet.evaluation.metrics import accuracy as accuracy_of


def accuracy(scores: NDArray[np.floating], labels: NDArray[np.int64]) -> Accuracy:
    """Of videos with one class each."""
    return accuracy_of(scores, one_class_each(labels, classes=scores.shape[1]))


def slow(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> dict[str, object]:
    """The same figures, one video at a time."""
    classes = probabilities.shape[1]
    right, videos, top5 = [0] * classes, [0] * classes, 0
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        order = sorted(range(classes), key=lambda k: (-row[k], k))  # equal ones by their index
        videos[label] += 1
        right[label] += order[0] == label
        top5 += label in order[:5]
    shares = [r / v for r, v in zip(right, videos, strict=True) if v]
    confusion = [[0] * classes for _ in range(classes)]
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        confusion[label][max(range(classes), key=lambda k: (row[k], -k))] += 1
    precisions = [
        slow_ap(probabilities[:, k].tolist(), (labels == k).tolist()) for k in range(classes)
    ]
    known = [p for p in precisions if p is not None]
    return {
        "videos": len(labels),
        "top1": sum(right) / len(labels),
        "top5": top5 / len(labels),
        "mean_class": sum(shares) / len(shares),
        "mean_ap": sum(known) / len(known),
        "ap_by_class": precisions,
        "confusion": confusion,
        "right_by_class": right,
        "videos_by_class": videos,
    }


def slow_ap(scores: list[float], truth: list[bool]) -> float | None:
    """Threshold by threshold."""
    total, before, area = sum(truth), 0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        passed = [t for score, t in zip(scores, truth, strict=True) if score >= threshold]
        area += (sum(passed) - before) * sum(passed) / len(passed)
        before = sum(passed)
    return area / total if total else None


def check(found: Accuracy, wanted: dict[str, object]) -> None:
    assert {f.name for f in fields(found)} == set(wanted)
    for name, value in wanted.items():
        got = getattr(found, name)
        if name == "ap_by_class":
            assert isinstance(value, list)
            for mine, theirs in zip(got.tolist(), value, strict=True):
                assert np.isnan(mine) if theirs is None else mine == pytest.approx(theirs)
        elif isinstance(got, np.ndarray):
            assert got.tolist() == value, name
        else:
            assert got == pytest.approx(value, abs=1e-12), name


@given(st.data())
def test_accuracy_is_what_sorting_each_row_gives(data: st.DataObject) -> None:
    classes = data.draw(st.integers(1, 9), "classes")
    videos = data.draw(st.integers(1, 12), "videos")
    rows = st.lists(  # few values, so that ties are frequent
        st.sampled_from([0.0, 0.125, 0.25, 0.5]), min_size=classes, max_size=classes
    )
    probabilities = data.draw(st.lists(rows, min_size=videos, max_size=videos), "probabilities")
    labels = data.draw(
        st.lists(st.integers(0, classes - 1), min_size=videos, max_size=videos), "labels"
    )
    arguments = np.array(probabilities, np.float32), np.array(labels, np.int64)
    check(accuracy(*arguments), slow(*arguments))


def test_among_equal_classes_the_first_counts_as_the_answer() -> None:
    equal = np.full((8, 8), 0.125)
    found = accuracy(equal, np.arange(8))
    assert found.right_by_class.tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert (found.top1, found.top5) == (1 / 8, 5 / 8)


def test_a_class_without_videos_does_not_enter_the_mean_over_classes() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.7, 0.3, 0.0], [0.9, 0.1, 0.0]])
    found = accuracy(probabilities, np.array([0, 0, 0, 1]))
    assert found.videos_by_class.tolist() == [3, 1, 0]
    assert found.top1 == 0.75
    assert found.mean_class == 0.5  # (1 + 0) / 2, and not over three classes


def test_with_five_classes_or_fewer_every_video_is_in_the_top_five() -> None:
    assert accuracy(np.array([[0.0, 1.0]]), np.array([0])).top5 == 1.0


def test_no_videos_and_foreign_labels_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^no labelled video to evaluate on$"):
        accuracy(np.empty((0, 3)), np.empty(0, np.int64))
    message = r"^labels lie between 1 and 3, the model has classes 0 to 2$"
    with pytest.raises(ValueError, match=message):
        accuracy(np.ones((2, 3)), np.array([1, 3]))
    with pytest.raises(ValueError, match=r"^labels lie between -1 and 2, "):
        accuracy(np.ones((2, 3)), np.array([-1, 2]))


def test_a_video_of_several_classes_is_right_when_the_likeliest_is_one_of_them() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
    truth = np.array([[False, True, True], [False, True, False]])
    found = accuracy_of(scores, truth)
    assert (found.top1, found.videos_by_class.tolist()) == (0.5, [0, 2, 1])
    assert found.confusion.tolist() == [[0, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert found.mean_ap == pytest.approx((1.0 + 1.0) / 2)
    with pytest.raises(ValueError, match=r"^1 of 2 videos have no class$"):
        accuracy_of(scores, truth & (truth.sum(1, keepdims=True) > 1))


def test_average_precision_of_a_ranking_by_hand() -> None:
    truth = np.array([True, False, True, False, True])
    assert average_precision(np.array([5.0, 4, 3, 2, 1]), truth) == pytest.approx(
        (1 + 2 / 3 + 3 / 5) / 3
    )
    assert average_precision(np.ones(5), truth) == pytest.approx(3 / 5), "all pass at once"
