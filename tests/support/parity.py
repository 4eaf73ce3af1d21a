"""One rank's end of the real loop, fed in process: what groups of workers run in tests of their numbers."""

import functools
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from tubelet import quarantine
from tubelet.feed import Feed
from tubelet.fit import Job
from tubelet.items import Batch, decode_item
from tubelet.loops import finetune, plans, pretrain
from tubelet.loops.optimise import Task, Worker
from tubelet.quarantine import Quarantine
from tubelet.recipes import Finetune, Pretrain
from tubelet.run_directory import RunDirectory
from tubelet.session import Session


def job_of(recipe: Pretrain | Finetune) -> Job:
    """The job of a recipe."""
    return finetune.job(recipe) if isinstance(recipe, Finetune) else pretrain.job(recipe)


def task_of(recipe: Pretrain | Finetune, job: Job, session: Session) -> Task:
    """The task that the job's loop would make."""
    if isinstance(recipe, Finetune):
        assert isinstance(job.loop, functools.partial)
        return finetune.Classifying(recipe, session=session, **job.loop.keywords)
    return pretrain.Reconstructing(recipe, job.plan, session)


def decode_stream(recipe: Pretrain | Finetune, path: Path) -> Path:
    """Decode all items of a run, once for many runs of the loop."""
    plan = job_of(recipe).plan
    items = [
        decode_item(number, plan=plan, attempt=0, out={}) for number in range(plan.timetable.items)
    ]
    path.write_bytes(pickle.dumps(items))
    return path


def train_rank(
    recipe: Pretrain | Finetune,
    run_uri: str,
    items: Path,
    stop_after: int | None = None,
    *,
    die_after: int | None = None,
    report_every_s: float = 2.0,
) -> dict[str, Any]:
    """Run the loop from the run directory's newest attempt on; the group is its worker group.

    Args:
        recipe: the run.
        run_uri: its directory; an attempt of this world size has begun there.
        items: from ``decode_stream``.
        stop_after: ask the loop to leave once it has done so many steps.
        die_after: end it by an exception instead.
        report_every_s: time between two reports.

    Returns:
        How it ended, this rank's points, and their numbers report by report.
    """
    job = job_of(recipe)
    run, plan = RunDirectory(run_uri), job.plan
    attempt = run.newest_attempt()
    assert attempt is not None
    rank, world_size = dist.get_rank(), dist.get_world_size()
    assert attempt.world_size == world_size
    reports: list[list[dict[str, Any]]] = []
    feed = Feed(
        plan,
        _mine(items, plan.timetable.first_item(attempt.step) + rank, world_size, attempt.number),
        start_step=attempt.step,
        attempt=attempt.number,
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        make_masks=job.make_masks,
        quarantine=Quarantine(plan.ledger, quarantine.read(run, attempt.parent)),
    )
    session = Session(
        run=run,
        attempt=attempt,
        feed=feed,
        mesh=init_device_mesh("cpu", (world_size,)),
        device=torch.device("cpu"),
        report=lambda points: reports.append(list(points)),
        stop_requested=_After(attempt.step, stop_after, die_after) if rank == 0 else lambda: False,
    )
    steps = replace(plans.step_plan(recipe, plan), report_every_s=report_every_s)
    try:
        outcome = Worker(task=task_of(recipe, job, session), plan=steps, session=session).train()
    except _Died:
        outcome = None
    return {
        "outcome": outcome,
        "points": [point for report in reports for point in report],
        "reports": [[point["step"] for point in report] for report in reports],
    }


def _mine(items: Path, first: int, world_size: int, attempt: int) -> Iterator[Batch]:
    """This rank's items, dealt out as the feed's transport does it."""
    for batch in pickle.loads(items.read_bytes())[first::world_size]:
        yield {**batch, "attempt": np.full_like(batch["attempt"], attempt)}


class _Died(Exception):
    pass


class _After:
    """Rank 0 asks before each step, once; the answer turns to yes, or to an end, with a given one."""

    def __init__(self, step: int, stop: int | None, die: int | None) -> None:
        self._step, self._stop, self._die = step, stop, die

    def __call__(self) -> bool:
        if self._step == self._die:
            raise _Died
        self._step += 1
        return self._step == self._stop
