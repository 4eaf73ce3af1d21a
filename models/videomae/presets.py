"""Model sizes as data, and the recipe section `model` that selects and adjusts them.

What: `ModelConfig` names a preset (the authors' ViT-S/B/L/H of VideoMAE and ViT-L/H/g of VideoMAE
V2, or `tiny` for a laptop) and may override any of its numbers. Everything else in the package
takes its sizes from here.
Why: an impossible combination must be found when the recipe is read, not when a cluster has
started; so all checks are in `__post_init__` and speak of recipe keys.
Guarantees: a `ModelConfig` that exists can be built; it is immutable, hashable and made of JSON
values only.
Cost: none; no tensor is made here.

Sources: VideoMAE (NeurIPS 2022), table 8 and section 4; VideoMAE V2 (CVPR 2023), section 4 and
appendix. Decoder widths: half the encoder in VideoMAE, 512 for every size of V2.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

PresetName = Literal["tiny", "vit_s", "vit_b", "vit_l", "vit_h", "vit_l_v2", "vit_h_v2", "vit_g"]
Initialisation = Literal["authors", "xavier"]
PositionRule = Literal["recomputed", "interpolated"]

CHANNELS = 3
"""Colour channels of a clip; every published VideoMAE model reads RGB."""


@dataclass(frozen=True)
class TransformerSize:
    """Sizes of one stack of transformer blocks."""

    width: int
    """Features per token."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads; each reads width / heads features."""
    mlp_ratio: float
    """Width of the hidden layer of the MLP over `width`."""

    @property
    def hidden(self) -> int:
        """Width of the hidden layer of the MLP, rounded down as the authors round it."""
        return int(self.width * self.mlp_ratio)


@dataclass(frozen=True)
class Preset:
    """A published pair of encoder and decoder, for clips of 16 frames of 224 x 224."""

    patch_size: int
    """Side of the square a token covers, in pixels."""
    encoder: TransformerSize
    decoder: TransformerSize


def _preset(
    patch_size: int,
    encoder: tuple[int, int, int],
    decoder: tuple[int, int, int],
    mlp_ratio: float = 4.0,
) -> Preset:
    return Preset(
        patch_size, TransformerSize(*encoder, mlp_ratio), TransformerSize(*decoder, mlp_ratio)
    )


PRESETS: dict[PresetName, Preset] = {
    # name: patch, (width, depth, heads) of the encoder, the same of the decoder
    "tiny": _preset(8, (96, 4, 3), (64, 2, 2)),
    "vit_s": _preset(16, (384, 12, 6), (192, 4, 3)),
    "vit_b": _preset(16, (768, 12, 12), (384, 4, 6)),
    "vit_l": _preset(16, (1024, 24, 16), (512, 12, 8)),
    "vit_h": _preset(16, (1280, 32, 16), (640, 12, 8)),
    "vit_l_v2": _preset(16, (1024, 24, 16), (512, 4, 8)),
    "vit_h_v2": _preset(16, (1280, 32, 16), (512, 4, 8)),
    "vit_g": _preset(14, (1408, 40, 16), (512, 4, 8), mlp_ratio=48 / 11),
}

PRESET_FRAMES, PRESET_IMAGE_SIZE, PRESET_TUBELET = 16, 224, 2
"""The clip the presets were published for; `positions="interpolated"` starts from its grid."""


