"""Masked video modelling: hide most of each clip, encode the rest, reconstruct what was hidden (VideoMAE V1, V2)."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tubelet import handover, pace, pictures, rows
from tubelet.feed import Unit
from tubelet.fit import Job
from tubelet.items import DataPlan
from tubelet.loops import plans
from tubelet.loops.optimise import Worker
from tubelet.recipes import Pretrain
from tubelet.run_directory import RunDirectory
from tubelet.schedules import effective_lr
from tubelet.session import Outcome, Session
from videomae import (
    MaskConfig,
    Reconstruction,
    VideoMAE,
    build_pretraining,
    make_decoder_masks,
    make_masks,
    normalise,
)

_FPS = 30.0
"""Usual rate of the source, for the speed at which the reconstruction video plays."""


def job(recipe: Pretrain) -> Job:
    """What the recipe asks for, checked against its data.

    Raises:
        UserError: the data do not allow it.
    """
    data_set = rows.open_data(recipe.data)
    training, held_out = rows.split_rows(data_set, recipe.data)
    judged = rows.evaluation_rows(held_out, clips=recipe.data.held_out_clips, seed=recipe.run.seed)
    plan = plans.data_plan(recipe, data_set, draws=(training,), held_out=judged)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_pretraining(recipe.model).parameters())
    return Job(
        kind="pretrain",
        recipe=recipe,
        plan=plan,
        manifest_hash=data_set.hash,
        make_masks=functools.partial(masks_of, config=recipe.mask, grid=recipe.model.grid),
        loop=loop,
        notes={
            "model": f"{recipe.model.preset}, {parameters / 1e6:.1f} million parameters",
            "learning rate": f"{effective_lr(recipe.optim.lr, recipe.batch.size):.3g} at its peak",
            "held out": f"{len(judged)} of {len(held_out)} videos looked at every {recipe.track.evaluate_every} steps"
            if len(judged)
            else "none",
        },
        draw=draw if recipe.track.pictures else None,
    )


def masks_of(
    seeds: NDArray[np.uint64], *, config: MaskConfig, grid: tuple[int, int, int]
) -> tuple[Tensor | None, Tensor | None]:
    """The encoder's and the decoder's masks of clips, from their seeds alone."""
    return make_masks(config, grid, seeds), make_decoder_masks(config, grid, seeds)


def loop(recipe: Pretrain, plan: DataPlan, session: Session) -> Outcome:
    """What every worker runs."""
    task = Reconstructing(recipe, plan, session)
    return Worker(task=task, plan=plans.step_plan(recipe, plan), session=session).train()


def draw(recipe: Pretrain, run: RunDirectory, spool: Path, folder: Path) -> None:
    """Draw what there is to see of a run."""
    name = recipe.run.name
    pictures.draw_reconstructions(
        run,
        folder,
        title=f"{name}: held-out clips",
        model=recipe.model,
        fps=(recipe.data.clip.fps or _FPS) / recipe.data.clip.stride,
    )
    pictures.draw_curve(
        spool, folder, title=name or "", loss_name="masked loss (MSE of normalised pixels)"
    )


@dataclass(frozen=True)
class Reconstructing:
    """The task: the loss of a clip is the error of its hidden tokens."""

    recipe: Pretrain
    plan: DataPlan
    session: Session

    def build(self, draw: int) -> nn.Module:
        """A fresh model; its weights depend on the run's seed alone."""
        torch.manual_seed(self.recipe.run.seed)
        return build_pretraining(self.recipe.model)

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The transformer blocks."""
        assert isinstance(model, VideoMAE)
        return model.blocks()

    def learning_rate_scales(self, model: nn.Module) -> dict[str, float]:
        """All parameters learn at one rate."""
        return {}

    def losses(self, model: nn.Module, unit: Unit) -> Tensor:
        """Mean squared error of each clip's hidden tokens, [B]."""
        return self._reconstruct(model, unit).loss_B

    def held_out(self, model: nn.Module, unit: Unit) -> dict[str, Tensor]:
        """Sums over valid clips; the first unit's clips are kept for pictures."""
        made = self._reconstruct(model, unit)
        if unit.source and unit.number == 0 and self.recipe.track.pictures:
            assert unit.mask_BN is not None
            table = self.plan.table
            names = [table.video(int(row)).video_id for row in unit.source["row"]]
            pictures.keep(self.session.run, unit.frames_BTHWC, unit.mask_BN, made, names=names)
        return {"loss": (made.loss_B.float() * unit.valid_B).sum(), "clips": unit.valid_B.sum()}

    def export(
        self, state: Mapping[str, Tensor], draw: int, place: str, notes: Mapping[str, Any]
    ) -> None:
        """Write the model under ``export/``, in the authors' names."""
        run, recipe = self.session.run, self.recipe
        handover.write(
            f"{run.path('export')}/{place}".rstrip("/"),
            state,
            recipe.model,
            extra={
                "run": recipe.run.name,
                "job": "pretrain",
                **pace.written(recipe.data.clip),
                **notes,
            },
        )

    def _reconstruct(self, model: nn.Module, unit: Unit) -> Reconstruction:
        return model(normalise(unit.frames_BTHWC), unit.mask_BN, unit.decoder_mask_BN)
