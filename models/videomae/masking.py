"""Which tokens the encoder does not see, and which the decoder reconstructs.

What: tube, random and frame masks for the encoder (VideoMAE, section 3.2 and table 1b) and the
running-cell mask for the decoder (VideoMAE V2, section 3.2). The recipe section is `mask`.
Why here: a mask must depend on its sample and on nothing else, so that it is the same whatever the
batch, the worker and the number of workers; the caller gives one uint64 seed per sample.
Guarantees: exactly the authors' counts; every row of a batch hides equally many tokens; the bits
are those of numpy's Philox counter generator, whose raw stream numpy promises never to change (NEP
19), ranked by a stable sort, so a mask is the same on every machine and version. The decoder's
draw is another stream of the same seed.
Cost: some 15 us per sample on one core, in numpy (85 us for random masks of ViT-B).

Shapes: B samples, N tokens in (time, row, column) order, T x H x W = N the token grid, K things
ranked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MaskKind = Literal["tube", "random", "frame"]
DecoderMaskKind = Literal["none", "running_cell"]
Seeds = Sequence[int] | NDArray[np.uint64]
Grid = tuple[int, int, int]

_CELL = 4  # tokens in the 2 x 2 cell of the running-cell mask
_ENCODER_STREAM, _DECODER_STREAM = 0, 1


@dataclass(frozen=True)
class MaskConfig:
    """The recipe section `mask`."""

    kind: MaskKind = "tube"
    """What is hidden from the encoder: the same places in every frame, places drawn anew, or whole
    frames."""
    ratio: float = 0.9
    """Share of the tokens hidden from the encoder; counts are rounded down."""
    decoder: DecoderMaskKind = "none"
    """What the decoder leaves out: nothing, or a pattern that wanders through 2 x 2 cells
    (VideoMAE V2)."""
    decoder_ratio: float = 0.5
    """Share of the tokens the decoder does NOT reconstruct, as the authors count it; 0.25, 0.5 or
    0.75."""

    def __post_init__(self) -> None:
        """Refuse ratios no mask can have; ValueError names the recipe keys."""
        if self.kind not in get_args(MaskKind):
            allowed = ", ".join(get_args(MaskKind))
            raise ValueError(f"mask.kind={self.kind!r} is unknown; choose one of {allowed}")
        if self.decoder not in get_args(DecoderMaskKind):
            allowed = ", ".join(get_args(DecoderMaskKind))
            raise ValueError(f"mask.decoder={self.decoder!r} is unknown; choose one of {allowed}")
        if not 0.0 < self.ratio < 1.0:
            raise ValueError(f"mask.ratio={self.ratio} must lie between 0 and 1, both excluded")
        if self.decoder_ratio not in (0.25, 0.5, 0.75):
            raise ValueError(
                f"mask.decoder_ratio={self.decoder_ratio} must be 0.25, 0.5 or 0.75: "
                "a cell has four tokens"
            )


def make_masks(config: MaskConfig, grid: Grid, seeds: Seeds) -> Tensor:
    """Draw the mask of every sample of a batch.

    Args:
        config: kind and ratio.
        grid: tokens along time, height and width (`ModelConfig.grid`).
        seeds: one unsigned 64-bit number per sample.

    Returns:
        mask_BN, bool, on the CPU; True where the token is hidden from the encoder.

    Raises:
        ValueError: the ratio hides nothing, or everything, on this grid.
    """
    frames, height, width = grid
    match config.kind:
        case "tube":
            hidden_BK = _choose(config, height * width, "places of a frame", seeds)
            mask_BN = np.tile(hidden_BK, (1, frames))
        case "random":
            mask_BN = _choose(config, math.prod(grid), "tokens", seeds)
        case "frame":
            hidden_BK = _choose(config, frames, "tubelet frames", seeds)
            mask_BN = np.repeat(hidden_BK, height * width, axis=1)
    return torch.from_numpy(mask_BN)


def make_decoder_masks(config: MaskConfig, grid: Grid, seeds: Seeds) -> Tensor | None:
    """Draw which tokens the decoder of every sample reconstructs.

    The 2 x 2 cell starts at one of four phases, drawn per sample, and moves on by one place per
    tubelet frame, so that any four frames in a row leave out every place equally often.

    Args:
        config: `decoder` and `decoder_ratio`.
        grid: tokens along time, height and width; height and width even.
        seeds: one unsigned 64-bit number per sample; those of `make_masks` may be used again.

    Returns:
        mask_BN, bool, on the CPU; True where the token is reconstructed. None if the decoder
        reconstructs all hidden tokens (`mask.decoder=none`).

    Raises:
        ValueError: the grid cannot be tiled with 2 x 2 cells.
    """
    if config.decoder == "none":
        return None
    frames, height, width = grid
    if height % 2 or width % 2:
        raise ValueError(
            "mask.decoder=running_cell tiles a frame with 2 x 2 cells, but the model has "
            f"{height} x {width} tokens per frame; change model.image_size or model.patch_size to "
            "get even numbers, or use mask.decoder=none"
        )
    left_out = int(_CELL * config.decoder_ratio)
    phase_B = _raw_bits(seeds, 1, _DECODER_STREAM)[:, 0] >> np.uint64(62)  # two bits: 0..3
    step_BT = phase_B[:, None] + np.arange(frames, dtype=np.uint64)
    place_BTK = (step_BT[..., None] + np.arange(_CELL, dtype=np.uint64)) % np.uint64(_CELL)
    decoded_BTyx = (place_BTK >= left_out).reshape(len(seeds), frames, 2, 2)
    mask_BTHW = np.tile(decoded_BTyx, (1, 1, height // 2, width // 2))
    return torch.from_numpy(mask_BTHW.reshape(len(seeds), -1))


def _choose(config: MaskConfig, count: int, what: str, seeds: Seeds) -> NDArray[np.bool_]:
    """Mark int(ratio * count) of `count` things per seed, every subset equally likely."""
    chosen = int(config.ratio * count)
    if not 0 < chosen < count:
        raise ValueError(
            f"mask.ratio={config.ratio} hides {chosen} of {count} {what} (mask.kind="
            f"{config.kind}); at least one must be hidden and one visible: change mask.ratio, or "
            "enlarge model.frames or model.image_size"
        )
    order_BK = np.argsort(_raw_bits(seeds, count, _ENCODER_STREAM), axis=1, kind="stable")
    marked_BK = np.zeros(order_BK.shape, dtype=np.bool_)
    np.put_along_axis(marked_BK, order_BK[:, :chosen], True, axis=1)
    return marked_BK


def _raw_bits(seeds: Seeds, count: int, stream: int) -> NDArray[np.uint64]:
    """Return `count` random words per seed; seed and stream are the two halves of Philox's key."""
    bits_BK = np.empty((len(seeds), count), dtype=np.uint64)
    for row, seed in enumerate(seeds):
        assert 0 <= int(seed) < 2**64, "a seed is an unsigned 64-bit number"
        bits_BK[row] = np.random.Philox(key=int(seed) | stream << 64).random_raw(count)
    return bits_BK
