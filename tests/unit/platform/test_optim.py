"""Our AdamW against PyTorch's, its groups against the authors', and one rank against several."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from optimising import (
    gradients,
    rate_of,
    small_model,
    update,
    updated,
    updated_sharded,
)
from tubelet.optim import OptimConfig, ShardedAdamW, clip_scale, decays, layer_scale
from videomae import ModelConfig, build_classifier, build_pretraining
from workers import run_group

STEPS = 50
LIMIT = 1.5
TINY = ModelConfig(preset="tiny", frames=4, image_size=16)


def plain_adamw(limit: float | None) -> tuple[nn.Module, Callable[[int], float]]:
    """The same updates by PyTorch's single-tensor AdamW and clipping."""
    model = small_model()
    decayed = [model.first.weight, model.last.weight]
    others = [p for p in model.parameters() if all(p is not d for d in decayed)]
    adamw = torch.optim.AdamW(
        [{"params": decayed}, {"params": others}], betas=(0.9, 0.95), eps=1e-8, foreach=False
    )

    def step(number: int) -> float:
        for name, gradient in gradients(model, number).items():
            model.get_parameter(name).grad = gradient
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit or float("inf"))
        for group, decay in zip(adamw.param_groups, (True, False), strict=True):
            group["lr"] = rate_of(number)["lr"]
            group["weight_decay"] = rate_of(number)["weight_decay"] if decay else 0.0
        adamw.step()
        return norm.item()

    return model, step


def test_without_clipping_the_bits_are_those_of_torch() -> None:
    theirs, step_theirs = plain_adamw(None)
    ours = small_model()
    optimizer = ShardedAdamW(ours, config=OptimConfig())
    for step in range(STEPS):
        step_theirs(step)
        update(ours, optimizer, step, None)
        for name, parameter in ours.named_parameters():
            assert torch.equal(parameter, theirs.get_parameter(name)), f"{name} at step {step}"


def test_with_clipping_weights_agree_with_torch() -> None:
    theirs, step_theirs = plain_adamw(LIMIT)
    ours = small_model()
    optimizer = ShardedAdamW(ours, config=OptimConfig())
    for step in range(STEPS):
        norm = step_theirs(step)
        assert norm > 2 * (LIMIT), "this step does not clip"
        assert update(ours, optimizer, step, LIMIT) == pytest.approx(norm, rel=1e-6)
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(
                parameter, theirs.get_parameter(name), rtol=1e-6, atol=1e-7, msg=f"{name}, {step}"
            )


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_shards_on_several_ranks_give_the_bits_of_one(world_size: int) -> None:
    alone = updated(10, sharded=False)
    for together in run_group(world_size, updated_sharded, 10):
        assert together["norms"] == pytest.approx(alone["norms"], rel=1e-6)
        for part in ("weights", "exp_avg", "exp_avg_sq", "ema"):
            assert together[part].keys() == alone[part].keys()
            for name, tensor in alone[part].items():
                assert torch.equal(together[part][name], tensor), f"{part} of {name}"


def test_the_average_of_weights_starts_from_them_and_moves_a_share_of_the_way() -> None:
    model = small_model()
    optimizer = ShardedAdamW(model, config=OptimConfig(ema=0.75))
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    for step in range(4):
        update(model, optimizer, step, None)
        for name, parameter in model.named_parameters():
            average[name] = 0.75 * average[name] + 0.25 * parameter.detach()
    for name, value in optimizer.moments()["ema"].items():
        torch.testing.assert_close(value, average[name])
    own = {n: p.detach().clone() for n, p in model.named_parameters()}
    with optimizer.averaged():
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, optimizer.moments()["ema"][name])
            assert not torch.equal(parameter, own[name])
    assert all(torch.equal(p, own[n]) for n, p in model.named_parameters())
    assert not ShardedAdamW(model, config=OptimConfig()).averages


def test_gradients_are_forgotten_and_a_missing_one_is_our_bug() -> None:
    model = small_model()
    optimizer = ShardedAdamW(model, config=OptimConfig())
    update(model, optimizer, 0, None)
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(AssertionError, match="mask_token has no gradient"):
        optimizer.step(lr=1e-3, weight_decay=0.0, scale=1.0)


def test_a_rank_that_holds_nothing_of_the_model_adds_nothing_to_the_norm() -> None:
    model = nn.Module()
    model.token = nn.Parameter(torch.zeros(0, 4))
    model.token.grad = torch.zeros(0, 4)
    optimizer = ShardedAdamW(model, config=OptimConfig())
    assert optimizer.square_sum().item() == 0.0
    optimizer.step(lr=1e-3, weight_decay=0.1, scale=0.5)


