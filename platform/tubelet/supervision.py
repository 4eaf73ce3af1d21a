"""What a classifier sees of a unit, and what it is held against: erasing, mixing, targets, losses.

Everything random is a function of the unit's clips and seeds: a clip is erased by its own seed, and a unit is mixed by
the unit's, its clips among each other. So the result does not depend on who computes it (``elastic.exact``). The
authors mix a process's batch; here that is a unit, ``batch.micro * data.copies`` clips.

A clip that could not be decoded takes no part: the others are mixed as if it were not there.

Shapes: B clips of a unit, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from torch import Tensor

from clips.augment.erasing import erase_box
from clips.augment.mixing import Mix, draw_mix
from tubelet import ledger
from tubelet.config import UserError
from tubelet.feed import Unit
from tubelet.items import clip_seeds
from tubelet.rows import LabelConfig
from videomae import normalise


@dataclass(frozen=True)
class AugmentConfig:
    """Section ``augment``: what is done to clips beside the model, after all that ``data.clip`` says."""

    erase: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of the clips of which one box is replaced by noise, in all frames (the authors: 0.25)."""
    mixup: Annotated[float, Ge(0), Le(4)] = 0.0
    """Parameter of mixup's beta distribution (the authors: 0.8); 0 for none."""
    cutmix: Annotated[float, Ge(0), Le(4)] = 0.0
    """The same of CutMix (the authors: 1.0)."""
    mix_probability: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of the units that are mixed."""
    mix_switch: Annotated[float, Ge(0), Le(1)] = 0.5
    """Share of CutMix where both are on."""

    @property
    def mixes(self) -> bool:
        """Whether clips of a unit are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class Shown:
    """What the model gets of a unit, and what was mixed to make it."""

    clips_BCTHW: Tensor
    partner_B: Tensor | None = None
    """Which clip each was mixed with; None: nothing was mixed."""
    share: float = 1.0
    """Of a clip's own target."""


