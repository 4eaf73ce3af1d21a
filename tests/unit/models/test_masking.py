"""Masks: the authors' counts, what each kind promises, and independence of the batch."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from videomae import MaskConfig, make_decoder_masks, make_masks
from videomae.masking import DecoderMaskKind, Grid, MaskKind

P16, P14 = (8, 14, 14), (8, 16, 16)
SEEDS = np.random.default_rng(0).integers(0, 2**64, 32, dtype=np.uint64)


@pytest.mark.parametrize(
    ("kind", "ratio", "grid", "hidden"),
    [
        ("tube", 0.75, P16, 147 * 8),
        ("tube", 0.9, P16, 1408),
        ("tube", 0.95, P16, 186 * 8),
        ("tube", 0.9, P14, 230 * 8),
        ("random", 0.9, P16, 1411),
        ("random", 0.75, P16, 1176),
        ("frame", 0.875, P16, 7 * 196),
        ("frame", 0.9, P16, 7 * 196),
        ("tube", 0.75, (4, 4, 4), 48),
    ],
)
def test_every_clip_hides_the_authors_number_of_tokens(
    kind: MaskKind, ratio: float, grid: Grid, hidden: int
) -> None:
    mask = make_masks(MaskConfig(kind, ratio), grid, SEEDS)
    assert mask.dtype == torch.bool
    assert mask.shape == (32, math.prod(grid))
    assert mask.sum(1).tolist() == [hidden] * 32


def test_tube_hides_the_same_places_in_every_frame() -> None:
    mask = make_masks(MaskConfig("tube", 0.9), P16, SEEDS).unflatten(1, (8, 196))
    assert (mask == mask[:, :1]).all()


def test_random_does_not_hide_the_same_places_in_every_frame() -> None:
    mask = make_masks(MaskConfig("random", 0.9), P16, SEEDS).unflatten(1, (8, 196))
    assert not (mask == mask[:, :1]).all(2).all(1).any()


def test_frame_hides_whole_frames() -> None:
    mask = make_masks(MaskConfig("frame", 0.5), P16, SEEDS).unflatten(1, (8, 196))
    assert (mask == mask[:, :, :1]).all()
    assert mask[:, :, 0].sum(1).tolist() == [4] * 32


@pytest.mark.parametrize("kind", ["tube", "random", "frame"])
def test_mask_depends_on_its_seed_only(kind: MaskKind) -> None:
    config = MaskConfig(kind, 0.75, decoder="running_cell")
    for make in (make_masks, make_decoder_masks):
        together = make(config, (8, 4, 4), SEEDS)
        backwards = make(config, (8, 4, 4), [int(seed) for seed in SEEDS[::-1]])
        assert together is not None
        assert backwards is not None
        assert torch.equal(backwards.flip(0), together)
        for row, seed in enumerate(SEEDS):
            alone = make(config, (8, 4, 4), [seed])
            assert alone is not None
            assert torch.equal(alone[0], together[row])
        assert len({tuple(row) for row in together.tolist()}) > 1


@pytest.mark.parametrize("kind", ["tube", "random", "frame"])
def test_every_place_is_hidden_equally_often(kind: MaskKind) -> None:
    """5000 masks of ratio 1/2: a place's count stays within five deviations of the mean."""
    mask = make_masks(MaskConfig(kind, 0.5), (4, 2, 2), range(5000))
    deviation = math.sqrt(5000 * 0.25)
    assert ((mask.sum(0) - 2500).abs() < 5 * deviation).all()


def test_extreme_seeds_are_accepted() -> None:
    masks = make_masks(MaskConfig(), P16, np.array([0, 2**64 - 1], dtype=np.uint64))
    assert not torch.equal(masks[0], masks[1])


def test_without_decoder_masking_there_is_no_decoder_mask() -> None:
    assert make_decoder_masks(MaskConfig(), P16, SEEDS) is None


def decoder_masks(ratio: float, grid: Grid, seeds: Any) -> torch.Tensor:
    mask = make_decoder_masks(MaskConfig(decoder="running_cell", decoder_ratio=ratio), grid, seeds)
    assert mask is not None
    return mask


@pytest.mark.parametrize(("ratio", "decoded"), [(0.25, 1176), (0.5, 784), (0.75, 392)])
def test_running_cell_reconstructs_the_authors_number_of_tokens(ratio: float, decoded: int) -> None:
    mask = decoder_masks(ratio, P16, SEEDS)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [decoded] * 32
    assert decoder_masks(0.5, P14, SEEDS).sum(1).tolist() == [1024] * 32


