"""Pixels, tokens, the embedding and the targets, each against a slow reference."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from videomae import (
    ModelConfig,
    build_classifier,
    denormalise,
    normalise,
    patchify,
    restore_pixels,
    to_frames,
    unpatchify,
)
from videomae.patches import TubeletEmbedding, pixel_targets, select_tokens

MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])


def clips(batch: int = 2, frames: int = 4, height: int = 8, width: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, frames, height, width, generator=generator)


def test_normalise_subtracts_the_mean_and_divides_by_the_deviation_of_imagenet() -> None:
    frames = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    found = normalise(frames)
    wanted = ((frames / 255 - MEAN) / STD).permute(0, 4, 1, 2, 3)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_denormalise_gives_every_colour_back() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 4, 8, 8, 1).expand(1, 4, 8, 8, 3)
    assert torch.equal(denormalise(normalise(every)), every)


def test_to_frames_clips_values_outside_the_range() -> None:
    pixels = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5]).view(1, 1, 1, 1, 5)
    assert to_frames(pixels).flatten().tolist() == [0, 0, 128, 255, 255]


def test_normalise_refuses_anything_but_uint8_frames_with_channels_last() -> None:
    with pytest.raises(ValueError, match=r"^normalise takes uint8 frames \[B, T, H, W, 3\], got "):
        normalise(torch.zeros(1, 2, 4, 4, 3))
    with pytest.raises(ValueError, match=r"got torch\.uint8 \[1, 3, 2, 4, 4\]$"):
        normalise(torch.zeros(1, 3, 2, 4, 4, dtype=torch.uint8))


def test_tokens_are_ordered_by_time_row_column() -> None:
    x = clips()
    patches = patchify(x, tubelet_size=2, patch_size=4)
    assert patches.shape == (2, 2 * 2 * 3, 3, 2 * 4 * 4)
    index = 0
    for t in range(2):
        for h in range(2):
            for w in range(3):
                cut = x[:, :, 2 * t : 2 * t + 2, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4]
                assert torch.equal(patches[:, index], cut.flatten(2))
                index += 1


def test_unpatchify_undoes_patchify() -> None:
    x = clips()
    patches = patchify(x, tubelet_size=2, patch_size=4)
    assert torch.equal(unpatchify(patches, grid=(2, 2, 3), tubelet_size=2, patch_size=4), x)


def test_embedding_equals_the_convolution_whose_weights_it_has() -> None:
    config = ModelConfig("tiny", frames=4, image_size=16, patch_size=4)
    embed = TubeletEmbedding(config, 10)
    x = clips(height=16, width=16)
    found = embed(patchify(x, tubelet_size=2, patch_size=4))
    wanted = F.conv3d(x, embed.proj.weight, embed.proj.bias, stride=(2, 4, 4))
    torch.testing.assert_close(found, wanted.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)


def test_embedding_some_tokens_equals_embedding_all_and_picking() -> None:
    config = ModelConfig("tiny", frames=4, image_size=16, patch_size=4)
    embed = TubeletEmbedding(config, 10)
    patches = patchify(clips(height=16, width=16), tubelet_size=2, patch_size=4)
    token = torch.tensor([[0, 3, 31], [5, 6, 7]])
    found = embed(select_tokens(patches, token))
    wanted = torch.stack([embed(patches)[row, token[row]] for row in range(2)])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def slow_targets(x: Tensor, tubelet: int, patch: int) -> tuple[Tensor, Tensor, Tensor]:
    """The formula of the paper with loops: (frame, row, column, channel) within a token."""
    pixels = x * STD.view(3, 1, 1, 1) + MEAN.view(3, 1, 1, 1)
    _, _, frames, height, width = pixels.shape
    targets, means, deviations = [], [], []
    for t in range(0, frames, tubelet):
        for h in range(0, height, patch):
            for w in range(0, width, patch):
                cut = pixels[:, :, t : t + tubelet, h : h + patch, w : w + patch]
                mean = cut.mean((2, 3, 4), keepdim=True)
                count = cut[0, 0].numel()
                variance = ((cut - mean) ** 2).sum((2, 3, 4), keepdim=True) / (count - 1)
                target = (cut - mean) / (variance.sqrt() + 1e-6)
                targets.append(target.permute(0, 2, 3, 4, 1).flatten(1))
                means.append(mean.flatten(1))
                deviations.append(variance.sqrt().flatten(1))
    return torch.stack(targets, 1), torch.stack(means, 1), torch.stack(deviations, 1)


def test_targets_follow_the_formula_of_the_authors() -> None:
    x = clips()
    found = pixel_targets(patchify(x, tubelet_size=2, patch_size=4))
    wanted = slow_targets(x.double(), 2, 4)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=2e-5, rtol=0)


def test_epsilon_stands_outside_the_root() -> None:
    """A faint ramp shows where: inside the root it would shrink the target a thousandfold."""
    x = torch.zeros(1, 3, 2, 4, 4)
    x[..., 0] = 1e-5  # deviation of about 1e-6 after un-normalising
    found = pixel_targets(patchify(x.double(), tubelet_size=2, patch_size=4))
    wanted = slow_targets(x, 2, 4)
    assert found.targets_BMP.abs().max() > 0.1
    torch.testing.assert_close(found.targets_BMP, wanted[0], atol=0.05, rtol=0)


def test_targets_are_float32_and_need_no_gradient() -> None:
    x = clips().bfloat16().requires_grad_()
    found = pixel_targets(patchify(x, tubelet_size=2, patch_size=4))
    assert {each.dtype for each in found} == {torch.float32}
    assert not any(each.requires_grad for each in found)


def test_constant_patches_have_a_target_of_zero() -> None:
    found = pixel_targets(torch.zeros(1, 2, 3, 16))
    assert torch.equal(found.targets_BMP, torch.zeros(1, 2, 48))


def test_restore_pixels_undoes_the_targets() -> None:
    patches = patchify(clips(), tubelet_size=2, patch_size=4)
    target, means, deviations = pixel_targets(patches)
    pixels = restore_pixels(target, means_BMC=means, deviations_BMC=deviations)
    wanted = patches * STD.view(3, 1) + MEAN.view(3, 1)
    torch.testing.assert_close(pixels, wanted, atol=1e-5, rtol=0)


def test_clips_of_another_size_are_refused_in_the_words_of_the_recipe() -> None:
    model = build_classifier(ModelConfig("tiny", frames=4, image_size=16), num_classes=2)
    message = (
        r"^the model takes clips \[B, 3, 4, 16, 16\] \(channels, model\.frames, model\.image_size "
        r"twice\), got \[1, 3, 8, 16, 16\]$"
    )
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 3, 8, 16, 16))
    message = r"^the model takes normalised clips, got torch\.uint8; call videomae\.normalise$"
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 3, 4, 16, 16, dtype=torch.uint8))