@dataclass(frozen=True)
class Supervision:
    """How a run supervises."""

    labels: LabelConfig
    augment: AugmentConfig
    classes: int
    seed: int
    """The run's."""
    weights: tuple[float, ...] | None = None
    """Of the classes, in the loss; None: all alike."""

    def show(self, unit: Unit) -> Shown:
        """A training unit's clips as the model gets them, float32."""
        clips_BCTHW = normalise(unit.frames_BTHWC)
        if not unit.source:  # a dummy, which weighs nothing
            return Shown(clips_BCTHW)
        self._erase(clips_BCTHW, unit)
        height, width = clips_BCTHW.shape[-2:]
        config = self.augment
        mix = draw_mix(
            width,
            height,
            seed=ledger.unit_seed(self.seed, unit.number),
            mixup=config.mixup,
            cutmix=config.cutmix,
            probability=config.mix_probability,
            switch=config.mix_switch,
        )
        if mix is None:
            return Shown(clips_BCTHW)
        partner_B = torch.from_numpy(partners(unit.source["valid"])).to(clips_BCTHW.device)
        return Shown(mixed(clips_BCTHW, partner_B, mix), partner_B, mix.share)

    def losses(self, logits_BK: Tensor, unit: Unit, shown: Shown | None = None) -> Tensor:
        """Loss of each clip, [B]: cross-entropy, or the mean over classes of the binary ones where there are several.

        Args:
            logits_BK: float32.
            unit: whose labels count.
            shown: how its clips were mixed; None: they were not, and targets are neither smoothed nor weighted.
        """
        smoothing = self.labels.smoothing if shown else 0.0
        weights_K = None
        if shown and self.weights is not None:
            weights_K = logits_BK.new_tensor(self.weights)
        mixing = shown is not None and shown.partner_B is not None
        if self.labels.several or mixing:
            targets_BK = self.targets(unit).to(logits_BK.dtype)
            if mixing:
                assert shown is not None
                assert shown.partner_B is not None
                others_BK = targets_BK[shown.partner_B]
                targets_BK = targets_BK * shown.share + others_BK * (1 - shown.share)
        else:
            targets_BK = unit.label_B.clamp(min=0)  # [B]: the same loss from the classes' numbers
        if self.labels.several:
            targets_BK = (
                targets_BK * (1 - smoothing) + 0.5 * smoothing
            )  # timm's, towards not knowing
            each_BK = F.binary_cross_entropy_with_logits(
                logits_BK, targets_BK, weight=weights_K, reduction="none"
            )
            return each_BK.mean(1)
        return F.cross_entropy(
            logits_BK, targets_BK, weight=weights_K, reduction="none", label_smoothing=smoothing
        )

    def targets(self, unit: Unit) -> Tensor:
        """1 for each class of each clip, [B, K]."""
        if self.labels.several:
            assert unit.labels_BK is not None
            return unit.labels_BK
        return F.one_hot(unit.label_B.clamp(min=0), self.classes)

    def labelled(self, unit: Unit) -> Tensor:
        """Whether each clip has a label, [B]."""
        if self.labels.several:
            assert unit.labels_BK is not None
            return unit.labels_BK.any(1)
        return unit.label_B >= 0

    def right(self, logits_BK: Tensor, unit: Unit) -> Tensor:
        """Whether the class each clip most looks like is its own (one of its own), [B]."""
        best_B = logits_BK.argmax(1)
        if self.labels.several:
            assert unit.labels_BK is not None
            return unit.labels_BK.gather(1, best_B[:, None])[:, 0] > 0
        return best_B == unit.label_B

    def _erase(self, clips_BCTHW: Tensor, unit: Unit) -> None:
        """Fill the boxes of clips that are erased, with noise of its own for every value."""
        if not self.augment.erase:
            return
        height, width = clips_BCTHW.shape[-2:]
        seeds = clip_seeds(self.seed, unit.source, "erase")
        for clip_CTHW, seed, valid in zip(clips_BCTHW, seeds, unit.source["valid"], strict=True):
            box = erase_box(width, height, seed=int(seed), probability=self.augment.erase)
            if box is not None and valid:
                x, y, w, h = box
                clip_CTHW[:, :, y : y + h, x : x + w].normal_()


def partners(valid_B: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Which clip each is mixed with: the valid ones in reverse order, the others with themselves."""
    partner_B = np.arange(len(valid_B))
    places = np.flatnonzero(valid_B)
    partner_B[places] = places[::-1]
    return partner_B


def mixed(clips_BCTHW: Tensor, partner_B: Tensor, mix: Mix) -> Tensor:
    """The clips, each mixed with its partner: their average, or a box of the partner in its place."""
    if mix.box is None:
        return clips_BCTHW * mix.share + clips_BCTHW[partner_B] * (1 - mix.share)
    x, y, w, h = mix.box
    out_BCTHW = clips_BCTHW.clone()
    out_BCTHW[..., y : y + h, x : x + w] = clips_BCTHW[partner_B, ..., y : y + h, x : x + w]
    return out_BCTHW


def class_weights(
    counts: NDArray[np.int64], beta: float, names: Sequence[str]
) -> tuple[float, ...]:
    """Weights of the classes by the effective number of their samples (Cui et al. 2019, eq. 4); their mean is 1.

    Args:
        counts: labels of each class.
        beta: 0 weighs all alike, towards 1 by the inverse of the count, which 1 stands for.
        names: of the classes, for the message.

    Raises:
        UserError: a class has no label.
    """
    if missing := [name for name, count in zip(names, counts, strict=True) if not count]:
        raise UserError(
            f"labels.balance weighs classes by their labels, but {len(missing)} have none to train on, "
            f"such as {missing[0]!r}: set labels.balance=null, or add videos of them"
        )
    effective = (
        counts.astype(float) if beta == 1 else (1 - beta ** counts.astype(float)) / (1 - beta)
    )
    weights = 1 / effective
    return tuple((weights / weights.mean()).tolist())
