"""One rank's end of the real loop, fed in process: what groups of workers run in tests of their numbers."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from tubelet.feed import Feed
from tubelet.items import Batch, decode_item
from tubelet.loops import pretrain
from tubelet.recipes import Pretrain
from tubelet.run_directory import RunDirectory
from tubelet.session import Session


def decode_stream(recipe: Pretrain, path: Path) -> Path:
    """Decode all items of a run, once for many runs of the loop."""
    plan = pretrain.job(recipe).plan
    items = [
        decode_item({"id": np.array([number])}, plan=plan, first_item=0, attempt=0)
        for number in range(plan.timetable.items)
    ]
    path.write_bytes(pickle.dumps(items))
    return path


def train_rank(
    recipe: Pretrain, run_uri: str, items: Path, stop_after: int | None = None
) -> dict[str, Any]:
    """Run the loop from the run directory's newest attempt on; the group is its worker group.

    Args:
        recipe: the run.
        run_uri: its directory; an attempt of this world size has begun there.
        items: from ``decode_stream``.
        stop_after: ask the loop to leave once it has done so many steps.

    Returns:
        How it ended, and rank 0's points.
    """
    job = pretrain.job(recipe)
    run, plan = RunDirectory(run_uri), job.plan
    attempt = run.newest_attempt()
    assert attempt is not None
    rank, world_size = dist.get_rank(), dist.get_world_size()
    assert attempt.world_size == world_size
    points: list[dict[str, Any]] = []
    feed = Feed(
        plan,
        _mine(items, plan.timetable.first_item(attempt.step) + rank, world_size, attempt.number),
        start_step=attempt.step,
        attempt=attempt.number,
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        make_masks=job.make_masks,
    )
    session = Session(
        run=run,
        attempt=attempt,
        feed=feed,
        mesh=init_device_mesh("cpu", (world_size,)),
        device=torch.device("cpu"),
        report=points.extend,
        stop_requested=_After(attempt.step, stop_after) if rank == 0 else lambda: False,
    )
    outcome = job.loop(recipe, plan, session)
    return {"kind": outcome.kind, "step": outcome.step, "points": points}


def _mine(items: Path, first: int, world_size: int, attempt: int) -> Iterator[Batch]:
    """This rank's items, dealt out as the feed's transport does it."""
    for batch in pickle.loads(items.read_bytes())[first::world_size]:
        yield {**batch, "attempt": np.full_like(batch["attempt"], attempt)}


class _After:
    """Rank 0 asks once a step; the answer turns to yes at the end of a given one."""

    def __init__(self, step: int, last: int | None) -> None:
        self._step, self._last = step, last

    def __call__(self) -> bool:
        self._step += 1
        return self._step == self._last
