"""What is erased and how batches are mixed, against timm: draws in their distribution, boxes by its formula."""

import random

import numpy as np
import pytest
import torch
from timm.data import mixup as theirs
from timm.data.random_erasing import RandomErasing

from clips.augment.erasing import erase_box
from clips.augment.geometry import Box
from clips.augment.mixing import Mix, draw_mix

WIDTH, HEIGHT, DRAWS = 48, 32, 4000


def assert_alike(found: list[float], wanted: list[float]) -> None:
    """Two samples of one distribution: Kolmogorov and Smirnov's test, at one in a thousand."""
    ours, yours = np.sort(found), np.sort(wanted)
    at = np.concatenate([ours, yours])
    shares = [np.searchsorted(each, at, side="right") / len(each) for each in (ours, yours)]
    limit = 1.95 * (1 / len(ours) + 1 / len(yours)) ** 0.5
    assert np.abs(shares[0] - shares[1]).max() < limit


def test_boxes_are_erased_as_often_and_as_large_as_timm_erases_them() -> None:
    ours = [erase_box(WIDTH, HEIGHT, seed=s, probability=0.25) for s in range(4 * DRAWS)]
    made = RandomErasing(probability=0.25, mode="pixel", device="cpu")
    random.seed(3)
    torch.manual_seed(3)
    yours: list[Box | None] = []
    for _ in range(4 * DRAWS):
        picture = torch.full((1, HEIGHT, WIDTH), torch.inf)
        made(picture)
        erased = torch.isfinite(picture[0])
        if not erased.any():
            yours.append(None)
            continue
        rows, columns = erased.any(1).nonzero()[:, 0], erased.any(0).nonzero()[:, 0]
        x, y = int(columns[0]), int(rows[0])
        yours.append(Box(x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1))
    mine, theirs_ = ([b for b in boxes if b is not None] for boxes in (ours, yours))
    assert len(mine) / len(ours) == pytest.approx(0.25, abs=0.015)
    assert len(mine) == pytest.approx(len(theirs_), rel=0.06)
    for measure in (
        lambda b: b.width * b.height / (WIDTH * HEIGHT),
        lambda b: b.height / b.width,
        lambda b: b.x / WIDTH,
        lambda b: b.y / HEIGHT,
    ):
        found, wanted = ([measure(b) for b in boxes] for boxes in (mine, theirs_))
        assert_alike(found, wanted)
    assert all(b.x + b.width <= WIDTH and b.y + b.height <= HEIGHT for b in mine)


@pytest.mark.parametrize(
    ("mixup", "cutmix", "switch"),
    [(0.8, 1.0, 0.5), (0.3, 0.0, 0.5), (0.0, 1.0, 0.5), (2.0, 1.0, 0.1)],
)
def test_batches_are_mixed_as_timm_mixes_them(mixup: float, cutmix: float, switch: float) -> None:
    ways = {"mixup": mixup, "cutmix": cutmix, "probability": 0.9, "switch": switch}
    ours = [draw_mix(WIDTH, HEIGHT, seed=seed, **ways) for seed in range(DRAWS)]
    made = theirs.Mixup(
        mixup_alpha=mixup, cutmix_alpha=cutmix, prob=0.9, switch_prob=switch, num_classes=2
    )
    np.random.seed(4)
    yours: list[tuple[float, bool]] = []
    for _ in range(DRAWS):
        share, cuts = made._params_per_batch()
        if cuts:
            _, share = theirs.cutmix_bbox_and_lam((3, HEIGHT, WIDTH), share)
        yours.append((share, cuts))
    kept = sum(mix is None for mix in ours) / DRAWS
    assert kept == pytest.approx(0.1, abs=0.02)
    for cuts in (False, True):
        found = [m.share for m in ours if m and (m.box is not None) == cuts]
        wanted = [share for share, cut in yours if cut == cuts and (cut or share != 1.0)]
        assert len(found) == pytest.approx(len(wanted), rel=0.15, abs=3)
        if wanted:
            assert_alike(found, wanted)


def test_a_cut_box_is_timms_around_the_same_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(300):
        mix = draw_mix(WIDTH, HEIGHT, seed=seed, mixup=0.0, cutmix=1.0)
        assert mix is not None
        assert mix.box is not None
        x, y, w, h = mix.box
        assert 0 <= x <= x + w <= WIDTH
        assert 0 <= y <= y + h <= HEIGHT
        assert mix.share == 1 - w * h / (WIDTH * HEIGHT)

    from clips.augment import mixing

    drawn = {"share": 0.37, "x": 40, "y": 5}
    monkeypatch.setattr(mixing, "_beta", lambda both, *, seed: drawn["share"])
    monkeypatch.setattr(
        mixing, "below", lambda limit, *, word: drawn["x" if limit == WIDTH else "y"]
    )
    places = iter([drawn["y"], drawn["x"]] * 100)  # timm draws the row first
    monkeypatch.setattr(theirs.np.random, "randint", lambda *_, **__: next(places))
    for share in (0.0, 0.2, 0.37, 0.9, 0.9999):
        drawn["share"] = share
        (top, bottom, left, right), kept = theirs.cutmix_bbox_and_lam((3, HEIGHT, WIDTH), share)
        wanted = Mix(pytest.approx(kept), Box(left, top, right - left, bottom - top))  # type: ignore[arg-type]
        assert draw_mix(WIDTH, HEIGHT, seed=1, mixup=0.0, cutmix=1.0) == wanted


def test_nothing_is_mixed_without_a_parameter() -> None:
    assert draw_mix(WIDTH, HEIGHT, seed=1, mixup=0.0, cutmix=0.0) is None
    assert erase_box(WIDTH, HEIGHT, seed=1, probability=0.0) is None
