import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clips.augment.geometry import (
    MULTI_SCALES,
    Box,
    centre_box,
    even_boxes,
    flip_draw,
    multi_scale_box,
    random_resized_box,
)

SIDES = st.integers(1, 3000)
SEEDS = st.integers(0, 2**64 - 1)


def test_the_multi_scale_crop_chooses_among_ten_sizes_at_thirteen_places() -> None:
    boxes = {multi_scale_box(340, 256, size=224, seed=s) for s in range(6000)}
    sizes = {(b.width, b.height) for b in boxes}
    # 256 x (1, .875, .75, .66) = 256, 224, 192, 168; neighbours in the list may be paired.
    lengths = [256, 224, 192, 168]
    pairs = {(w, h) for i, w in enumerate(lengths) for j, h in enumerate(lengths) if abs(i - j) < 2}
    assert sizes == pairs
    places = {(b.x, b.y) for b in boxes if (b.width, b.height) == (224, 224)}
    right, down = (340 - 224) // 4, (256 - 224) // 4
    quarters = {(x // right, y // down) for x, y in places}
    corners = {(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0)}
    assert quarters == corners | {(1, 1), (3, 1), (1, 3), (3, 3)}


def test_crops_within_three_pixels_of_the_input_snap_to_it() -> None:
    lengths = {multi_scale_box(400, 226, size=224, seed=s, scales=(1.0,)).height for s in range(50)}
    assert lengths == {224}
    lengths = {multi_scale_box(400, 227, size=224, seed=s, scales=(1.0,)).height for s in range(50)}
    assert lengths == {227}


def test_a_snapped_crop_never_leaves_a_smaller_frame() -> None:
    box = multi_scale_box(222, 222, size=224, seed=1, scales=(1.0,))
    assert box == Box(0, 0, 222, 222)


@given(SIDES, SIDES, st.integers(1, 600), SEEDS)
def test_every_training_crop_lies_inside_the_frame(
    width: int, height: int, size: int, seed: int
) -> None:
    box = multi_scale_box(width, height, size=size, seed=seed, scales=MULTI_SCALES)
    assert box.x >= 0
    assert box.y >= 0
    assert box.width >= 1
    assert box.height >= 1
    assert box.x + box.width <= width
    assert box.y + box.height <= height


@given(SIDES, SIDES, st.integers(1, 9))
def test_evaluation_crops_are_squares_of_the_short_side_spread_along_the_long_one(
    w: int, h: int, crops: int
) -> None:
    boxes = even_boxes(w, h, crops=crops)
    assert len(boxes) == crops
    assert {(b.width, b.height) for b in boxes} == {(min(w, h), min(w, h))}
    assert all(b.x + b.width <= w and b.y + b.height <= h for b in boxes)
    if crops > 1:
        assert (boxes[0].x, boxes[0].y) == (0, 0)
        assert (boxes[-1].x + boxes[-1].width, boxes[-1].y + boxes[-1].height) == (w, h)


def test_the_centre_crop_is_in_the_middle() -> None:
    assert centre_box(340, 256) == Box(42, 0, 256, 256)
    assert centre_box(240, 426) == Box(0, 93, 240, 240)


def test_half_of_all_seeds_flip() -> None:
    assert 900 < sum(flip_draw(seed=s) for s in range(2000)) < 1100


@pytest.mark.parametrize(("width", "height"), [(340, 256), (256, 340), (900, 100)])
def test_the_fine_tuning_crop_is_distributed_as_torchvisions(width: int, height: int) -> None:
    """A long frame as well, of which most tries do not fit."""
    from torchvision.transforms import RandomResizedCrop

    ours = [random_resized_box(width, height, seed=seed) for seed in range(4000)]
    torch.manual_seed(1)
    blank = torch.empty(3, height, width)
    drawn = [RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = [Box(x, y, w, h) for y, x, h, w in drawn]
    for measure in (
        lambda b: b.width * b.height / (width * height),
        lambda b: math.log(b.width / b.height),
        lambda b: b.x / width,
        lambda b: b.y / height,
    ):
        mine, yours = (np.array([measure(b) for b in boxes]) for boxes in (ours, theirs))
        assert np.quantile(mine, (0.1, 0.25, 0.5, 0.75, 0.9)) == pytest.approx(
            np.quantile(yours, (0.1, 0.25, 0.5, 0.75, 0.9)), abs=0.03
        )


@given(SIDES, SIDES, SEEDS)
def test_the_fine_tuning_crop_lies_in_the_frame(width: int, height: int, seed: int) -> None:
    box = random_resized_box(width, height, seed=seed)
    assert box.x >= 0
    assert box.y >= 0
    assert box.width >= 1
    assert box.height >= 1
    assert box.x + box.width <= width
    assert box.y + box.height <= height


def test_a_frame_that_no_try_fits_is_cut_in_its_middle() -> None:
    assert random_resized_box(1000, 30, seed=5, area=(1.0, 1.0)) == Box(480, 0, 40, 30)
    assert random_resized_box(30, 1000, seed=5, area=(1.0, 1.0)) == Box(0, 480, 30, 40)
