"""A small model with shards of every kind, its gradients, and a few updates of them: what ranks run in tests."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from tubelet import sharding
from tubelet.optim import OptimConfig, ShardedAdamW, clip_scale


class Small(nn.Module):
    """Shapes that do not divide by the number of ranks, and one that most ranks have nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, 5))
        self.first = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.last = nn.Linear(7, 11, bias=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x_BD + self.mask_token[0])))


def small_model() -> Small:
    torch.manual_seed(5)
    model = Small()
    nn.init.normal_(model.mask_token)
    return model


def gradients(model: nn.Module, step: int) -> dict[str, Tensor]:
    """Made-up gradients of a step, by name, of very different sizes; the same on every rank."""
    generator = torch.Generator().manual_seed(100 + step)
    return {
        name: torch.randn(p.shape, generator=generator) * 10.0 ** (index - 3)
        for index, (name, p) in enumerate(model.named_parameters())
    }


def rate_of(step: int) -> dict[str, float]:
    return {"lr": 1e-2 / (1 + step), "weight_decay": 0.05 + 0.01 * step}


def update(model: nn.Module, optimizer: ShardedAdamW, step: int, limit: float | None) -> float:
    """One update by made-up gradients, the norm summed over ranks; returns the norm."""
    whole = gradients(model, step)
    for name, parameter in model.named_parameters():
        parameter.grad = (
            distribute_tensor(whole[name], parameter.device_mesh, parameter.placements)
            if isinstance(parameter, DTensor)
            else whole[name]
        )
    squares = optimizer.square_sum()
    if dist.is_initialized():
        dist.all_reduce(squares)
    norm = squares.item() ** 0.5
    optimizer.step(**rate_of(step), scale=clip_scale(norm, limit))
    return norm


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        n: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()
        for n, t in tensors.items()
    }


def updated(steps: int, *, sharded: bool) -> dict[str, Any]:
    """Norms, weights and moments after ``steps`` updates."""
    model = small_model()
    if sharded:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        sharding.shard(model, blocks=[], mesh=mesh, bfloat16=False)
    optimizer = ShardedAdamW(model, config=OptimConfig(ema=0.9), scales={"first.weight": 0.5})
    norms = [update(model, optimizer, step, None) for step in range(steps)]
    moments = optimizer.moments()
    return {
        "norms": norms,
        "weights": whole(dict(model.named_parameters())),
        **{name: whole(tensors) for name, tensors in moments.items()},
    }


def updated_sharded(steps: int) -> dict[str, Any]:
    return updated(steps, sharded=True)
