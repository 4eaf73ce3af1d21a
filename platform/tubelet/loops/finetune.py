"""Supervised classification on top of an encoder, pretrained or not.

The same runner, feed and accounting as pretraining. A run may hold several *draws* of few labels, trained one after
another from the same start, each with its own schedule and its own export: a single draw proves nothing (measured:
gains between -4 and +31 points), and one start of the trainer costs as much as a hundred small steps.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tubelet import handover, origins, pictures, rows
from tubelet.config import UserError
from tubelet.feed import Unit
from tubelet.fit import Job
from tubelet.items import DataPlan
from tubelet.loops import plans
from tubelet.loops.optimise import Worker
from tubelet.optim import layer_scale
from tubelet.recipes import Finetune
from tubelet.run_directory import RunDirectory
from tubelet.schedules import effective_lr
from tubelet.session import Outcome, Session
from videomae import LoadReport, VideoClassifier, build_classifier, load_pretrained, normalise


def job(recipe: Finetune) -> Job:
    """What the recipe asks for, checked against its data and its starting weights.

    Raises:
        UserError: the data or the weights do not allow it.
    """
    data_set = rows.open_data(recipe.data)
    training, held_out = rows.split_rows(data_set, recipe.data)
    draws = rows.draws_of(data_set, training, labels=recipe.labels, seed=recipe.run.seed)
    judged = rows.evaluation_rows(held_out, clips=recipe.data.held_out_clips, seed=recipe.run.seed)
    plan = plans.data_plan(recipe, data_set, draws=draws, held_out=judged)
    ledger = plan.ledger
    start = "random weights"
    if recipe.head.init:
        recipe = settled(recipe, recipe.head.init)
        model = build(recipe, len(data_set.classes))
        report = load(model, recipe.head.init or "", root=recipe.run.storage)
        start = f"{recipe.head.init} ({report})"
    return Job(
        kind="finetune",
        recipe=recipe,
        plan=plan,
        manifest_hash=data_set.hash,
        make_masks=no_masks,
        loop=functools.partial(loop, classes=data_set.classes),
        notes={
            "labels": f"{ledger.rows} videos of {len(data_set.classes)} classes"
            + (f" in each of {ledger.draws} draws" if ledger.draws > 1 else ""),
            "starts from": start,
            "learning rate": f"{effective_lr(recipe.optim.lr, recipe.batch.size):.3g} at its peak",
        },
        draw=draw if recipe.track.pictures else None,
    )


def build(recipe: Finetune, classes: int) -> VideoClassifier:
    """A fresh classifier of the recipe's shape."""
    return build_classifier(
        recipe.model,
        num_classes=classes,
        pooling=recipe.head.pooling,
        head_dropout=recipe.head.dropout,
        init_scale=recipe.head.init_scale,
    )


def settled(recipe: Finetune, init: str) -> Finetune:
    """The recipe with a ``head.init`` that means the same tomorrow and can be read by workers (``origins``)."""
    try:
        init = origins.settle(init, root=recipe.run.storage)
    except UserError as error:
        raise UserError(f"head.init: {init}: {error}") from error
    return replace(recipe, head=replace(recipe.head, init=init))


def load(model: VideoClassifier, init: str, *, root: str) -> LoadReport:
    """Fill a classifier's encoder from a settled ``head.init``; ``root`` is ``run.storage``.

    Raises:
        UserError: there is nothing to load, or it does not fit, with names and shapes.
    """
    try:
        return load_pretrained(model, origins.read(init, root=root))
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"head.init: {init}: {error}") from error


def no_masks(seeds: NDArray[np.uint64]) -> tuple[Tensor | None, Tensor | None]:
    """A classifier sees every patch."""
    return None, None


def loop(recipe: Finetune, plan: DataPlan, session: Session, *, classes: Sequence[str]) -> Outcome:
    """What every worker runs."""
    task = Classifying(recipe, tuple(classes), session)
    return Worker(task=task, plan=plans.step_plan(recipe, plan), session=session).train()


def draw(recipe: Finetune, run: RunDirectory, spool: Path, folder: Path) -> None:
    """Draw the run's curve."""
    pictures.draw_curve(
        spool, folder, title=recipe.run.name or "", loss_name="cross-entropy (nats)"
    )


def exports(run: RunDirectory, draws: int) -> list[str]:
    """Where the run's models are, one a draw."""
    if draws == 1:
        return [run.path("export")]
    return [run.path("export", f"draw_{draw + 1}") for draw in range(draws)]


@dataclass(frozen=True)
class Classifying:
    """The task: cross-entropy with label smoothing."""

    recipe: Finetune
    classes: tuple[str, ...]
    session: Session

    def build(self, draw: int) -> nn.Module:
        """The model at the start of a draw: weights drawn by (seed, draw), the encoder then filled from ``init``."""
        torch.manual_seed(self.recipe.run.seed * 1_000_003 + draw)
        model = build(self.recipe, len(self.classes))
        if self.recipe.head.init:
            load(model, self.recipe.head.init, root=self.session.run.uri.rpartition("/")[0])
        return model

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The transformer blocks."""
        assert isinstance(model, VideoClassifier)
        return list(model.blocks)

    def learning_rate_scales(self, model: nn.Module) -> dict[str, float]:
        """Layer-wise decay: the lower the layer, the less it learns."""
        decay = self.recipe.optim.layer_decay
        if decay is None:
            return {}
        depth = self.recipe.model.encoder.depth
        return {
            name: layer_scale(layer_of(name, depth=depth), depth=depth, decay=decay)
            for name, _ in model.named_parameters()
        }

    def losses(self, model: nn.Module, unit: Unit) -> Tensor:
        """Cross-entropy of each clip, [B]."""
        logits_BK = model(normalise(unit.frames_BTHWC)).float()
        smoothing = self.recipe.labels.smoothing
        return F.cross_entropy(
            logits_BK, unit.label_B.clamp(min=0), reduction="none", label_smoothing=smoothing
        )

    def held_out(self, model: nn.Module, unit: Unit) -> dict[str, Tensor]:
        """Sums over labelled valid clips."""
        logits_BK = model(normalise(unit.frames_BTHWC)).float()
        counts_B = unit.valid_B * (unit.label_B >= 0)
        loss_B = F.cross_entropy(logits_BK, unit.label_B.clamp(min=0), reduction="none")
        right_B = logits_BK.argmax(1) == unit.label_B
        return {
            "loss": (loss_B * counts_B).sum(),
            "top1": (right_B * counts_B).sum(),
            "clips": counts_B.sum(),
        }

    def export(self, state: Mapping[str, Tensor], draw: int) -> None:
        """Write the model of a draw."""
        recipe, run = self.recipe, self.session.run
        handover.write(
            exports(run, recipe.labels.draws)[draw],
            state,
            recipe.model,
            extra={
                "run": recipe.run.name,
                "job": "finetune",
                "draw": draw + 1,
                "stride": recipe.data.clip.stride,
            },
            class_names=self.classes,
        )


def layer_of(name: str, *, depth: int) -> int:
    """Layer of a parameter: the embedding is 0, block i is i + 1, everything after the blocks is ``depth + 1``."""
    first, *rest = name.split(".")
    if first == "patch_embed":
        return 0
    return int(rest[0]) + 1 if first == "blocks" else depth + 1
