"""Checkpoints: what they hold, where, and how they are loaded at any world size.

A checkpoint is PyTorch's distributed format (shards of every rank) and a ``commit.json``, written last (``saving``),
with each file's size and SHA-256. A loader checks the hashes before it unpickles anything, since the format's metadata
is a pickle: only what the run itself wrote and committed is ever read. One that is damaged is set aside, and the run
goes on from the one before. The state is flat and complete: parameters and both moments by name; everything else
follows from the step.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from annotated_types import Ge, Gt
from torch import Tensor, nn

from tubelet.node_copies import NodeCopies
from tubelet.optim import ShardedAdamW
from tubelet.run_directory import Commit, RunDirectory


@dataclass(frozen=True)
class CheckpointConfig:
    """Recipe section ``checkpoint``; free to change."""

    every_minutes: Annotated[float, Gt(0)] = field(default=10.0, metadata={"resume": "free"})
    every_steps: Annotated[int, Ge(1)] | None = field(default=None, metadata={"resume": "free"})
    """Also whenever this many steps are done."""
    keep: Annotated[int, Ge(2)] = field(default=3, metadata={"resume": "free"})
    """How many of the newest stay."""
    keep_every: Annotated[int, Ge(1)] | None = field(default=None, metadata={"resume": "free"})
    """Those at multiples of so many steps stay for good."""
    keep_best: Annotated[int, Ge(0)] = field(default=0, metadata={"resume": "free"})
    """So many more stay, those with the least held-out loss; each evaluation is then followed by a checkpoint."""
    export_best: bool = field(default=False, metadata={"resume": "free"})
    """Export the model of the least held-out loss to ``export/best`` (the averaged one, with ``optim.ema``)."""
    background: bool = field(default=True, metadata={"resume": "free"})
    """Write while training goes on; false waits for every checkpoint."""
    node_dir: str | None = field(default=None, metadata={"resume": "free"})
    """Of a run in a bucket: where each node keeps its newest two checkpoints; null: the temporary folder."""


class DamagedCheckpointError(RuntimeError):
    """A committed checkpoint is not what its commit says; it has been set aside."""


def load(
    run: RunDirectory,
    name: str,
    *,
    model: nn.Module,
    optimizer: ShardedAdamW,
    node_dir: str | None = None,
) -> Commit:
    """Load a committed checkpoint in place (a collective), after checking every hash.

    Raises:
        DamagedCheckpointError: on every rank, when a file is missing or differs from its commit; from then on the
            checkpoint does not exist for readers.
    """
    world_size = dist.get_world_size()
    commit = run.commit(name)
    folder = run.path("checkpoints", name)
    copies = NodeCopies(run, node_dir)
    bad = copies.fetch(commit, rank=dist.get_rank(), world_size=world_size)
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, bad)
    if damaged := sorted({file for files in gathered for file in files}):
        copies.drop(name)
        if dist.get_rank() == 0:
            run.set_aside(name, damaged)
        dist.barrier()
        raise DamagedCheckpointError(
            f"{folder}: {', '.join(damaged)} differ from what was committed; "
            "set aside, resuming from the checkpoint before it"
        )
    reader = dcp.FileSystemReader(copies.folder(name))
    dcp.load(state_of(model, optimizer), storage_reader=reader)
    return commit


def state_of(model: nn.Module, optimizer: ShardedAdamW) -> dict[str, dict[str, Tensor]]:
    """Everything that a checkpoint holds, as tensors that load in place."""
    return {"model": {n: p.detach() for n, p in model.named_parameters()}, **optimizer.moments()}


def wrote(name: str, rank: int) -> bool:
    """Whether a rank has written this file of a checkpoint."""
    return name.startswith(f"__{rank}_") or (rank == 0 and name == ".metadata")
