"""Clips to tokens and back: pixels, patches, the embedding, and the reconstruction target.

What: `normalise`/`denormalise` between uint8 frames and network input; `patchify`/`unpatchify`
between clips and tokens; `TubeletEmbedding`; `pixel_targets`/`restore_pixels` between pixels and
the normalised targets of VideoMAE (section 3.1).
Guarantees: token index is (time, row, column), row-major. A target is (x - mean) / (deviation +
1e-6) per token and per colour channel, deviation from the unbiased variance: the epsilon is
outside the root (the authors' formula; MAE for images puts it inside and shares the statistics
between channels). Targets are float32 whatever the precision of the model.
Cost: one copy of the clip to cut it, one of each selection of tokens. The embedding is a matrix
product on the tokens it is given, so hidden tokens cost nothing (a convolution would embed them
all: 5 % of a ViT-B step).

Shapes: B clips, T frames, H x W pixels, C channels, N tokens, V or M chosen tokens, D features, X
pixels of a token per channel (tubelet x patch x patch), P = X * C numbers of a token, channel
last: the order of the authors' decoder head.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomae.presets import CHANNELS, ModelConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TARGET_EPS = 1e-6


def normalise(frames_BTHWC: Tensor) -> Tensor:
    """Turn decoded frames into network input.

    Args:
        frames_BTHWC: uint8 RGB, on any device.

    Returns:
        clips_BCTHW, float32, contiguous, ImageNet mean and deviation.

    Raises:
        ValueError: not uint8 frames with three channels last.
    """
    if frames_BTHWC.dtype != torch.uint8 or frames_BTHWC.shape[-1] != CHANNELS:
        raise ValueError(
            f"normalise takes uint8 frames [B, T, H, W, 3], got {frames_BTHWC.dtype} "
            f"{list(frames_BTHWC.shape)}"
        )
    mean_C111, std_C111 = _colour(frames_BTHWC.device)
    clips_BCTHW = frames_BTHWC.permute(0, 4, 1, 2, 3).contiguous().to(torch.float32)
    return clips_BCTHW.mul_(1 / (255 * std_C111)).sub_(mean_C111 / std_C111)


def denormalise(clips_BCTHW: Tensor) -> Tensor:
    """Turn network input back into frames: the inverse of `normalise`, uint8 [B, T, H, W, C]."""
    mean_C111, std_C111 = _colour(clips_BCTHW.device)
    return to_frames(clips_BCTHW.float() * std_C111 + mean_C111)


def to_frames(pixels_BCTHW: Tensor) -> Tensor:
    """Turn pixels between 0 and 1 into uint8 frames [B, T, H, W, C]; values outside are clipped."""
    levels_BCTHW = (pixels_BCTHW.detach() * 255).round_().clamp_(0, 255).to(torch.uint8)
    return levels_BCTHW.permute(0, 2, 3, 4, 1).contiguous()


def patchify(clips_BCTHW: Tensor, *, tubelet_size: int, patch_size: int) -> Tensor:
    """Cut clips into tokens.

    Returns:
        patches_BNCX: a copy; within a token channel first, then frame, row, column.
    """
    batch, channels, frames, height, width = clips_BCTHW.shape
    t, h, w = frames // tubelet_size, height // patch_size, width // patch_size
    cut = clips_BCTHW.reshape(batch, channels, t, tubelet_size, h, patch_size, w, patch_size)
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, t * h * w, channels, -1)


def unpatchify(
    patches_BNCX: Tensor, *, grid: tuple[int, int, int], tubelet_size: int, patch_size: int
) -> Tensor:
    """Put the tokens of `patchify` together again: clips_BCTHW."""
    t, h, w = grid
    batch, _, channels, _ = patches_BNCX.shape
    cut = patches_BNCX.reshape(batch, t, h, w, channels, tubelet_size, patch_size, patch_size)
    return cut.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(
        batch, channels, t * tubelet_size, h * patch_size, w * patch_size
    )


def select_tokens(x_BNCX: Tensor, token_BV: Tensor) -> Tensor:
    """Copy the given tokens of every clip: x_BVCX."""
    batch, tokens = x_BNCX.shape[:2]
    offset_B1 = torch.arange(0, batch * tokens, tokens, device=token_BV.device)[:, None]
    row = (token_BV + offset_B1).flatten()
    return x_BNCX.flatten(0, 1).index_select(0, row).unflatten(0, token_BV.shape)


class TubeletEmbedding(nn.Module):
    """A linear map from the pixels of a token to its features.

    The parameters are those of the convolution the authors use (`proj.weight` of shape D x C x
    tubelet x patch x patch); its kernel never overlaps, so it is this linear map, and only chosen
    tokens need to be given.
    """

    def __init__(self, config: ModelConfig, width: int) -> None:
        """Make the parameters, with PyTorch's default initialisation of a convolution."""
        super().__init__()
        kernel = (config.tubelet_size, config.patch, config.patch)
        self.proj = nn.Conv3d(CHANNELS, width, kernel_size=kernel, stride=kernel)

    def forward(self, patches_BVCX: Tensor) -> Tensor:
        """Embed tokens cut by `patchify`: x_BVD, in the dtype of the parameters (or autocast's)."""
        weight_DP = self.proj.weight.flatten(1)
        return F.linear(patches_BVCX.flatten(2).to(weight_DP.dtype), weight_DP, self.proj.bias)


