"""Evaluation on held-out clips while training: sums of all ranks' units, each unit once, whoever computed it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tubelet import exact
from tubelet.feed import Feed, Unit
from tubelet.optim import ShardedAdamW

Measure = Callable[[nn.Module, Unit], dict[str, Tensor]]
"""Sums over the valid clips of a unit by metric; ``clips`` is their number."""


@torch.no_grad()
def evaluate(
    measure: Measure,
    model: nn.Module,
    optimizer: ShardedAdamW,
    feed: Feed,
    *,
    done: int,
    count: int,
) -> dict[str, float]:
    """Means over the clips of the evaluation after ``done`` steps; those of averaged weights begin with ``ema_``.

    Args:
        measure: what is measured of a unit.
        model: sharded.
        optimizer: which may keep averaged weights.
        feed: this rank's.
        done: steps.
        count: held-out units of all ranks.
    """
    model.eval()
    sums: dict[str, dict[int, Tensor]] = {}

    def note(unit: Unit, values: dict[str, Tensor], prefix: str = "") -> None:
        for name, value in values.items():
            known = sums.setdefault(prefix + name, {})
            if unit.source:
                known[unit.number] = value

    for unit in feed.held_out_units(done):
        note(unit, measure(model, unit))
        if optimizer.averages:
            with optimizer.averaged():
                note(unit, measure(model, unit), "ema_")
    model.train()
    device = next(model.parameters()).device
    filled = [exact.slots(sums[n], count=count, device=device) for n in sorted(sums)]
    values = torch.stack(filled)
    dist.all_reduce(values)
    totals: dict[str, Any] = {
        n: exact.sum_slots(v) for n, v in zip(sorted(sums), values.tolist(), strict=True)
    }
    totals.pop("ema_clips", None)
    clips = max(1.0, totals.pop("clips"))
    return {name: value / clips for name, value in totals.items()}