def test_the_square_sum_is_that_of_all_gradients_and_zero_without_any() -> None:
    model = small_model()
    optimizer = ShardedAdamW(model, config=OptimConfig())
    assert optimizer.square_sum().item() == 0.0
    for name, gradient in gradients(model, 3).items():
        model.get_parameter(name).grad = gradient
    expected = sum(g.double().square().sum().item() for g in gradients(model, 3).values())
    assert optimizer.square_sum().item() == pytest.approx(expected, rel=1e-6)


def test_moments_taken_over_go_on_with_the_same_bits() -> None:
    whole = small_model()
    first = ShardedAdamW(whole, config=OptimConfig())
    for step in range(7):
        update(whole, first, step, 1.0)
    continued = small_model()
    continued.load_state_dict(whole.state_dict())
    second = ShardedAdamW(continued, config=OptimConfig())
    for name, tensors in first.moments().items():
        for parameter, tensor in tensors.items():
            second.moments()[name][parameter].copy_(tensor)
    second.set_step(7)
    for step in range(7, 12):
        update(whole, first, step, 1.0)
        update(continued, second, step, 1.0)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, continued.get_parameter(name)), name


def test_moments_are_zeros_before_the_first_step() -> None:
    moments = ShardedAdamW(small_model(), config=OptimConfig()).moments()
    assert set(moments) == {"exp_avg", "exp_avg_sq"}
    for tensors in moments.values():
        assert list(tensors) == [name for name, _ in small_model().named_parameters()]
        assert all(not tensor.any() for tensor in tensors.values())


def test_the_step_count_matters_to_the_first_updates() -> None:
    """Else set_step could be forgotten without a trace: bias correction must show."""
    changed: list[torch.Tensor] = []
    for count in (0, 100):
        model = small_model()
        optimizer = ShardedAdamW(model, config=OptimConfig())
        optimizer.set_step(count)
        update(model, optimizer, 0, None)
        changed.append(model.first.weight.detach().clone())
    assert not torch.allclose(*changed, rtol=1e-2)


@pytest.mark.parametrize(
    "model",
    [build_pretraining(TINY), build_classifier(TINY, num_classes=3)],
    ids=["mae", "classifier"],
)
def test_vectors_biases_and_learned_tokens_are_never_decayed(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        matrix = name.endswith(".weight") and "norm" not in name
        assert decays(name, parameter) == matrix, name


def test_learned_tokens_are_known_by_name_although_they_are_no_vectors() -> None:
    table = torch.zeros(1, 8, 4)
    for name in ("mask_token", "pos_embed", "cls_token", "decoder.mask_token"):
        assert not decays(name, table)
    assert decays("patch_embed.proj.weight", torch.zeros(4, 3, 2, 8, 8))


@pytest.mark.parametrize(("layer", "expected"), [(0, 0.0238), (1, 0.0317), (12, 0.75), (13, 1.0)])
def test_layers_of_vit_b_learn_at_the_authors_rates(layer: int, expected: float) -> None:
    assert layer_scale(layer, depth=12, decay=0.75) == pytest.approx(expected, abs=5e-5)


def test_a_scale_multiplies_the_rate_of_its_parameter_alone() -> None:
    moved: list[dict[str, torch.Tensor]] = []
    for scales in ({}, {"last.weight": 0.25}):
        model = small_model()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer = ShardedAdamW(model, config=OptimConfig(), scales=scales)
        for name, gradient in gradients(model, 0).items():
            model.get_parameter(name).grad = gradient
        optimizer.step(lr=0.1, weight_decay=0.0, scale=1.0)
        moved.append({n: p.detach() - before[n] for n, p in model.named_parameters()})
    for name, alone in moved[0].items():
        factor = 0.25 if name == "last.weight" else 1.0
        torch.testing.assert_close(moved[1][name], factor * alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("norm", "limit", "expected"),
    [(4.0, 1.0, 0.25), (0.5, 1.0, 1.0), (4.0, None, 1.0), (float("inf"), 1.0, 1.0)],
)
def test_only_a_gradient_above_the_limit_is_clipped(
    norm: float, limit: float | None, expected: float
) -> None:
    assert clip_scale(norm, limit) == pytest.approx(expected, rel=1e-6)


def test_a_floor_above_the_rate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim.min_lr \(0.1\) is greater than optim.lr \(0.01\)"):
        OptimConfig(lr=0.01, min_lr=0.1)
