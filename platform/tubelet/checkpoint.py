"""Checkpoints: sharded, loadable at any world size, valid only once their commit marker is written.

Every rank writes its shards (PyTorch's distributed checkpoint format) and hashes what arrived; rank 0 writes
``commit.json`` last, with each file's size and SHA-256. A loader checks the hashes before it unpickles anything, since
the format's metadata is a pickle: only what the run itself wrote and committed is ever read. The state is flat and
complete: parameters and both moments by name; everything else follows from the step.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.distributed.checkpoint import FsspecReader, FsspecWriter

from clips import storage
from tubelet import pulse, quarantine
from tubelet.optim import ShardedAdamW
from tubelet.run_directory import Commit, RunDirectory, checkpoint_name, parse_name


@dataclass(frozen=True)
class CheckpointConfig:
    """Recipe section ``checkpoint``; free to change."""

    every_minutes: Annotated[float, Gt(0)] = field(default=10.0, metadata={"resume": "free"})
    every_steps: Annotated[int, Ge(1)] | None = field(default=None, metadata={"resume": "free"})
    """Also whenever this many steps are done."""
    keep: Annotated[int, Ge(2)] = field(default=3, metadata={"resume": "free"})
    """How many of the newest stay."""


class DamagedCheckpointError(RuntimeError):
    """A committed checkpoint is not what its commit says."""


def save(
    run: RunDirectory,
    *,
    model: nn.Module,
    optimizer: ShardedAdamW,
    step: int,
    attempt: int,
    audit: dict[str, dict[str, Any]],
    points: list[dict[str, Any]],
) -> Commit:
    """Write and commit a checkpoint (a collective; returns on every rank once it is committed).

    Args:
        run: where.
        model: sharded.
        optimizer: over the same parameters.
        step: optimizer steps done.
        attempt: number of this attempt.
        audit: this rank's audit files since the last commit, by name: size and hash.
        points: rank 0's metrics since the last commit.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    folder = run.path("checkpoints", checkpoint_name(step, attempt))
    pulse.beat(step, "write")
    dcp.save(state_of(model, optimizer), storage_writer=_writer(folder))
    mine = {n: fingerprint(f"{folder}/{n}") for n in storage.list_names(folder) if _wrote(n, rank)}
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, (mine, audit))
    commit = Commit(
        step=step,
        attempt=attempt,
        world_size=world_size,
        files={name: entry for files, _ in gathered for name, entry in files.items()},
        audit={name: entry for _, files in gathered for name, entry in files.items()},
        points=points,
    )
    pulse.beat(step, "commit")
    if rank == 0:
        run.write_json(vars(commit), "checkpoints", commit.name, "commit.json")
    dist.barrier()
    return commit


def load(run: RunDirectory, name: str, *, model: nn.Module, optimizer: ShardedAdamW) -> Commit:
    """Load a committed checkpoint in place (a collective), after checking every hash.

    Raises:
        DamagedCheckpointError: on every rank, when a file is missing or differs from its commit.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    commit = run.commit(name)
    folder = run.path("checkpoints", name)
    bad = [
        file
        for number, (file, expected) in enumerate(sorted(commit.files.items()))
        if number % world_size == rank and fingerprint(f"{folder}/{file}") != expected
    ]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, bad)
    if damaged := [file for files in gathered for file in files]:
        raise DamagedCheckpointError(
            f"{folder}: {', '.join(damaged)} differ from what was committed; "
            f"remove this folder to resume from the checkpoint before it"
        )
    dcp.load(state_of(model, optimizer), storage_reader=_reader(folder))
    return commit


def state_of(model: nn.Module, optimizer: ShardedAdamW) -> dict[str, dict[str, Tensor]]:
    """Everything that a checkpoint holds, as tensors that load in place."""
    return {"model": {n: p.detach() for n, p in model.named_parameters()}, **optimizer.moments()}


def prune(run: RunDirectory, *, keep: int) -> list[str]:
    """Delete what nobody will resume from; returns the names of the deleted checkpoints.

    These are the checkpoints of the lineage beyond the last ``keep`` (at least two), and whatever attempts before the
    newest one left outside it: parts that were never committed, commits that came too late.
    """
    lineage = run.lineage()
    last = {attempt.number: step for attempt, step in lineage}
    newest = max(last, default=0)
    committed = set(run.committed())
    mine: list[str] = []
    old: list[str] = []
    for name in run.begun():
        step, attempt = parse_name(name)
        if name in committed and step <= last.get(attempt, -1):
            mine.append(name)
        elif attempt < newest:
            old.append(name)
    old += mine[: -max(2, keep)]
    for name in old:
        storage.remove(run.path("checkpoints", name, "commit.json"))  # first: no reader sees a part
        storage.remove(run.path("checkpoints", name))
        storage.remove(quarantine.uri_of(run, name))
    return old


def fingerprint(uri: str) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a stored file; size -1 when it does not exist."""
    if not storage.exists(uri):
        return {"size": -1, "sha256": ""}
    digest, size = hashlib.sha256(), 0
    with storage.open_seekable(uri) as file:
        while block := file.read(1 << 22):
            digest.update(block)
            size += len(block)
    return {"size": size, "sha256": digest.hexdigest()}


def _wrote(name: str, rank: int) -> bool:
    return name.startswith(f"__{rank}_") or (rank == 0 and name == ".metadata")


def _writer(folder: str) -> dcp.StorageWriter:
    if storage.is_local(folder):
        return dcp.FileSystemWriter(storage.local_path(folder), single_file_per_rank=True)
    return FsspecWriter(folder, single_file_per_rank=True)


def _reader(folder: str) -> dcp.StorageReader:
    if storage.is_local(folder):
        return dcp.FileSystemReader(storage.local_path(folder))
    return FsspecReader(folder)
