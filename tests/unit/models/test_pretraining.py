"""The masked autoencoder: what it sees, what it is scored on, and how it behaves in training."""

import re

import pytest
import torch
from torch import Tensor
from torch.nn import LayerNorm

from videomae import (
    MaskConfig,
    ModelConfig,
    VideoMAE,
    build_pretraining,
    make_decoder_masks,
    make_masks,
    patchify,
)
from videomae.patches import pixel_targets

CONFIG = ModelConfig(
    *("tiny", 8, 32), depth=2, decoder_depth=1, width=48, heads=3, decoder_width=32, decoder_heads=2
)
MASK = MaskConfig("tube", 0.75)
DUAL = MaskConfig("tube", 0.75, decoder="running_cell")
SEEDS = [3, 1, 4]


@pytest.fixture
def model() -> VideoMAE:
    torch.manual_seed(0)
    return build_pretraining(CONFIG)


@pytest.fixture
def clips() -> Tensor:
    return torch.randn(3, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))


def masks(config: MaskConfig = MASK) -> tuple[Tensor, Tensor | None]:
    return (
        make_masks(config, CONFIG.grid, SEEDS),
        make_decoder_masks(config, CONFIG.grid, SEEDS),
    )


def cut(clips: Tensor) -> Tensor:
    return patchify(clips, tubelet_size=2, patch_size=8)


def test_predictions_come_from_visible_tokens_only(model: VideoMAE, clips: Tensor) -> None:
    mask, _ = masks()
    before = model(clips, mask)
    hidden = mask.view(3, 1, 4, 4, 4).repeat_interleave(2, 2)
    hidden = hidden.repeat_interleave(8, 3).repeat_interleave(8, 4)
    after = model(torch.where(hidden, torch.randn_like(clips), clips), mask)
    assert torch.equal(after.predictions_BMP, before.predictions_BMP)
    assert not torch.equal(after.targets_BMP, before.targets_BMP)


def test_embedding_visible_tokens_equals_embedding_all_and_gathering(
    model: VideoMAE, clips: Tensor
) -> None:
    mask, _ = masks()
    encoder = model.encoder
    convolved = encoder.patch_embed.proj(clips).flatten(2).transpose(1, 2)
    x = (convolved + encoder.positions())[~mask].view(3, 16, -1)
    for block in encoder.blocks:
        x = block(x)
    token = (~mask).nonzero()[:, 1].view(3, 16)
    found = encoder(cut(clips)[~mask].unflatten(0, (3, 16)), token)
    torch.testing.assert_close(found, encoder.norm(x), atol=1e-5, rtol=0)


def test_targets_are_those_of_the_hidden_tokens_in_order(model: VideoMAE, clips: Tensor) -> None:
    mask, _ = masks()
    result = model(clips, mask)
    wanted = pixel_targets(cut(clips))
    for row in range(3):
        assert torch.equal(result.tokens_BM[row], mask[row].nonzero()[:, 0])
        assert torch.equal(result.targets_BMP[row], wanted.targets_BMP[row, mask[row]])
        assert torch.equal(result.means_BMC[row], wanted.means_BMC[row, mask[row]])
        assert torch.equal(result.deviations_BMC[row], wanted.deviations_BMC[row, mask[row]])
    assert result.scored_BM.all()


def test_loss_is_the_mean_square_error_of_every_clip(model: VideoMAE, clips: Tensor) -> None:
    result = model(clips, masks()[0])
    error = (result.predictions_BMP - result.targets_BMP).double().square()
    torch.testing.assert_close(result.loss_B.double(), error.mean((1, 2)), atol=1e-6, rtol=0)


