"""Masked pretraining as a plain loop: one process, one whole batch a step, no FSDP, no Ray, no feed, no micro-batches.

What the real loop must reproduce at any number of workers. It shares with it the model, the decoder of clips, and the
ledger's order and seeds, which have golden values of their own. Everything in between is written once more: batches,
the loss of a step, clipping, schedule, parameter groups, evaluation. A fault can be put into it, to see whether a
comparison would notice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from clips import DecodeError, Manifest, load_clips
from tubelet.ledger import permute, seed64
from tubelet.recipes import Pretrain
from videomae import build_pretraining, make_masks, normalise

Fault = Literal["lost_sample", "wrong_tail_count", "scaled_gradient"]


@dataclass(frozen=True)
class Point:
    """What is known of a step; ``held_out`` is the evaluation after it."""

    loss: float
    grad_norm: float
    held_out: float | None = None


@dataclass(frozen=True)
class Clip:
    """One copy of a visit; no frames when it cannot be decoded."""

    frames_THWC: np.ndarray | None
    mask_seed: int


def reference_series(
    recipe: Pretrain,
    manifest: Manifest,
    visits: Sequence[Sequence[Clip]],
    fault: Fault | None = None,
) -> list[Point]:
    """Train by the recipe, alone; returns a point for every step.

    Args:
        recipe: the run.
        manifest: its data.
        visits: from ``visits_of`` (decoded once for several calls).
        fault: what to do wrong, in step 50 or in the last one.
    """
    torch.manual_seed(recipe.run.seed)
    model = build_pretraining(recipe.model)
    never = [p for n, p in model.named_parameters() if p.ndim == 1 or n == "mask_token"]
    decayed = [p for p in model.parameters() if not any(p is n for n in never)]
    optim, batch = recipe.optim, recipe.batch.size
    adamw = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": optim.weight_decay},
            {"params": never, "weight_decay": 0.0},
        ],
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        foreach=False,
    )
    steps = math.ceil(len(visits) / batch)
    warmup = round(recipe.schedule.warmup_epochs * len(visits) / recipe.schedule.epochs / batch)
    points: list[Point] = []
    for step in range(steps):
        clips = [c for visit in visits[step * batch : (step + 1) * batch] for c in visit]
        good = [c for c in clips if c.frames_THWC is not None]
        if fault == "lost_sample" and step == 50:
            good = good[1:]
        count = len(good)
        if fault == "wrong_tail_count" and step == steps - 1:
            count = batch
        loss = _losses(model, recipe, good).sum() / count
        loss.backward()
        if fault == "scaled_gradient" and step == 50:
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad *= 1 + 1e-4
        squares = [
            p.grad.double().square().sum().item() for p in model.parameters() if p.grad is not None
        ]
        norm = math.fsum(squares) ** 0.5
        if optim.clip_grad is not None and norm > optim.clip_grad:
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad *= optim.clip_grad / norm
        for group in adamw.param_groups:
            group["lr"] = _rate(step, steps, warmup, optim.lr, optim.min_lr) * batch / 256
        adamw.step()
        adamw.zero_grad()
        done = step + 1
        due = done % recipe.track.evaluate_every == 0 or done == steps
        held_out = _evaluate(model, recipe, manifest) if due else None
        points.append(Point(loss.item(), norm, held_out))
    return points


def visits_of(recipe: Pretrain, manifest: Manifest) -> list[list[Clip]]:
    """The run's visits in order, each with its copies decoded."""
    rows = manifest.select(split="train")
    seed, copies = recipe.run.seed, range(recipe.data.copies)
    visits: list[list[Clip]] = []
    for epoch in range(recipe.schedule.epochs):
        for index in permute(np.arange(len(rows)), len(rows), seed, epoch):
            row = int(rows[index])
            seeds = [seed64(seed, epoch, row, 0, copy, "clip") for copy in copies]
            masks = [seed64(seed, epoch, row, 0, copy, "mask") for copy in copies]
            try:
                frames: list[Any] = list(_decoded(recipe, manifest, row, seeds, recipe.data.clip))
            except DecodeError:
                frames = [None for _ in copies]
            visits.append([Clip(f, m) for f, m in zip(frames, masks, strict=True)])
    return visits


def assert_same_series(
    ours: Sequence[Point],
    reference: Sequence[Point],
    *,
    loss: float = 1e-6,
    grad_norm: float = 1e-5,
) -> tuple[float, float]:
    """Compare every step; returns the largest relative differences of loss and gradient norm.

    A looser comparison than these defaults proves nothing: losing one sample of one step moves the loss by 1e-5.
    """
    assert len(ours) == len(reference)
    worst = (0.0, 0.0)
    for step, (a, b) in enumerate(zip(ours, reference, strict=True), start=1):
        off = abs(a.loss / b.loss - 1), abs(a.grad_norm / b.grad_norm - 1)
        assert off[0] <= loss, f"loss of step {step}: {a.loss!r}, reference {b.loss!r}"
        assert off[1] <= grad_norm, (
            f"norm of step {step}: {a.grad_norm!r}, reference {b.grad_norm!r}"
        )
        assert (a.held_out is None) == (b.held_out is None), f"evaluation after step {step}"
        if a.held_out is not None and b.held_out is not None:
            assert abs(a.held_out / b.held_out - 1) <= loss, f"held-out loss after step {step}"
        worst = max(worst[0], off[0]), max(worst[1], off[1])
    return worst


def _losses(model: nn.Module, recipe: Pretrain, clips: Sequence[Clip]) -> Tensor:
    frames_BTHWC = torch.from_numpy(
        np.stack([c.frames_THWC for c in clips if c.frames_THWC is not None])
    )
    seeds = np.array([c.mask_seed for c in clips], np.uint64)
    mask_BN = make_masks(recipe.mask, recipe.model.grid, seeds)
    return model(normalise(frames_BTHWC), mask_BN).loss_B


@torch.no_grad()
def _evaluate(model: nn.Module, recipe: Pretrain, manifest: Manifest) -> float:
    """Mean loss of the held-out clips: one from the middle of each video, with its own fixed mask."""
    rows = manifest.select(split="val")
    assert len(rows) <= recipe.data.held_out_clips, (
        "the choice of held-out videos is not written here"
    )
    middle = replace(recipe.data.clip, time="centre", crop="centre", flip=False)
    clips = [
        Clip(
            _decoded(recipe, manifest, int(row), [0], middle)[0],
            seed64(recipe.run.seed, 0, int(row), 0, 0, "mask"),
        )
        for row in rows
    ]
    return _losses(model, recipe, clips).mean().item()


def _decoded(
    recipe: Pretrain, manifest: Manifest, row: int, seeds: list[int], config: Any
) -> np.ndarray:
    return load_clips(
        manifest.video(row),
        config,
        seeds=seeds,
        frames=recipe.model.frames,
        size=recipe.model.image_size,
        decode=recipe.decode,
    )


def _rate(step: int, steps: int, warmup: int, peak: float, floor: float) -> float:
    if step < warmup:
        return float(np.linspace(0.0, peak, warmup)[step])
    return floor + (peak - floor) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
