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
    split: str | None = None
    """Which rows: those of this split; null: of ``val``, if the manifest names splits."""
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
class Features:
    """What a frozen encoder gives of videos (arguments of ``jobs/features.py``)."""

    encoder: str
    """A run's name or folder, an export, ``models:/NAME@ALIAS``, ``runs:/ID/PATH``, or a weight file."""
    manifest: str
    """Parquet file of the videos."""
    model: ModelConfig | None = None
    """Sizes of a weight file's model, which the file does not say; null: an export says them."""
    random: Annotated[int, Ge(0)] | None = None
    """Seed of fresh weights in place of the encoder's: what its features must beat."""
    tokens: bool = False
    """Keep all tokens, which an attentive probe needs, and not only their mean."""
    pool: Annotated[int, Ge(1)] = 1
    """Kept tokens are means of so many by so many neighbours in the picture."""
    views: Annotated[int, Ge(1)] = 1
    """Clips spread over each video."""
    crops: Annotated[int, Ge(1)] = 1
    """Squares cut from each clip along its long side."""
    stride: Annotated[int, Ge(1)] | None = None
    """Frames between two of a clip; null: as the encoder was trained."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    storage: str = "build/runs"
    """Where runs, and MLflow's file without a server, are."""
    output: str = "build/features"
    """Folder or ``s3://`` prefix. The same command goes on there; other features need another one."""
    fresh: bool = False
    """Delete the features that are there, and begin anew."""


@dataclass(frozen=True)
class LinearConfig:
    """Section ``linear``: a linear layer on a video's mean feature, by SGD with momentum (VideoMAE, Table 10)."""

    lr: tuple[Annotated[float, Gt(0)], ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Peaks of the learning rate per 256 videos of a batch; each with each weight decay is a head of its own."""
    weight_decay: tuple[Annotated[float, Ge(0)], ...] = (0.0, 1e-4, 1e-3)
    epochs: Annotated[int, Ge(1)] = 100
    warmup_epochs: Annotated[float, Ge(0)] = 10
    batch: Annotated[int, Ge(1)] = 1024


@dataclass(frozen=True)
class AttentiveConfig:
    """Section ``attentive``: a learned query over all tokens, by AdamW (grid and length as V-JEPA 2)."""

    lr: tuple[Annotated[float, Gt(0)], ...] = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
    """Peaks of the learning rate, whatever the batch."""
    weight_decay: tuple[Annotated[float, Ge(0)], ...] = (0.01, 0.1, 0.4, 0.8)
    epochs: Annotated[int, Ge(1)] = 20
    warmup_epochs: Annotated[float, Ge(0)] = 0
    batch: Annotated[int, Ge(1)] = 128


@dataclass(frozen=True)
class NeighboursConfig:
    """Section ``knn``: the nearest training videos vote (DINO)."""

    k: tuple[Annotated[int, Ge(1)], ...] = (5, 10, 20, 100)


@dataclass(frozen=True)
class Probe:
    """What features know of labels (arguments of ``jobs/probe.py``)."""

    features: str | list[str]
    """Folder of ``jobs/features.py``; several are compared."""
    manifest: str
    """The manifest that they were made from, with labels."""
    probes: tuple[Literal["linear", "attentive", "knn"], ...] = ("linear", "attentive", "knn")
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.05
    """Which videos the result is reported on, when the manifest names no split: this share of them."""
    test: str = "val"
    """Split that the result is reported on, when the manifest names splits; ``train`` trains."""
    select: Annotated[float, Gt(0), Lt(1)] = 0.2
    """Share of the training videos that no head is trained on: among heads, the best on these is taken."""
    linear: LinearConfig = field(default_factory=LinearConfig)
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    knn: NeighboursConfig = field(default_factory=NeighboursConfig)
    seed: int = 0
    """Of initial heads and of the order of videos."""
    storage: str = "build/runs"
    """Where MLflow's file is when there is no server."""
    output: str = "build/probe"
    """Folder for ``probes.json``, ``probes.png``, and the heads that were taken."""

    @property
    def folders(self) -> list[str]:
        """The features, one folder or several."""
        return [self.features] if isinstance(self.features, str) else self.features

    def __post_init__(self) -> None:
        if not self.features or not all(self.folders):
            raise ValueError("features names no folder of jobs/features.py")
        for kind in ("linear", "attentive"):
            grid: LinearConfig | AttentiveConfig = getattr(self, kind)
            if not grid.lr or not grid.weight_decay:
                raise ValueError(f"{kind}.lr and {kind}.weight_decay need at least one value each")
        if not self.probes or not self.knn.k:
            raise ValueError("probes and knn.k need at least one value each")


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
