"""The sweep file: what is searched, by what, and for how long.

It names a training recipe and says nothing of machines: the trials' size is the recipe's ``elastic`` section, and as
many run at once as the cluster holds. So one file serves a laptop and a cluster.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from tubelet.recipes import Finetune, Pretrain
from tubelet.run_directory import RunConfig
from tubelet.sweep import space as spaces

METRICS = {
    "pretrain": ("eval/loss",),
    "finetune": ("eval/top1", "eval/loss"),
}
"""What the held-out evaluations of a job measure."""
SCHEMAS: dict[str, type[Pretrain] | type[Finetune]] = {"pretrain": Pretrain, "finetune": Finetune}
OURS = ("run.name", "run.storage", "run.fresh", "resume.allow")
"""Recipe keys that the sweep sets for each trial."""
MUTABLE = ("optim", "mask", "track", "checkpoint", "resume")
"""Sections that may change in the middle of a run: what pbt may search."""


@dataclass(frozen=True)
class AshaConfig:
    """Section ``asha``: asynchronous successive halving (Li et al., 2020)."""

    grace_epochs: Annotated[float, Gt(0)] = 1.0
    """The first rung: no trial is stopped earlier."""
    reduction: Annotated[float, Gt(1)] = 2.0
    """Each rung is so many times later than the one before, and the best 1/reduction of it go on."""


@dataclass(frozen=True)
class PbtConfig:
    """Section ``pbt``: population based training (Jaderberg et al., 2017)."""

    every_epochs: Annotated[float, Gt(0)] = 1.0
    """How often a trial is compared with the others."""
    quantile: Annotated[float, Gt(0), Le(0.5)] = 0.25
    """The worst such share goes on from checkpoints of the best such share, with changed values."""
    resample: Annotated[float, Ge(0), Le(1)] = 0.25
    """How often a value is drawn anew instead of being multiplied by 0.8 or 1.2."""


@dataclass(frozen=True)
class Sweep:
    """A search over recipe keys with Ray Tune."""

    recipe: list[str]
    """Files of the training recipe, later ones over earlier ones."""
    job: Literal["pretrain", "finetune"] = "finetune"
    set: dict[str, Any] = field(default_factory=dict)
    """Recipe keys that all trials have otherwise than in those files: ``set.data.manifest=FILE``."""
    space: dict[str, Any] = field(default_factory=dict)
    """Recipe keys with the values to try: ``optim.lr: {log_uniform: [0.01, 0.5]}``; also uniform, integer,
    log_integer, choice."""
    metric: str = "eval/loss"
    """Of the held-out evaluations."""
    mode: Literal["min", "max"] = "min"
    trials: Annotated[int, Ge(1)] = field(default=12, metadata={"resume": "free"})
    search: Literal["random", "optuna"] = "random"
    """How values are chosen; optuna: its tree-structured Parzen estimator."""
    scheduler: Literal["none", "asha", "pbt"] = "asha"
    """What becomes of trials while they run."""
    asha: AshaConfig = field(default_factory=AshaConfig)
    pbt: PbtConfig = field(default_factory=PbtConfig)
    concurrent: Annotated[int, Ge(1)] | None = field(default=None, metadata={"resume": "free"})
    """Trials at once; null: as many as the cluster has room for."""
    run: RunConfig = field(default_factory=RunConfig)
    """Name, storage and seed of the sweep; its trials are the runs NAME-00000, NAME-00001, ... beside it."""

    def __post_init__(self) -> None:
        schema = SCHEMAS[self.job]
        found = spaces.problems(self.space, schema)
        keys = [key for key, _ in spaces.flat(self.space)]
        for key, _ in spaces.flat(self.set):
            text = spaces.unknown(key, schema)
            if text:
                found.append(f"set.{key}: {text}")
            elif key in keys:
                found.append(f"set.{key}: space.{key} is searched; name the key once")
        for place, names in (("set", dict(spaces.flat(self.set))), ("space", keys)):
            for key in (key for key in names if key in OURS):
                ours = "run.storage" if key == "run.storage" else "run.name"
                found.append(f"{place}.{key}: every trial gets its own; set the sweep's {ours}")
        if self.metric not in METRICS[self.job]:
            allowed = " or ".join(METRICS[self.job])
            found.append(
                f"metric is {self.metric!r}, which a {self.job} run does not measure: use {allowed}"
            )
        if self.scheduler == "pbt":
            if self.search != "random":
                found.append("search=optuna does not go with scheduler=pbt, which changes values")
            for key in (k for k in keys if k.partition(".")[0] not in MUTABLE):
                found.append(
                    f"space.{key}: scheduler=pbt changes values in the middle of a run, which only keys of "
                    f"{', '.join(MUTABLE[:2])} allow; use asha, or take it out"
                )
        if found:
            raise ValueError("; ".join(found))