class PixelTargets(NamedTuple):
    """What the decoder must predict, and what turns a prediction back into pixels."""

    targets_BMP: Tensor
    """Normalised pixels, float32."""
    means_BMC: Tensor
    """Mean of each token and channel, of pixels between 0 and 1."""
    deviations_BMC: Tensor
    """Their standard deviation (unbiased)."""


@torch.no_grad()
def pixel_targets(patches_BMCX: Tensor) -> PixelTargets:
    """Normalise the pixels of every token and channel by their own mean and deviation.

    Args:
        patches_BMCX: tokens of network input (`normalise`, then `patchify`).
    """
    mean_C1, std_C1 = (each.flatten(1) for each in _colour(patches_BMCX.device))
    pixels_BMCX = torch.addcmul(mean_C1, patches_BMCX.float(), std_C1)
    variance_BMC1, mean_BMC1 = torch.var_mean(pixels_BMCX, dim=-1, correction=1, keepdim=True)
    deviation_BMC1 = variance_BMC1.sqrt()
    targets_BMCX = pixels_BMCX.sub_(mean_BMC1).div_(deviation_BMC1 + TARGET_EPS)
    targets_BMP = targets_BMCX.transpose(2, 3).flatten(2)
    return PixelTargets(targets_BMP, mean_BMC1.squeeze(-1), deviation_BMC1.squeeze(-1))


def restore_pixels(values_BMP: Tensor, *, means_BMC: Tensor, deviations_BMC: Tensor) -> Tensor:
    """Undo `pixel_targets`.

    Returns:
        patches_BMCX: pixels between 0 and 1; those made of predictions may leave that range.
    """
    values_BMCX = values_BMP.float().unflatten(-1, (-1, CHANNELS)).transpose(2, 3)
    return values_BMCX * (deviations_BMC[..., None] + TARGET_EPS) + means_BMC[..., None]


def clip_patches(clips_BCTHW: Tensor, config: ModelConfig) -> Tensor:
    """Cut normalised clips of a model's size into all their tokens' pixels, [B, N, C, X]; see `patchify`.

    Raises:
        ValueError: clips of another size, or not normalised.
    """
    check_clips(clips_BCTHW, config)
    return patchify(clips_BCTHW, tubelet_size=config.tubelet_size, patch_size=config.patch)


def check_clips(clips_BCTHW: Tensor, config: ModelConfig) -> None:
    """Raise ValueError unless the clips are normalised and of the size the model is for."""
    wanted = (CHANNELS, config.frames, config.image_size, config.image_size)
    if clips_BCTHW.dim() != 5 or tuple(clips_BCTHW.shape[1:]) != wanted:
        raise ValueError(
            f"the model takes clips [B, {', '.join(map(str, wanted))}] (channels, model.frames, "
            f"model.image_size twice), got {list(clips_BCTHW.shape)}"
        )
    if not clips_BCTHW.is_floating_point():
        raise ValueError(
            f"the model takes normalised clips, got {clips_BCTHW.dtype}; call videomae.normalise"
        )


def _colour(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ImageNet mean and deviation, shape (C, 1, 1, 1)."""
    # Not torch.tensor(..., device=...): that would make the host wait for the GPU.
    mean_C = torch.tensor(IMAGENET_MEAN, device="cpu").to(device, non_blocking=True)
    std_C = torch.tensor(IMAGENET_STD, device="cpu").to(device, non_blocking=True)
    return mean_C.view(-1, 1, 1, 1), std_C.view(-1, 1, 1, 1)
