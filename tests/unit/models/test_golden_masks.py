"""Fixed masks of fixed seeds: a run that is resumed later must draw the same ones.

If a test here fails, masks have changed, and every run in progress with them. Do not update the
numbers without an ADR.
"""

import hashlib

import numpy as np
import pytest
from torch import Tensor

from videomae import MaskConfig, make_decoder_masks, make_masks
from videomae.masking import MaskKind

SEEDS = [0, 1, 2**64 - 1]
MANY = np.arange(64, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def drawn(mask: Tensor | None) -> list[str]:
    assert mask is not None
    return ["".join(".#"[int(value)] for value in row) for row in mask.tolist()]


def digest(mask: Tensor | None) -> str:
    assert mask is not None
    return hashlib.sha256(np.packbits(mask.numpy()).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("tube", ["#.#.#.#.#.#.#.#.", "..##..##..##..##", "#.#.#.#.#.#.#.#."]),
        ("random", ["###..#..##.#.#..", "#.##.#.#.##...#.", "#......#######.."]),
        ("frame", ["####....####....", "........########", "####....####...."]),
    ],
)
def test_encoder_masks_have_not_changed(kind: MaskKind, wanted: list[str]) -> None:
    assert drawn(make_masks(MaskConfig(kind, 0.5), (4, 2, 2), SEEDS)) == wanted


@pytest.mark.parametrize(
    ("ratio", "wanted"),
    [
        (0.25, ["#.##.######.##.#", ".######.##.##.##", "##.##.##.######."]),
        (0.5, ["#..#..##.##.##..", "..##.##.##..#..#", "##..#..#..##.##."]),
        (0.75, ["#......#..#..#..", "...#..#..#..#...", ".#..#......#..#."]),
    ],
)
def test_decoder_masks_have_not_changed(ratio: float, wanted: list[str]) -> None:
    config = MaskConfig(decoder="running_cell", decoder_ratio=ratio)
    assert drawn(make_decoder_masks(config, (4, 2, 2), SEEDS)) == wanted


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("tube", "25b3c169b2754572"),
        ("random", "1136492064c4a727"),
        ("frame", "098f33f2f5127279"),
    ],
)
def test_masks_of_full_size_clips_have_not_changed(kind: MaskKind, wanted: str) -> None:
    assert digest(make_masks(MaskConfig(kind, 0.9), (8, 14, 14), MANY)) == wanted


def test_decoder_masks_of_full_size_clips_have_not_changed() -> None:
    config = MaskConfig(decoder="running_cell")
    assert digest(make_decoder_masks(config, (8, 14, 14), MANY)) == "82de59a6e59ad127"
