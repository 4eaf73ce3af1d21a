"""The recipes: what a YAML file of ``jobs/recipes`` may say. Compositions only; each section stands beside its code.

Durations are epochs, sizes are counted in visits (one use of a row of the manifest), and ``optim.lr`` is the rate per
256 of them. A field marked free may change when a run resumes; all others are part of what the run is.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from clips import DecodeConfig
from tubelet.checkpoint import CheckpointConfig
from tubelet.items import BatchConfig, DataConfig
from tubelet.optim import OptimConfig
from tubelet.rows import LabelConfig
from tubelet.run_directory import ResumeConfig, RunConfig
from tubelet.schedules import ScheduleConfig
from tubelet.session import ElasticConfig
from tubelet.supervision import AugmentConfig
from tubelet.timetable import TrackConfig
from videomae import MaskConfig, Match, ModelConfig


@dataclass(frozen=True)
class Pretrain:
    """Masked video modelling (VideoMAE V1 and V2)."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    elastic: ElasticConfig = field(default_factory=ElasticConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)

    def __post_init__(self) -> None:
        _check_evaluated(self)


@dataclass(frozen=True)
class HeadConfig:
    """Section ``head``: what is added to the encoder, and where the encoder comes from."""

    init: str | None = None
    """A run's name or folder, an export, models:/NAME@ALIAS, runs:/ID/PATH, a safetensors file or an authors' .pth,
    local or s3://; null trains from scratch. Its content is fixed."""
    pooling: Literal["mean", "token0"] = "mean"
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Before the last layer."""
    init_scale: Annotated[float, Gt(0)] = 0.001
    match: Match | Literal["classes"] = "all"
    """How much of what can match of ``init`` must: all of it; classes: all, with the rows of the head for the data's
    classes, found by name; body: all but the head, which starts fresh (for other classes); any: whatever fits."""


@dataclass(frozen=True)
class Finetune:
    """Supervised classification on top of an encoder."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    elastic: ElasticConfig = field(default_factory=ElasticConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)

    def __post_init__(self) -> None:
        _check_evaluated(self)
        if self.schedule.patience is not None and self.labels.draws > 1:
            raise ValueError(
                "schedule.patience ends a run early, and labels.draws trains several one after another: "
                "set schedule.patience=null or labels.draws=1"
            )
        if self.augment.mixes and self.batch.micro * self.data.copies < 2:
            raise ValueError(
                "augment.mixup and augment.cutmix mix the clips of a unit with each other, but a unit has one: "
                "raise batch.micro or data.copies, or set both to 0"
            )


def _check_evaluated(recipe: "Pretrain | Finetune") -> None:
    """What goes by held-out loss needs some.

    Raises:
        ValueError: there is none.
    """
    if recipe.data.held_out_clips:
        return
    for key, on in (
        ("schedule.patience", recipe.schedule.patience is not None),
        ("checkpoint.export_best", recipe.checkpoint.export_best),
        ("checkpoint.keep_best", recipe.checkpoint.keep_best > 0),
    ):
        if on:
            raise ValueError(
                f"{key} goes by the loss on held-out clips, but data.held_out_clips is 0: raise it, or leave {key} out"
            )


Training = Pretrain | Finetune
"""The recipes that the elastic runner takes."""


@dataclass(frozen=True)
class Evaluate:
    """Accuracy of classifiers on labelled videos (arguments of ``jobs/evaluate.py``)."""

    model: str | list[str]
    """Folder of a fine-tuned run or export, or ``models:/NAME@ALIAS``; several are evaluated in one pass."""
    manifest: str
    """Parquet file with labels."""
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Which rows, when the manifest names no split: the share that training with this value has held out; 0: all."""
    views: Annotated[int, Ge(1)] = 1
    """Clips spread over each video."""
    crops: Annotated[int, Ge(1)] = 1
    """Squares cut from each clip along its long side."""
    stride: Annotated[int, Ge(1)] | None = None
    """Frames between two of a clip; null: as the model was trained."""
    workers: Annotated[int, Ge(1)] = 1
    """Processes that hold the models, each with a GPU where there are as many; predictions are the same with any."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    storage: str = "build/runs"
    """Where runs, and MLflow's file without a server, are."""
    output: str = "build/evaluate"
    """Folder for ``predictions.parquet``, ``metrics.json``, and a table and a picture of each model's classes."""

    def __post_init__(self) -> None:
        if not self.model or not all(self.names):
            raise ValueError(
                "model names no model; allowed: folders of fine-tuned runs or exports, models:/NAME@ALIAS, "
                "or a list of them"
            )

    @property
    def names(self) -> list[str]:
        """The models, one or several."""
        return [self.model] if isinstance(self.model, str) else self.model


@dataclass(frozen=True)
class Predict:
    """Labels of videos (arguments of ``jobs/predict.py``)."""

    source: str
    """A video, a folder, an ``s3://`` prefix, or a list file."""
    model: str
    """``models:/NAME@ALIAS``, or the folder of a fine-tuned run or export."""
    top_k: Annotated[int, Ge(1)] = 5
    """Labels for each video; at most all there are."""
    views: Annotated[int, Ge(1)] | None = None
    """Clips spread over each video; null: as the model is registered, else 1."""
    crops: Annotated[int, Ge(1)] | None = None
    stride: Annotated[int, Ge(1)] | None = None
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    storage: str = "build/runs"
    """Where runs, and MLflow's file without a server, are."""
    output: str = "build/predict"
    """Folder or ``s3://`` prefix for ``predictions/`` (Parquet), the list of rejected files, and a picture of the first
    video. The same command goes on there; another model or source needs another one."""
    retry_rejected: bool = False
    """Try the rejected and undecodable files again."""
    fresh: bool = False
    """Delete the predictions that are there, and begin anew."""
