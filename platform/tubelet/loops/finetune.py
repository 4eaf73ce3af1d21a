"""Supervised classification on top of an encoder, pretrained or not.

The same runner, feed and accounting as pretraining. A run may hold several *draws* of few labels, trained one after
another from the same start, each with its own schedule and its own export: a single draw proves nothing (measured:
gains between -4 and +31 points), and one start of the trainer costs as much as a hundred small steps.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clips import storage
from tubelet import handover, origins, pace, pictures, rows, supervision
from tubelet.config import UserError
from tubelet.feed import Unit
from tubelet.fit import Job
from tubelet.items import DataPlan
from tubelet.loops import plans
from tubelet.loops.optimise import Worker
from tubelet.optim import layer_scale
from tubelet.recipes import Finetune, HeadConfig
from tubelet.run_directory import RunDirectory
from tubelet.schedules import effective_lr
from tubelet.session import Outcome, Session
from tubelet.supervision import Supervision
from videomae import (
    LoadReport,
    Match,
    VideoClassifier,
    build_classifier,
    load_pretrained,
    normalise,
)

_SIDE = re.compile(r"(?<![A-Za-z])(left|right)(?![A-Za-z])", re.IGNORECASE)


def job(recipe: Finetune) -> Job:
    """What the recipe asks for, checked against its data and its starting weights.

    Raises:
        UserError: the data or the weights do not allow it.
    """
    data_set = rows.open_data(recipe.data)
    training, held_out = rows.split_rows(data_set, recipe.data)
    draws = rows.draws_of(data_set, training, labels=recipe.labels, seed=recipe.run.seed)
    judged = rows.evaluation_rows(held_out, clips=recipe.data.held_out_clips, seed=recipe.run.seed)
    classes = data_set.classes
    check_mirrors(recipe, classes)
    several = len(classes) if recipe.labels.several else 0
    plan = plans.data_plan(recipe, data_set, draws=draws, held_out=judged, classes=several)
    weights = None
    if recipe.labels.balance is not None:
        counts = rows.label_counts(data_set, draws[0])
        weights = supervision.class_weights(counts, recipe.labels.balance, classes)
    ledger = plan.ledger
    start = "random weights"
    if recipe.head.init:
        recipe = settled(recipe, recipe.head.init)
        model = build(recipe, len(classes))
        report = load(model, recipe.head, classes=classes, root=recipe.run.storage)
        start = f"{recipe.head.init} ({report})"
    return Job(
        kind="finetune",
        recipe=recipe,
        plan=plan,
        manifest_hash=data_set.hash,
        make_masks=no_masks,
        loop=functools.partial(loop, classes=classes, weights=weights),
        notes={
            "labels": f"{ledger.rows} videos of {len(classes)} classes"
            + (f" in each of {ledger.draws} draws" if ledger.draws > 1 else ""),
            "starts from": start,
            "learning rate": f"{effective_lr(recipe.optim.lr, recipe.batch.size):.3g} at its peak",
            **deviations(recipe),
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


def load(
    model: VideoClassifier, head: HeadConfig, *, classes: Sequence[str], root: str
) -> LoadReport:
    """Fill a classifier of these classes from a settled ``head.init``; ``root`` is ``run.storage``.

    A head for other classes stays out, even if they are as many, where the export has their names.

    Raises:
        UserError: there is nothing to load, or less fits than ``head.match`` asks for, with names and shapes.
    """
    assert head.init is not None
    try:
        weights = origins.read(head.init, root=root)
        theirs = handover.class_names(origins.place_of(head.init, root=storage.absolute(root)))
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"head.init: {head.init}: {error}") from error
    match: Match = "all" if head.match == "classes" else head.match
    if head.match == "classes":
        weights = _rows_of(classes, weights, theirs or (), init=head.init)
    elif theirs and len(theirs) == len(classes) and theirs != tuple(classes):
        if head.match == "all":
            place = next(
                n for n, pair in enumerate(zip(theirs, classes, strict=True)) if len({*pair}) > 1
            )
            raise UserError(
                f"head.init: {head.init}: its head has as many classes as the data, but others: class {place} is "
                f"{theirs[place]!r} there and {classes[place]!r} here; head.match=body starts with a fresh head"
            )
        emptied = {name: value[:0] for name, value in weights.items() if name.startswith("head.")}
        weights |= emptied  # which fits no head
    try:
        return load_pretrained(model, weights, match=match)
    except ValueError as error:
        raise UserError(f"head.init: {head.init}: {error}{_way_out(model, weights)}") from error


def _rows_of(
    classes: Sequence[str], weights: Mapping[str, Tensor], theirs: Sequence[str], *, init: str
) -> dict[str, Tensor]:
    """Weights whose head has the rows of these classes, by their names."""
    missing = [name for name in classes if name not in theirs]
    if missing:
        raise UserError(
            f"head.init: {init}: head.match=classes takes the head's rows by name, and of {len(classes)} classes of "
            f"the data it has none for {len(missing)} ({', '.join(repr(name) for name in missing[:3])}): name the "
            "classes alike, or start with a fresh head by head.match=body"
        )
    rows = [theirs.index(name) for name in classes]
    return {**weights, **{n: weights[n][rows] for n in ("head.weight", "head.bias")}}


def _way_out(model: VideoClassifier, weights: Mapping[str, Tensor]) -> str:
    """What to do about weights that do not fit."""
    theirs, ours = weights.get("head.bias"), model.head.out_features
    if theirs is not None and len(theirs) != ours:
        more = "more" if len(theirs) > ours else "fewer"
        return (
            f"\nits head has {len(theirs)} classes, {more} than the {ours} of the data: head.match=body starts with a "
            "fresh head"
        )
    return (
        "\ngive the model the sizes that the weights have (model.preset and the fields that override it), "
        "or load what fits with head.match=any"
    )


def no_masks(seeds: NDArray[np.uint64]) -> tuple[Tensor | None, Tensor | None]:
    """A classifier sees every patch."""
    return None, None


def loop(
    recipe: Finetune,
    plan: DataPlan,
    session: Session,
    *,
    classes: Sequence[str],
    weights: tuple[float, ...] | None = None,
) -> Outcome:
    """What every worker runs."""
    task = Classifying(recipe, tuple(classes), session, weights)
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
    """The task: what a classifier answers to augmented clips, held against their labels (``supervision``)."""

    recipe: Finetune
    classes: tuple[str, ...]
    session: Session
    weights: tuple[float, ...] | None = None
    """Of the classes in the loss."""

    def build(self, draw: int) -> nn.Module:
        """The model at the start of a draw: weights drawn by (seed, draw), the encoder then filled from ``init``."""
        torch.manual_seed(self.recipe.run.seed * 1_000_003 + draw)
        model = build(self.recipe, len(self.classes))
        if self.recipe.head.init:
            root = self.session.run.uri.rpartition("/")[0]
            load(model, self.recipe.head, classes=self.classes, root=root)
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
        """Loss of each clip after erasing and mixing, [B]."""
        shown = self._supervision.show(unit)
        return self._supervision.losses(model(shown.clips_BCTHW).float(), unit, shown)

    def held_out(self, model: nn.Module, unit: Unit) -> dict[str, Tensor]:
        """Sums over labelled valid clips, as they are."""
        supervision = self._supervision
        logits_BK = model(normalise(unit.frames_BTHWC)).float()
        counts_B = unit.valid_B * supervision.labelled(unit)
        loss_B = supervision.losses(logits_BK, unit)
        right_B = supervision.right(logits_BK, unit)
        return {
            "loss": (loss_B * counts_B).sum(),
            "top1": (right_B * counts_B).sum(),
            "clips": counts_B.sum(),
        }

    @property
    def _supervision(self) -> Supervision:
        recipe = self.recipe
        return Supervision(
            recipe.labels, recipe.augment, len(self.classes), recipe.run.seed, self.weights
        )

    def export(
        self, state: Mapping[str, Tensor], draw: int, place: str, notes: Mapping[str, Any]
    ) -> None:
        """Write a model of a draw."""
        recipe, run = self.recipe, self.session.run
        handover.write(
            f"{exports(run, recipe.labels.draws)[draw]}/{place}".rstrip("/"),
            state,
            recipe.model,
            extra={
                "run": recipe.run.name,
                "job": "finetune",
                "draw": draw + 1,
                **pace.written(recipe.data.clip),
                **notes,
            },
            class_names=self.classes,
            several=recipe.labels.several,
        )


def deviations(recipe: Finetune) -> dict[str, str]:
    """A line that says where the recipe leaves the authors' way to be faster."""
    clip = recipe.data.clip
    if clip.rand_augment is None or clip.rand_augment_on == "frame":
        return {}
    return {
        "deviates": "RandAugment on the crops that the model sees, not on whole frames as the authors do "
        "(data.clip.rand_augment_on=crop; docs/finetuning.md shows the difference)"
    }


def check_mirrors(recipe: Finetune, classes: Sequence[str]) -> None:
    """Refuse to mirror clips whose labels would then be others'.

    Raises:
        UserError: two classes differ by left and right alone.
    """
    known = set(classes)
    for name in classes if recipe.data.clip.flip else ():
        other = _SIDE.sub(_other_side, name)
        if other != name and other in known:
            raise UserError(
                f"data.clip.flip mirrors half of the clips, but a mirrored {name!r} is a {other!r}: "
                "set data.clip.flip=false"
            )


def _other_side(found: re.Match[str]) -> str:
    word = found[0]
    swapped = {"left": "right", "right": "left"}[word.lower()]
    return swapped.capitalize() if word[0].isupper() else swapped


def layer_of(name: str, *, depth: int) -> int:
    """Layer of a parameter: the embedding is 0, block i is i + 1, everything after the blocks is ``depth + 1``."""
    first, *rest = name.split(".")
    if first == "patch_embed":
        return 0
    return int(rest[0]) + 1 if first == "blocks" else depth + 1