def test_decoder_mask_limits_what_is_decoded_and_scored(model: VideoMAE, clips: Tensor) -> None:
    mask, selected = masks(DUAL)
    assert selected is not None
    result = model(clips, mask, selected)
    assert result.predictions_BMP.shape == (3, 32, 384)
    for row in range(3):
        assert torch.equal(result.tokens_BM[row], selected[row].nonzero()[:, 0])
        assert torch.equal(result.scored_BM[row], mask[row][selected[row]])
        error = (result.predictions_BMP[row] - result.targets_BMP[row]).square().mean(-1)
        assert 0 < result.scored_BM[row].sum() < 32
        torch.testing.assert_close(result.loss_B[row], error[result.scored_BM[row]].mean())


def test_decoder_does_not_attend_to_tokens_it_does_not_reconstruct(
    model: VideoMAE, clips: Tensor
) -> None:
    """Selecting exactly the hidden tokens is the plain model; selecting fewer is another one."""
    mask, selected = masks(DUAL)
    assert selected is not None
    whole = model(clips, mask)
    same = model(clips, mask, mask)
    assert torch.equal(same.predictions_BMP, whole.predictions_BMP)
    assert torch.equal(same.loss_B, whole.loss_B)
    fewer = model(clips, mask, selected)
    common = fewer.predictions_BMP[0, fewer.scored_BM[0]]
    of_whole = whole.predictions_BMP[0, selected[0][mask[0]]]
    assert common.shape == of_whole.shape
    assert not torch.allclose(common, of_whole, atol=1e-4)


def test_loss_of_a_clip_does_not_depend_on_its_batch(model: VideoMAE, clips: Tensor) -> None:
    mask, selected = masks(DUAL)
    assert selected is not None
    together = model(clips, mask, selected).loss_B
    for row in range(3):
        one = slice(row, row + 1)
        alone = model(clips[one], mask[one], selected[one]).loss_B
        torch.testing.assert_close(alone, together[one], atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", [MASK, DUAL])
def test_gradient_reaches_every_parameter(
    model: VideoMAE, clips: Tensor, config: MaskConfig
) -> None:
    model(clips, *masks(config)).loss_B.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_model_learns_a_clip_by_heart(model: VideoMAE, clips: Tensor) -> None:
    coarse = clips[:1, :, ::2, ::8, ::8]
    smooth = torch.nn.functional.interpolate(coarse, size=(8, 32, 32), mode="trilinear")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(45):
        loss = model(smooth, masks()[0][:1]).loss_B.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("frames", "size", "tubelet", "patch"),
    [(2, 16, 2, 8), (6, 40, 2, 4), (4, 48, 1, 16), (32, 16, 4, 8), (16, 32, 2, 16)],
)
@pytest.mark.parametrize("rule", ["recomputed", "interpolated"])
def test_any_frame_count_and_resolution_works(
    frames: int, size: int, tubelet: int, patch: int, rule: str
) -> None:
    config = ModelConfig(
        "tiny",
        frames=frames,
        image_size=size,
        tubelet_size=tubelet,
        patch_size=patch,
        depth=1,
        decoder_depth=1,
        positions=rule,  # pyright: ignore[reportArgumentType]
    )
    model = build_pretraining(config)
    mask = make_masks(MaskConfig("random", 0.75), config.grid, [1, 2])
    result = model(torch.randn(2, 3, frames, size, size), mask)
    assert result.predictions_BMP.shape == (2, mask[0].sum(), 3 * tubelet * patch**2)
    assert result.loss_B.isfinite().all()


