"""The classifier: pooling, head, names, and the authors' initialisation."""

import pytest
import torch
from torch import Tensor

from videomae import ModelConfig, VideoClassifier, build_classifier

CONFIG = ModelConfig("tiny", frames=4, image_size=32, depth=2)


@pytest.fixture
def clips() -> Tensor:
    return torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


def tokens_after_blocks(model: VideoClassifier, clips: Tensor) -> Tensor:
    x = model.patch_embed.proj(clips).flatten(2).transpose(1, 2) + model.positions()
    for block in model.blocks:
        x = block(x)
    return x


def test_mean_pooling_averages_tokens_then_normalises(clips: Tensor) -> None:
    model = build_classifier(CONFIG, num_classes=5, init_scale=1.0)
    x = tokens_after_blocks(model, clips)
    wanted = model.head(model.fc_norm(x.mean(1)))
    torch.testing.assert_close(model(clips), wanted, atol=1e-5, rtol=0)


def test_token_0_pooling_normalises_the_first_patch(clips: Tensor) -> None:
    model = build_classifier(CONFIG, num_classes=5, pooling="token0", init_scale=1.0)
    x = tokens_after_blocks(model, clips)
    torch.testing.assert_close(model(clips), model.head(model.norm(x)[:, 0]), atol=1e-5, rtol=0)
    assert "norm.weight" in model.state_dict()
    assert "fc_norm.weight" not in model.state_dict()


def test_vit_b_has_the_authors_162_names() -> None:
    with torch.device("meta"):
        shapes = {
            name: tuple(value.shape)
            for name, value in build_classifier(ModelConfig(), num_classes=400).state_dict().items()
        }
    assert len(shapes) == 162
    blocks = {name for name in shapes if name.startswith("blocks.")}
    assert len(blocks) == 12 * 13
    assert {name: shapes[name] for name in shapes.keys() - blocks} == {
        "patch_embed.proj.weight": (768, 3, 2, 16, 16),
        "patch_embed.proj.bias": (768,),
        "fc_norm.weight": (768,),
        "fc_norm.bias": (768,),
        "head.weight": (400, 768),
        "head.bias": (400,),
    }


def test_initial_parameters_are_the_authors() -> None:
    torch.manual_seed(0)
    model = build_classifier(CONFIG, num_classes=50)
    qkv = model.get_parameter("blocks.1.attn.qkv.weight")
    assert qkv.std().item() == pytest.approx(0.02, rel=0.02)
    assert qkv.abs().max() > 0.06  # cut off far outside, unlike the mask token
    assert model.head.weight.std().item() == pytest.approx(0.02 * 0.001, rel=0.05)
    assert not model.head.bias.any()
    embed = model.patch_embed.proj.weight
    assert 0.98 * 384**-0.5 < embed.abs().max() <= 384**-0.5


def test_init_scale_multiplies_the_fresh_head() -> None:
    torch.manual_seed(0)
    scaled = build_classifier(CONFIG, num_classes=5, init_scale=0.5)
    torch.manual_seed(0)
    plain = build_classifier(CONFIG, num_classes=5, init_scale=1.0)
    torch.testing.assert_close(scaled.head.weight, plain.head.weight * 0.5)
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(scaled.get_parameter(name), plain.get_parameter(name))


def test_dropout_acts_before_the_head_in_training_only(clips: Tensor) -> None:
    model = build_classifier(CONFIG, num_classes=5, head_dropout=0.5, init_scale=1.0)
    assert not torch.equal(model(clips), model(clips))
    model.eval()
    assert torch.equal(model(clips), model(clips))


def test_drop_path_reaches_the_blocks() -> None:
    model = build_classifier(ModelConfig("tiny", 4, 32, drop_path=0.3), num_classes=5)
    rates = [block.drop_path_rate for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_three_norm_epsilons_change_the_result(clips: Tensor) -> None:
    """Blocks and the norm after pooling have their own; each is visible in the logits."""
    results = []
    for norm_eps, fc_norm_eps in ((1e-6, None), (0.1, 1e-6), (1e-6, 0.1)):
        torch.manual_seed(0)
        config = ModelConfig("tiny", 4, 32, norm_eps=norm_eps, fc_norm_eps=fc_norm_eps)
        results.append(build_classifier(config, num_classes=5, init_scale=1.0)(clips))
    assert not torch.allclose(results[0], results[1], atol=1e-4)
    assert not torch.allclose(results[0], results[2], atol=1e-4)
    torch.manual_seed(0)
    default = build_classifier(ModelConfig("tiny", 4, 32, norm_eps=1e-3), num_classes=5)
    assert default.fc_norm.eps == 1e-3


def test_gradient_reaches_every_parameter(clips: Tensor) -> None:
    for pooling in ("mean", "token0"):
        model = build_classifier(CONFIG, num_classes=5, pooling=pooling)
        torch.nn.functional.cross_entropy(model(clips), torch.tensor([1, 2])).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_autocast_runs_the_classifier(clips: Tensor) -> None:
    model = build_classifier(CONFIG, num_classes=5, init_scale=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(clips)
    torch.testing.assert_close(logits.float(), model(clips), atol=0.05, rtol=0)


def test_model_from_the_meta_device_can_be_initialised(clips: Tensor) -> None:
    with torch.device("meta"):
        model = build_classifier(CONFIG, num_classes=5)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().fill_(float("nan"))
    model.reset_parameters()
    assert model(clips).isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 0}, "num_classes=0 must be at least 1"),
        (
            {"num_classes": 2, "pooling": "max"},
            "pooling='max' is unknown; choose mean or token0",
        ),
        (
            {"num_classes": 2, "head_dropout": 1.0},
            "head_dropout=1.0 must be at least 0 and below 1",
        ),
    ],
)
def test_impossible_classifiers_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole text is compared)
        build_classifier(CONFIG, **fields)
    assert str(caught.value) == message
