"""Where a step's time goes, on one rank of the real loop: what ranks run in ``bench_step``."""

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parity import train_rank
from tubelet import audit, feed
from tubelet.loops import optimise
from tubelet.recipes import Pretrain


def measured_rank(recipe: Pretrain, run_uri: str, items: Path, *, warm_up: int) -> dict[str, Any]:
    """Train a run to its end with clocks around the parts.

    Returns:
        ``steps_s``: of every step after ``warm_up``, the checkpoint or evaluation that follows it not in it;
        ``saves_s``: how long training waited for each save, the last one (which always waits) left out;
        ``elapsed_s``: from the first of these steps to the end of the last but for the last save;
        ``accounting_s``: spent in these steps on checking what arrived, on its stamps, seeds and audit.
    """
    steps: list[float] = []
    saves: list[float] = []
    ends: list[float] = []
    spent: dict[str, float] = defaultdict(float)
    clocked = _clock(spent)
    worker: Any = optimise.Worker
    saved, stepped = worker._save, worker._step

    def step(this: Any, *arguments: Any) -> Any:
        if len(steps) == warm_up:
            spent.clear()
        begun = time.perf_counter()
        result = stepped(this, *arguments)
        ends.append(time.perf_counter())
        steps.append(ends[-1] - begun)
        return result

    def save(this: Any, *arguments: Any, wait: bool) -> Any:
        begun = time.perf_counter()
        result = saved(this, *arguments, wait=wait)
        if not wait:
            saves.append(time.perf_counter() - begun)
        return result

    worker._step, worker._save = step, save
    clocked(audit.AuditTrail, "add")
    clocked(audit.AuditTrail, "take")
    clocked(feed.Feed, "_receive")
    clocked(feed.Feed, "_unit")
    rank = train_rank(recipe, run_uri, items, report_every_s=2.0)
    assert rank["outcome"].kind == "finished"
    # What _receive does besides waiting (nothing here: items lie in memory) and making tensors is the fence.
    accounting = spent["add"] + spent["take"] + spent["_receive"] - spent["_unit"]
    return {
        "steps_s": steps[warm_up:],
        "saves_s": saves,
        "elapsed_s": ends[-1] - ends[warm_up - 1],
        "accounting_s": accounting,
    }


def _clock(spent: dict[str, float]) -> Callable[[type, str], None]:
    def wrap(owner: type, name: str) -> None:
        inner = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return inner(*arguments, **options)
            finally:
                spent[name] += time.perf_counter() - begun

        setattr(owner, name, timed)

    return wrap