@dataclass(frozen=True)
class ModelConfig:
    """The recipe section `model`."""

    preset: PresetName = "vit_b"
    """The published model whose sizes are used where no field below overrides them."""
    frames: int = 16
    """Frames per clip."""
    image_size: int = 224
    """Side of the square frames, in pixels."""
    tubelet_size: int = 2
    """Frames per token."""
    patch_size: int | None = None
    """Side of a token in pixels; None: the preset's."""
    width: int | None = None
    """Encoder width; None: the preset's."""
    depth: int | None = None
    """Encoder blocks; None: the preset's."""
    heads: int | None = None
    """Encoder attention heads; None: the preset's."""
    decoder_width: int | None = None
    """Decoder width; None: the preset's."""
    decoder_depth: int | None = None
    """Decoder blocks; None: the preset's."""
    decoder_heads: int | None = None
    """Decoder attention heads; None: the preset's."""
    mlp_ratio: float | None = None
    """Hidden width of the MLPs over the width, encoder and decoder alike; None: the preset's."""
    norm_eps: float = 1e-6
    """Epsilon of every LayerNorm that has no field of its own below."""
    fc_norm_eps: float | None = None
    """Epsilon of the classifier's last norm (transformers fixes it at 1e-5); None: `norm_eps`."""
    decoder_norm_eps: float | None = None
    """Epsilon of the decoder's last norm (transformers fixes it at 1e-5); None: `norm_eps`."""
    positions: PositionRule = "recomputed"
    """Position table at sizes other than 16 x 224 x 224: a fresh one of the new length, as
    VideoMAE does, or the preset's table interpolated on its grid."""
    drop_path: float = 0.0
    """Stochastic depth of the last block; the first has 0, those between are spaced evenly."""
    init: Initialisation = "authors"
    """Fresh weights: as the authors draw them (deviation 0.02 in classifiers, a convolution's default
    for the embedding), or Xavier-uniform for every linear map, the embedding included (as MAE does
    for images). Narrow models need the latter: 0.02 is a tenth of what a layer 64 wide wants, and a
    classifier that starts there learns nothing in its first hundreds of steps."""

    def __post_init__(self) -> None:
        """Refuse what no model can be built from; ValueError names the recipe keys."""
        if self.preset not in PRESETS:
            allowed = ", ".join(get_args(PresetName))
            raise ValueError(f"model.preset={self.preset!r} is unknown; choose one of {allowed}")
        if self.init not in get_args(Initialisation):
            allowed = ", ".join(get_args(Initialisation))
            raise ValueError(f"model.init={self.init!r} is unknown; choose one of {allowed}")
        if self.positions not in get_args(PositionRule):
            allowed = ", ".join(get_args(PositionRule))
            raise ValueError(
                f"model.positions={self.positions!r} is unknown; choose one of {allowed}"
            )
        _check_positive(self)
        _check_divides("frames", self.frames, "tubelet_size", self.tubelet_size)
        _check_divides("image_size", self.image_size, "patch_size", self.patch)
        _check_divides("width", self.encoder.width, "heads", self.encoder.heads)
        _check_divides("decoder_width", self.decoder.width, "decoder_heads", self.decoder.heads)
        for name, size in (("width", self.encoder), ("decoder_width", self.decoder)):
            if size.hidden < 1:
                raise ValueError(
                    f"model.mlp_ratio={size.mlp_ratio} of model.{name}={size.width} leaves no "
                    "hidden feature; use a larger ratio"
                )
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"model.drop_path={self.drop_path} must be at least 0 and below 1")

    @property
    def patch(self) -> int:
        """Side of a token in pixels, after the override."""
        return PRESETS[self.preset].patch_size if self.patch_size is None else self.patch_size

    @property
    def encoder(self) -> TransformerSize:
        """Sizes of the encoder, after the overrides."""
        preset = PRESETS[self.preset].encoder
        return TransformerSize(
            width=preset.width if self.width is None else self.width,
            depth=preset.depth if self.depth is None else self.depth,
            heads=preset.heads if self.heads is None else self.heads,
            mlp_ratio=preset.mlp_ratio if self.mlp_ratio is None else self.mlp_ratio,
        )

    @property
    def decoder(self) -> TransformerSize:
        """Sizes of the decoder, after the overrides."""
        preset = PRESETS[self.preset].decoder
        return TransformerSize(
            width=preset.width if self.decoder_width is None else self.decoder_width,
            depth=preset.depth if self.decoder_depth is None else self.decoder_depth,
            heads=preset.heads if self.decoder_heads is None else self.decoder_heads,
            mlp_ratio=preset.mlp_ratio if self.mlp_ratio is None else self.mlp_ratio,
        )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of a clip along time, height and width."""
        side = self.image_size // self.patch
        return self.frames // self.tubelet_size, side, side

    @property
    def tokens(self) -> int:
        """Tokens of a clip."""
        return math.prod(self.grid)

    @property
    def token_values(self) -> int:
        """Numbers in the pixels one token covers."""
        return self.tubelet_size * self.patch * self.patch * CHANNELS

    @property
    def preset_grid(self) -> tuple[int, int, int]:
        """Grid of the clip the preset was published for."""
        side = PRESET_IMAGE_SIZE // PRESETS[self.preset].patch_size
        return PRESET_FRAMES // PRESET_TUBELET, side, side


_COUNTS = (
    *("frames", "image_size", "tubelet_size", "patch_size"),
    *("width", "depth", "heads"),
    *("decoder_width", "decoder_depth", "decoder_heads"),
)
_POSITIVE = ("mlp_ratio", "norm_eps", "fc_norm_eps", "decoder_norm_eps")


def _check_positive(config: ModelConfig) -> None:
    for name in _COUNTS:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"model.{name}={value} must be at least 1")
    for name in _POSITIVE:
        value = getattr(config, name)
        if value is not None and not 0.0 < value < math.inf:
            raise ValueError(f"model.{name}={value} must be a positive number")


def _check_divides(whole_name: str, whole: int, part_name: str, part: int) -> None:
    if whole % part:
        below = whole // part * part
        near = f"{below + part}" if below == 0 else f"{below} or {below + part}"
        raise ValueError(
            f"model.{whole_name}={whole} is not divisible by model.{part_name}={part}; "
            f"use {near}, or another model.{part_name}"
        )
