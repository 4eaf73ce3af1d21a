"""The picture of which class is taken for which, from three classes to more than it shows."""

import io

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from tubelet.evaluation import confusion
from tubelet.evaluation.metrics import Accuracy


def accuracy_of(confusion_KK: NDArray[np.int64]) -> Accuracy:
    """Of videos that were answered like this, one class each."""
    right_K, videos_K = confusion_KK.diagonal(), confusion_KK.sum(1)
    return Accuracy(
        videos=int(videos_K.sum()),
        top1=float(right_K.sum() / videos_K.sum()),
        top5=1.0,
        mean_class=1.0,
        mean_ap=1.0,
        right_by_class=right_K,
        videos_by_class=videos_K,
        ap_by_class=np.ones(len(videos_K)),
        confusion=confusion_KK,
    )


def right(classes: int, *, videos: int = 50) -> NDArray[np.int64]:
    """Every video is answered right."""
    return np.diag(np.full(classes, videos, np.int64))


def drawn(confusion_KK: NDArray[np.int64], *, names: str = "{}", title: str = "t") -> NDArray:
    """The picture's pixels, [height, width, red green blue]."""
    classes = [names.replace("{}", str(k)) for k in range(len(confusion_KK))]
    png = confusion.picture(accuracy_of(confusion_KK), classes, title=title)
    return np.round(imread(io.BytesIO(png))[:, :, :3] * 255).astype(np.uint8)


def test_most_frequent_confusions_come_with_their_counts_in_a_fixed_order() -> None:
    counts = right(4)
    counts[0, 1], counts[2, 3], counts[3, 2], counts[1, 0] = 2, 9, 2, 2
    counts[3, 3] = 8  # of ten videos two are more than of fifty
    found = confusion.most_frequent(accuracy_of(counts), most=3)
    assert found == [
        confusion.Confusion(2, 3, 9, 59),
        confusion.Confusion(3, 2, 2, 10),
        confusion.Confusion(0, 1, 2, 52),
    ]
    assert confusion.most_frequent(accuracy_of(right(4)), most=3) == []


def test_classes_that_are_taken_for_each_other_stand_together() -> None:
    random = np.random.default_rng(0)
    group_K = random.permutation(np.repeat(np.arange(20), 5))
    counts = right(100)
    counts += 5 * (group_K[:, None] == group_K) + (random.random((100, 100)) < 0.02)
    order = confusion.columns(accuracy_of(counts))
    assert sorted(order.tolist()) == list(range(100))
    assert (np.diff(group_K[order]) != 0).sum() == 19, "each group is in one piece"
    assert order.tolist() == confusion.columns(accuracy_of(counts)).tolist()


def test_a_chain_of_confusions_is_laid_out_as_a_chain_and_the_rest_keeps_its_order() -> None:
    similar = np.zeros((6, 6))
    similar[4, 1] = similar[1, 5] = 0.5
    assert confusion.neighbours(similar) in ([4, 1, 5, 0, 2, 3], [5, 1, 4, 0, 2, 3])
    assert confusion.neighbours(np.zeros((3, 3))) == [0, 1, 2]


def test_few_classes_keep_their_order_and_those_that_do_not_occur_are_left_out() -> None:
    counts = right(40)
    counts[7] = 0
    counts[9], counts[3, 9] = 0, 2
    expected = [k for k in range(40) if k != 7]
    assert confusion.columns(accuracy_of(counts)).tolist() == expected


def test_of_very_many_classes_those_with_the_most_mistakes_are_shown() -> None:
    counts = right(1200)
    counts[1100, 1150] = counts[1199, 3] = 5
    shown = confusion.columns(accuracy_of(counts)).tolist()
    assert len(shown) == 1000
    assert {1100, 1199} <= set(shown)
    assert 1198 not in shown
    assert drawn(counts).shape[0] < 2500


@pytest.mark.parametrize(("classes", "side"), [(101, 11), (400, 3), (710, 2)])
def test_a_single_confused_video_is_seen_among_hundreds_of_classes(classes: int, side: int) -> None:
    counts = right(classes, videos=49)
    counts[5, 70] = 1
    red, _, blue = drawn(counts).astype(int).transpose(2, 0, 1)
    orange = (red - blue > 80).sum(0)  # pixels in each column of the picture
    assert orange[orange > 0][:side].tolist() == [side] * side, "a square"
    assert (orange[orange > 0][side:] > 100).all(), "and the scale"


@pytest.mark.parametrize("classes", [1, 3, 40, 101, 400])
@pytest.mark.parametrize(
    "names", ["{}", "Pretending to put $thing {} somewhere, and failing, " * 2]
)
def test_nothing_is_cut_off(classes: int, names: str) -> None:
    counts = right(classes)
    counts[0, classes - 1] += 1
    image = drawn(counts, names=names, title="models:/a-$long-name@challenger " * 3)
    for border in (image[:10], image[-10:], image[:, :10], image[:, -10:]):
        assert (border == 255).all()


def test_few_rows_of_many_answers_leave_room_for_the_list() -> None:
    counts = np.zeros((60, 60), np.int64)
    counts[:2] = 1
    image = drawn(counts, names="class {}")
    assert image.shape[0] > 40 * 18, "40 lines, though the matrix has 40 pixels"


def test_the_picture_is_a_function_of_the_counts() -> None:
    counts = right(120) + np.random.default_rng(0).integers(0, 2, (120, 120))
    assert np.array_equal(drawn(counts), drawn(counts))
