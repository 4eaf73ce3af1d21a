"""What a training worker is given: the recipe section that sizes the group, and one rank's end of a run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch.distributed.device_mesh import DeviceMesh

from tubelet.feed import Feed
from tubelet.run_directory import Attempt, RunDirectory


@dataclass(frozen=True)
class ElasticConfig:
    """Section ``elastic``: on how many workers; free to change at any start."""

    min_workers: Annotated[int, Ge(1)] = field(default=1, metadata={"resume": "free"})
    max_workers: Annotated[int, Ge(1)] = field(default=1, metadata={"resume": "free"})
    cpus_per_worker: Annotated[float, Gt(0)] = field(default=1.0, metadata={"resume": "free"})
    device: Literal["auto", "cuda", "cpu"] = field(default="auto", metadata={"resume": "free"})
    """auto: a GPU a worker if the cluster has enough for ``min_workers`` at the start; where none are up yet, cuda."""
    threads: Annotated[int, Ge(1)] = 1
    """CPU threads of a worker; part of the bits of a result, hence fixed."""
    exact: bool | None = None
    """The same bits at any number of workers and through any failures; null: on CPUs. On GPUs it asks for
    deterministic kernels, which are slower, and holds between GPUs of one model."""
    max_failures: Annotated[int, Ge(0)] = field(default=16, metadata={"resume": "free"})
    """Worker failures after which the run gives up; nodes that are taken away do not count."""
    hang_minutes: Annotated[float, Gt(0)] = field(default=15.0, metadata={"resume": "free"})
    """Without a sign of a worker for so long, all stacks are kept and the workers started again."""

    def __post_init__(self) -> None:
        if self.min_workers > self.max_workers:
            raise ValueError(
                f"elastic.min_workers ({self.min_workers}) is greater than"
                f" elastic.max_workers ({self.max_workers})"
            )


@dataclass(frozen=True)
class Session:
    """One rank's end of a run, for the loops: where it stands, what feeds it, whom it tells."""

    run: RunDirectory
    attempt: Attempt
    feed: Feed
    mesh: DeviceMesh
    device: torch.device
    report: Callable[[list[dict[str, Any]]], None]
    """Takes rank 0's points ``{"step": ..., "metrics": {...}}``; called on every rank at the same steps."""
    stop_requested: Callable[[], bool]
    """Rank 0's view of whether somebody asked this attempt to leave; cheap."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: ``finished``, ``stopped`` on request, or for a reason that trying again would not mend.

    ``diverged``: loss or gradient not finite; ``unsaved``: no checkpoint could be written; ``bad_data``: too many clips
    undecodable.
    """

    kind: Literal["finished", "stopped", "diverged", "unsaved", "bad_data"]
    step: int
    message: str = ""
