"""What Ray Train starts on every worker: find the attempt, join the group, run the loop, tell how it ended."""

import ctypes
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from tubelet import holding, quarantine
from tubelet.feed import Feed, MaskMaker
from tubelet.items import DataPlan
from tubelet.quarantine import Quarantine
from tubelet.run_directory import Attempt, RunDirectory
from tubelet.session import Outcome, Session
from tubelet.stream import Stream, Supply

_STOP_POLL_S = 1.0


@dataclass(frozen=True)
class Work:
    """Everything a worker needs, pickled by the driver."""

    run_uri: str
    ray_run: str
    recipe: Any
    plan: DataPlan
    make_masks: MaskMaker
    loop: Callable[[Any, DataPlan, Session], Outcome]
    threads: int
    supply: Supply


def work(config: dict[str, Work]) -> None:
    """Ray Train's train function."""
    task = config["work"]
    torch.set_num_threads(task.threads)
    run = RunDirectory(task.run_uri)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # collectives of objects use the current device
    mesh = init_device_mesh(device.type, (world_size,))
    attempt = _agree_on_attempt(run, task.ray_run, rank)
    known = quarantine.read(run, attempt.parent)
    items = Stream(
        task.plan,
        task.supply,
        first_item=task.plan.timetable.first_item(attempt.step),
        rank=rank,
        world_size=world_size,
        attempt=attempt.number,
        out=quarantine.known_out(known),
    )
    feed = Feed(
        task.plan,
        items,
        start_step=attempt.step,
        attempt=attempt.number,
        rank=rank,
        world_size=world_size,
        device=device,
        make_masks=task.make_masks,
        quarantine=Quarantine(task.plan.ledger, known),
    )
    session = Session(
        run=run,
        attempt=attempt,
        feed=feed,
        mesh=mesh,
        device=device,
        report=_report,
        stop_requested=_StopWatch(run, attempt) if rank == 0 else lambda: False,
    )
    outcome = task.loop(task.recipe, task.plan, session)
    if outcome.kind == "stopped" and not run.stop_requested(attempt.number):
        holding.hold(outcome.step, until=lambda: run.stop_requested(attempt.number))
    if rank == 0:
        run.write_json(asdict(outcome), "attempts", f"{attempt.number:05d}.outcome")


def read_outcome(run: RunDirectory, attempt: int) -> Outcome | None:
    """How an attempt ended; None when it did not come to an end of its own."""
    content = run.read_json("attempts", f"{attempt:05d}.outcome")
    return Outcome(**content) if content else None


def _agree_on_attempt(run: RunDirectory, ray_run: str, rank: int) -> Attempt:
    """Rank 0 reads the newest attempt for all; one that another driver began is not ours to work for."""
    found: list[Any] = (
        [asdict(run.newest_attempt() or Attempt(0, 0, None, 0, ""))] if rank == 0 else [None]
    )
    dist.broadcast_object_list(found, src=0)
    attempt = Attempt(**found[0])
    if attempt.ray_run != ray_run:
        raise RuntimeError(
            f"{run.uri} now belongs to {attempt.ray_run} (attempt {attempt.number}); this worker is of {ray_run}: "
            f"stop one of the two drivers"
        )
    return attempt


def _report(points: list[dict[str, Any]]) -> None:
    ray.train.report({"points": _Points(points)})
    _return_free_memory()


def _return_free_memory() -> None:
    """Give back what malloc keeps between the blocks in use: with Ray's threads beside the loop it grows without end.

    0.5 MB a step of the demo, on each worker (measured); only glibc keeps it, and only glibc has the call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class _Points(list[dict[str, Any]]):
    """Points of a report; Ray logs every report whole, and a log of all metrics helps nobody."""

    def __repr__(self) -> str:
        return f"<{len(self)} points>"


class _StopWatch:
    """Whether this attempt should save and leave: the controller wants it to hold, or somebody asked it to stop.

    The latter is looked for once a second, in the background.
    """

    def __init__(self, run: RunDirectory, attempt: Attempt) -> None:
        self._asked = threading.Event()
        threading.Thread(target=self._watch, args=(run, attempt.number), daemon=True).start()

    def __call__(self) -> bool:
        return self._asked.is_set() or holding.asked_to_hold()

    def _watch(self, run: RunDirectory, attempt: int) -> None:
        while not self._asked.wait(_STOP_POLL_S):
            if run.stop_requested(attempt):
                self._asked.set()
