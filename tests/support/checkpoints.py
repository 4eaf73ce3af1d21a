"""Saving, damaging and loading checkpoints of a small model: what ranks run in tests."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from clips import storage
from optimising import small_model, update, whole
from tubelet import checkpoint, sharding
from tubelet.checkpoint import CheckpointConfig, DamagedCheckpointError
from tubelet.optim import OptimConfig, ShardedAdamW
from tubelet.run_directory import RunDirectory, checkpoint_name
from tubelet.saving import Saver


def _sharded() -> tuple[Any, ShardedAdamW]:
    model = small_model()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    sharding.shard(model, blocks=[], mesh=mesh, bfloat16=False)
    return model, ShardedAdamW(model, config=OptimConfig())


def _contents(model: Any, optimizer: ShardedAdamW) -> dict[str, Any]:
    moments = optimizer.moments()
    return {
        "weights": whole(dict(model.named_parameters())),
        **{name: whole(tensors) for name, tensors in moments.items()},
    }


def save_small(
    uri: str, step: int, *, background: bool = True, node_dir: str | None = None
) -> dict[str, Any]:
    """Train a few steps, save as attempt 1, train on; returns what the checkpoint must hold."""
    model, optimizer = _sharded()
    for number in range(3):
        update(model, optimizer, number, None)
    config = CheckpointConfig(background=background, node_dir=node_dir)
    saver = Saver(RunDirectory(uri), attempt=1, config=config)
    rank = dist.get_rank()
    saver.begin(
        step,
        model=model,
        optimizer=optimizer,
        audit={f"rank-{rank}": b"x" * rank},
        points=[{"step": step, "metrics": {"train/loss": 1.0}}] if rank == 0 else [],
        bad=[],
    )
    contents = _contents(model, optimizer)
    update(model, optimizer, 3, None)  # what is trained meanwhile must not be in it
    verdict = saver.finish()
    assert verdict is not None
    assert (verdict.step, verdict.error, saver.committed) == (step, None, step)
    return contents


def load_small(uri: str, name: str, node_dir: str | None = None) -> dict[str, Any] | str:
    """Load into a model of other weights; returns what it then holds, or the error."""
    model, optimizer = _sharded()
    for number in range(7, 9):
        update(model, optimizer, number, None)
    try:
        checkpoint.load(
            RunDirectory(uri), name, model=model, optimizer=optimizer, node_dir=node_dir
        )
    except DamagedCheckpointError as error:
        return f"DamagedCheckpointError: {error}"
    return _contents(model, optimizer)


def save_to_bucket(
    uri: str, step: int, node_dir: str, environment: dict[str, str]
) -> dict[str, Any]:
    """`save_small` on a node whose folder is ``node_dir``."""
    os.environ.update(environment)
    return save_small(uri, step, node_dir=node_dir)


def load_from_bucket(
    uri: str, name: str, node_dir: str, environment: dict[str, str]
) -> tuple[dict[str, Any] | str, int]:
    """`load_small` on a node whose folder is ``node_dir``; also how many bytes of shards came from the bucket."""
    os.environ.update(environment)
    commit = storage.size(f"{RunDirectory(uri).path('checkpoints', name)}/commit.json")
    before = storage.traffic()
    loaded = load_small(uri, name, node_dir)
    return loaded, storage.traffic().since(before).bytes_read - commit


def move_small(uri: str, name: str, attempt: int) -> dict[str, Any]:
    """Load a checkpoint and save what it held as another attempt's, at the same step; returns that."""
    model, optimizer = _sharded()
    run = RunDirectory(uri)
    step = checkpoint.load(run, name, model=model, optimizer=optimizer).step
    saver = Saver(run, attempt=attempt, config=CheckpointConfig())
    saver.begin(step, model=model, optimizer=optimizer, audit={}, points=[], bad=[])
    verdict = saver.finish()
    assert verdict is not None
    assert verdict.error is None
    return _contents(model, optimizer)


def save_where_one_rank_cannot(uri: str, step: int) -> list[Any]:
    """Two saves, of which the first fails for the last rank alone.

    Returns:
        What each rank then knows: both verdicts' errors, whether the first one's folder was there in between.
    """
    model, optimizer = _sharded()
    run, rank = RunDirectory(uri), dist.get_rank()
    saver = Saver(run, attempt=1, config=CheckpointConfig())
    folder = Path(run.path("checkpoints", checkpoint_name(step, 1)))
    if rank == dist.get_world_size() - 1:
        (folder / f"__{rank}_0.distcp").mkdir(parents=True)
    dist.barrier()
    seen: list[Any] = []
    for number in (step, step + 1):
        audit = {f"rank-{rank}-step-{number}": b"x"}
        saver.begin(number, model=model, optimizer=optimizer, audit=audit, points=[], bad=[])
        verdict = saver.finish()
        assert verdict is not None
        seen += [verdict.error, folder.exists()]
        dist.barrier()
    return seen


class _Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def _flipped_byte(folder: Path) -> str:
    content = bytearray((folder / "__0_0.distcp").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "__0_0.distcp").write_bytes(content)
    return "__0_0.distcp"


def _cut_off(folder: Path) -> str:
    (folder / "__0_0.distcp").write_bytes((folder / "__0_0.distcp").read_bytes()[:-1])
    return "__0_0.distcp"


def _missing(folder: Path) -> str:
    (folder / "__0_0.distcp").unlink()
    return "__0_0.distcp"


def _foreign_pickle(folder: Path) -> str:
    (folder / ".metadata").write_bytes(pickle.dumps(_Bomb(folder.parents[2] / "exploded")))
    return ".metadata"


DAMAGE: dict[str, Callable[[Path], str]] = {
    "a flipped byte": _flipped_byte,
    "a byte less": _cut_off,
    "a missing file": _missing,
    "a pickle of somebody else": _foreign_pickle,
}