def test_targets_and_loss_stay_float32_under_autocast(model: VideoMAE, clips: Tensor) -> None:
    exact = model(clips, masks()[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = model(clips, masks()[0])
    assert result.loss_B.dtype == result.predictions_BMP.dtype == torch.float32
    assert torch.equal(result.targets_BMP, exact.targets_BMP)
    assert not torch.equal(result.predictions_BMP, exact.predictions_BMP)  # autocast was on
    torch.testing.assert_close(result.loss_B, exact.loss_B, atol=0.02, rtol=0)


def test_bfloat16_parameters_take_float32_clips(model: VideoMAE, clips: Tensor) -> None:
    """What FSDP2's mixed precision does: parameters cast, inputs of the root left alone."""
    exact = model(clips, masks()[0])
    result = model.bfloat16()(clips, masks()[0])
    assert result.loss_B.dtype == torch.float32
    assert torch.equal(result.targets_BMP, exact.targets_BMP)
    torch.testing.assert_close(result.loss_B, exact.loss_B, atol=0.02, rtol=0)


def test_outputs_with_a_gradient_are_not_views(model: VideoMAE, clips: Tensor) -> None:
    """FSDP2 hooks outputs and warns about views."""
    result = model(clips, masks()[0])
    with_gradient = [each for each in result if each.requires_grad]
    assert len(with_gradient) == 2
    assert not any(each._is_view() for each in with_gradient)


def test_model_from_the_meta_device_can_be_initialised(clips: Tensor) -> None:
    with torch.device("meta"):
        model = build_pretraining(CONFIG)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().fill_(float("nan"))
    torch.manual_seed(7)
    model.reset_parameters()
    wanted = build_pretraining(CONFIG)
    torch.manual_seed(7)
    wanted.reset_parameters()
    for (name, found), (_, ours) in zip(
        model.named_parameters(), wanted.named_parameters(), strict=True
    ):
        assert torch.equal(found, ours), name
    mask, _ = masks()
    assert torch.equal(model(clips, mask).loss_B, wanted(clips, mask).loss_B)


def test_initial_parameters_are_the_authors() -> None:
    torch.manual_seed(0)
    model = build_pretraining(ModelConfig("tiny", frames=4, image_size=32))
    qkv = model.get_parameter("encoder.blocks.0.attn.qkv.weight")
    bound = (6 / (96 + 3 * 96)) ** 0.5  # Xavier: fan in + fan out of the joint matrix
    assert 0.98 * bound < qkv.abs().max() <= bound
    assert qkv.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    head = model.decoder.head.weight
    bound = (6 / (64 + 384)) ** 0.5
    assert 0.98 * bound < head.abs().max() <= bound
    bridge, bound = model.encoder_to_decoder.weight, 96**-0.5  # PyTorch's default: 1 / sqrt(fan in)
    assert 0.98 * bound < bridge.abs().max() <= bound
    for part in ("weight", "bias"):  # the convolution too
        embed, bound = model.get_parameter(f"encoder.patch_embed.proj.{part}"), 384**-0.5
        assert 0.95 * bound < embed.abs().max() <= bound
    assert 0.005 < model.mask_token.std() < 0.02
    assert model.mask_token.abs().max() <= 0.02
    for name, parameter in model.named_parameters():
        if name.endswith(("q_bias", "v_bias", "fc1.bias", "fc2.bias", "head.bias", "norm.bias")):
            assert not parameter.any(), name
        if "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all(), name


def test_the_seed_of_torch_decides_the_initial_parameters() -> None:
    def build(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build_pretraining(CONFIG).parameters()])

    assert torch.equal(build(1), build(1))
    assert not torch.equal(build(1), build(2))


def test_norm_epsilons_reach_their_norms() -> None:
    config = ModelConfig("tiny", 8, 32, norm_eps=1e-12, decoder_norm_eps=1e-5)
    model = build_pretraining(config)
    found = {name: norm.eps for name, norm in model.named_modules() if isinstance(norm, LayerNorm)}
    assert len(found) == 2 * (4 + 2) + 2
    assert {name for name, eps in found.items() if eps == 1e-5} == {"decoder.norm"}
    assert {eps for name, eps in found.items() if name != "decoder.norm"} == {1e-12}
    assert build_pretraining(ModelConfig("tiny", 8, 32, norm_eps=1e-3)).decoder.norm.eps == 1e-3


def test_drop_path_reaches_both_halves() -> None:
    model = build_pretraining(ModelConfig("tiny", 8, 32, drop_path=0.3))
    rates = [block.drop_path_rate for block in model.encoder.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [block.drop_path_rate for block in model.decoder.blocks] == pytest.approx([0.0, 0.3])


def test_blocks_lists_the_encoder_then_the_decoder(model: VideoMAE) -> None:
    assert model.blocks() == [*model.encoder.blocks, *model.decoder.blocks]
    assert len(model.blocks()) == 3


def test_vit_b_has_the_authors_218_names_and_shapes() -> None:
    with torch.device("meta"):
        shapes = {
            k: tuple(v.shape) for k, v in build_pretraining(ModelConfig()).state_dict().items()
        }
    assert len(shapes) == 218
    wanted = {
        "mask_token": (1, 1, 384),
        "encoder.patch_embed.proj.weight": (768, 3, 2, 16, 16),
        "encoder.patch_embed.proj.bias": (768,),
        "encoder.norm.weight": (768,),
        "encoder.norm.bias": (768,),
        "decoder.norm.weight": (384,),
        "decoder.norm.bias": (384,),
        "decoder.head.weight": (1536, 384),
        "decoder.head.bias": (1536,),
        "encoder_to_decoder.weight": (384, 768),
    }
    for half, blocks, width in (("encoder", 12, 768), ("decoder", 4, 384)):
        for i in range(blocks):
            block = f"{half}.blocks.{i}."
            for norm in ("norm1", "norm2"):
                wanted |= {f"{block}{norm}.{part}": (width,) for part in ("weight", "bias")}
            wanted |= {
                f"{block}attn.q_bias": (width,),
                f"{block}attn.v_bias": (width,),
                f"{block}attn.qkv.weight": (3 * width, width),
                f"{block}attn.proj.weight": (width, width),
                f"{block}attn.proj.bias": (width,),
                f"{block}mlp.fc1.weight": (4 * width, width),
                f"{block}mlp.fc1.bias": (4 * width,),
                f"{block}mlp.fc2.weight": (width, 4 * width),
                f"{block}mlp.fc2.bias": (width,),
            }
    assert shapes == wanted


def test_unequal_mask_counts_are_refused_with_the_counts(model: VideoMAE, clips: Tensor) -> None:
    mask, selected = masks(DUAL)
    assert selected is not None
    odd = mask.clone()
    odd[1, odd[1].nonzero()[0]] = False
    message = (
        "the mask leaves visible [16, 17, 16] tokens in the clips of one batch; every clip must "
        "have the same number: make the masks of a batch with one kind and ratio"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model(clips, odd)
    odd = selected.clone()
    odd[2] = True
    message = (
        "the decoder mask selects [32, 32, 64] tokens in the clips of one batch; every clip must "
        "have the same number: make the masks of a batch with one kind and ratio"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model(clips, mask, odd)


def test_masks_of_another_shape_or_type_are_refused(model: VideoMAE, clips: Tensor) -> None:
    mask, _ = masks()
    message = (
        "the mask must be bool, one row per clip and one column per token, [3, 64]; "
        "got torch.bool [3, 63]"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model(clips, mask[:, :63])
    message = (
        "the decoder mask must be bool, one row per clip and one column per token, [3, 64]; "
        "got torch.int64 [3, 64]"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model(clips, mask, mask.long())


def test_masks_that_leave_nothing_are_refused(model: VideoMAE, clips: Tensor) -> None:
    everything = torch.ones(3, 64, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^the mask leaves visible no token; change mask\.ratio$"):
        model(clips, everything)
    with pytest.raises(ValueError, match=r"^the mask hides no token; change mask\.ratio$"):
        model(clips, ~everything)
    mask, _ = masks()
    message = (
        "clip 0 of the batch has no loss: the decoder mask selects none of its hidden tokens; "
        "raise mask.ratio or lower mask.decoder_ratio"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model(clips, mask, ~mask)