def test_running_cell_walks_through_the_authors_sequence() -> None:
    """At ratio 1/2, 1 = not reconstructed: 1001, 0011, 0110, 1100, and again, from any start."""
    sequence = [(1, 0, 0, 1), (0, 0, 1, 1), (0, 1, 1, 0), (1, 1, 0, 0)]
    left_out = (~decoder_masks(0.5, (8, 4, 6), SEEDS)).unflatten(1, (8, 4, 6)).int()
    starts = set()
    for clip in left_out:
        cells = [tuple(frame[:2, :2].flatten().tolist()) for frame in clip]
        start = sequence.index(cells[0])
        starts.add(start)
        assert cells == [sequence[(start + t) % 4] for t in range(8)]
    assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize(("ratio", "times"), [(0.25, 3), (0.5, 2), (0.75, 1)])
def test_running_cell_covers_every_place_equally_in_four_frames(ratio: float, times: int) -> None:
    mask = decoder_masks(ratio, (8, 4, 6), SEEDS).unflatten(1, (8, 24)).int()
    for first in range(5):
        assert (mask[:, first : first + 4].sum(1) == times).all()


def test_running_cell_is_tiled() -> None:
    mask = decoder_masks(0.5, (8, 4, 6), SEEDS).unflatten(1, (8, 2, 2, 3, 2))
    assert (mask == mask[:, :, :1, :, :1]).all()


def test_decoder_draw_is_independent_of_the_encoder_draw_of_the_same_seed() -> None:
    """Cell phase against whether the first place is hidden: all eight combinations, evenly."""
    seeds = range(4000)
    hidden = make_masks(MaskConfig("tube", 0.5), (4, 2, 2), seeds)[:, 0].int()
    cells = decoder_masks(0.75, (4, 2, 2), seeds)[:, :4].int().argmax(1)
    counts = torch.bincount(hidden * 4 + cells, minlength=8)
    assert counts.sum() == 4000
    assert ((counts - 500).abs() < 5 * math.sqrt(500)).all()


@pytest.mark.parametrize(
    ("config", "grid", "message"),
    [
        (
            MaskConfig("tube", 0.1),
            (4, 2, 2),
            "mask.ratio=0.1 hides 0 of 4 places of a frame (mask.kind=tube); at least one must be "
            "hidden and one visible: change mask.ratio, or enlarge model.frames or "
            "model.image_size",
        ),
        (
            MaskConfig("frame", 0.9),
            (1, 8, 8),
            "mask.ratio=0.9 hides 0 of 1 tubelet frames (mask.kind=frame); at least one must be "
            "hidden and one visible: change mask.ratio, or enlarge model.frames or "
            "model.image_size",
        ),
        (
            MaskConfig("random", 0.2),
            (1, 2, 2),
            "mask.ratio=0.2 hides 0 of 4 tokens (mask.kind=random); at least one must be hidden "
            "and one visible: change mask.ratio, or enlarge model.frames or model.image_size",
        ),
    ],
)
def test_masks_that_hide_nothing_are_refused(config: MaskConfig, grid: Grid, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole text is compared)
        make_masks(config, grid, [1])
    assert str(caught.value) == message


def test_running_cell_needs_an_even_grid() -> None:
    for height, width in ((4, 5), (5, 4)):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole text is compared)
            decoder_masks(0.5, (8, height, width), [1])
        assert str(caught.value) == (
            "mask.decoder=running_cell tiles a frame with 2 x 2 cells, but the model has "
            f"{height} x {width} tokens per frame; change model.image_size or "
            "model.patch_size to get even numbers, or use mask.decoder=none"
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "block"}, "mask.kind='block' is unknown; choose one of tube, random, frame"),
        (
            {"decoder": "random"},
            "mask.decoder='random' is unknown; choose one of none, running_cell",
        ),
        ({"ratio": 1.0}, "mask.ratio=1.0 must lie between 0 and 1, both excluded"),
        ({"ratio": 0.0}, "mask.ratio=0.0 must lie between 0 and 1, both excluded"),
        (
            {"decoder_ratio": 0.3},
            "mask.decoder_ratio=0.3 must be 0.25, 0.5 or 0.75: a cell has four tokens",
        ),
    ],
)
def test_impossible_masks_are_refused_in_the_words_of_the_recipe(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole text is compared)
        MaskConfig(**fields)
    assert str(caught.value) == message


def test_names_of_kinds_are_those_of_the_recipe() -> None:
    kinds: tuple[MaskKind, ...] = ("tube", "random", "frame")
    decoders: tuple[DecoderMaskKind, ...] = ("none", "running_cell")
    for kind, decoder in itertools.product(kinds, decoders):
        config = MaskConfig(kind, 0.5, decoder)
        assert make_masks(config, (4, 2, 2), [1]).any()
        assert (make_decoder_masks(config, (4, 2, 2), [1]) is None) == (decoder == "none")
