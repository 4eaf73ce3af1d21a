"""AdamW on the local shards of an FSDP2 model: parameter groups, one fused pass over norm and clip, plain state.

PyTorch's optimizers dispatch every operation on a ``DTensor`` through Python, which costs a small model more than the
update itself. All of AdamW is element-wise, so it runs here on each rank's local shard as an ordinary tensor; moments
are handed to checkpoints as ``DTensor`` again, which is what lets them load at another world size.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from tubelet import exact


@dataclass(frozen=True)
class OptimConfig:
    """Recipe section ``optim``: AdamW as the authors use it."""

    lr: Annotated[float, Gt(0)] = 1.5e-4
    """Learning rate per 256 visits; the effective one is ``lr * batch.size / 256``, printed and logged."""
    min_lr: Annotated[float, Ge(0)] = 1e-5
    """End of the cosine, per 256 visits like ``lr``."""
    beta1: Annotated[float, Ge(0)] = 0.9
    beta2: Annotated[float, Ge(0)] = 0.95
    eps: Annotated[float, Gt(0)] = 1e-8
    weight_decay: Annotated[float, Ge(0)] = 0.05
    weight_decay_end: Annotated[float, Ge(0)] | None = None
    """End of a cosine from ``weight_decay``; null keeps it constant."""
    clip_grad: Annotated[float, Gt(0)] | None = None
    """Largest norm of the whole gradient; null never clips."""
    layer_decay: Annotated[float, Gt(0)] | None = None
    """Fine-tuning: learning rate of a layer relative to the one above it (null: the same for all)."""
    ema: Annotated[float, Gt(0), Lt(1)] | None = None
    """Keep an average of the weights too, which moves by 1 - ema of the way at each step (the authors: 0.9999); it is
    evaluated beside them, and exported to ``export/ema``."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products; auto is bfloat16 on CUDA and float32 elsewhere. Weights and sums stay float32."""

    def __post_init__(self) -> None:
        if self.min_lr > self.lr:
            raise ValueError(f"optim.min_lr ({self.min_lr}) is greater than optim.lr ({self.lr})")


_NEVER_DECAYED = ("mask_token", "pos_embed", "cls_token")


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: never to vectors, biases and the learned tokens (as in the authors' code)."""
    return parameter.ndim > 1 and not name.endswith((".bias", *_NEVER_DECAYED))


def layer_scale(layer: int, *, depth: int, decay: float) -> float:
    """Learning-rate factor of a layer: patch embedding 0, block i is i + 1, what follows is ``depth + 1``."""
    return decay ** (depth + 1 - layer)


class ShardedAdamW:
    """AdamW over the local shards of ``model``'s parameters (``DTensor`` or plain).

    Args:
        model: after sharding.
        config: the recipe's section.
        scales: learning-rate factor of parameters by name; 1 for those not named.
    """

    def __init__(
        self, model: nn.Module, *, config: OptimConfig, scales: dict[str, float] | None = None
    ) -> None:
        self._named = dict(model.named_parameters())
        self._local = {name: nn.Parameter(_local(p)) for name, p in self._named.items()}
        scales = scales or {}
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in self._named.items():
            key = (decays(name, parameter), scales.get(name, 1.0))
            groups.setdefault(key, []).append(self._local[name])
        self._config = config
        self._sharded = [m for m in model.modules() if isinstance(m, FSDPModule)]
        self._ema: dict[str, Tensor] | None = None
        if config.ema is not None:
            self._ema = {name: p.detach().clone() for name, p in self._local.items()}
        self._adamw = torch.optim.AdamW(
            [{"params": ps, "decays": d, "scale": s} for (d, s), ps in groups.items()],
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            foreach=True,
        )

    def square_sum(self) -> Tensor:
        """Sum of squares of this rank's shards of the gradient, in float64; a scalar."""
        gradients = [_local(p.grad) for p in self._named.values() if p.grad is not None]
        parts = [g for g in gradients if g.numel()]
        if not parts:  # a rank may hold nothing of a small model
            return torch.zeros((), dtype=torch.float64)
        return torch.stack(torch._foreach_norm(parts)).double().square().sum()

    def exact_square_sum(self) -> float:
        """The same over all ranks, with the same bits at any world size (a collective)."""
        gradients = [_local(p.grad) for p in self._named.values() if p.grad is not None]
        return exact.square_sum(gradients, elements=sum(p.numel() for p in self._named.values()))

    def step(self, *, lr: float, weight_decay: float, scale: float) -> None:
        """Multiply the gradient by ``scale``, update, and forget the gradient."""
        for name, parameter in self._named.items():
            assert parameter.grad is not None, f"{name} has no gradient"
            self._local[name].grad = _local(parameter.grad)
        if scale != 1.0:
            gradients = [p.grad for p in self._local.values() if p.grad is not None]
            torch._foreach_mul_(gradients, scale)
        for group in self._adamw.param_groups:
            group["lr"] = lr * group["scale"]
            group["weight_decay"] = weight_decay if group["decays"] else 0.0
        self._adamw.step()
        if self._ema is not None:
            assert self._config.ema is not None
            weights: list[Tensor] = list(self._local.values())
            torch._foreach_lerp_(list(self._ema.values()), weights, 1 - self._config.ema)
        for name, parameter in self._named.items():
            self._local[name].grad = parameter.grad = None

    @property
    def averages(self) -> bool:
        """Whether an average of the weights is kept."""
        return self._ema is not None

    @contextlib.contextmanager
    @torch.no_grad()
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights in the place of the model's own meanwhile; the latter come back bit by bit."""
        assert self._ema is not None
        weights: list[Tensor] = list(self._local.values())
        average = list(self._ema.values())
        own = [w.clone() for w in weights]
        self._exchange(weights, average)
        try:
            yield
        finally:
            self._exchange(weights, own)

    def _exchange(self, weights: list[Tensor], others: list[Tensor]) -> None:
        """Give the model other weights, and have it forget what it gathered of the old ones."""
        torch._foreach_copy_(weights, others)
        for module in self._sharded:
            module.reshard()

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Averages over steps, by parameter name, sharded like the parameters; those that a checkpoint holds.

        First and second moments, zeros before the first step; with ``optim.ema`` that of the weights.
        """
        out: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
        for name, parameter in self._named.items():
            state = self._state(name)
            for key, tensors in out.items():
                tensors[name] = _like(state[key], parameter)
        if self._ema is not None:
            out["ema"] = {n: _like(self._ema[n], p) for n, p in self._named.items()}
        return out

    def set_step(self, step: int) -> None:
        """How many updates the moments have seen; a function of the run's position, so no checkpoint holds it."""
        for name in self._named:
            self._state(name)["step"].fill_(float(step))

    def _state(self, name: str) -> dict[str, Tensor]:
        local = self._local[name]
        state = self._adamw.state[local]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(local)
            state["exp_avg_sq"] = torch.zeros_like(local)
        return state


def clip_scale(norm: float, limit: float | None) -> float:
    """Factor that brings a gradient of ``norm`` down to ``limit`` (1 when it is below, or without a limit)."""
    if limit is None or not math.isfinite(norm):
        return 1.0
    return min(1.0, limit / (norm + 1e-6))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def _like(local: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
