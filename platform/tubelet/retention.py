"""Which checkpoints stay: the newest, the best, some for good, and always the last two that can be loaded."""

import math
from collections.abc import Mapping, Sequence

from clips import storage
from tubelet import quarantine
from tubelet.checkpoint import CheckpointConfig
from tubelet.run_directory import Commit, RunDirectory, parse_name

_FEWEST = 2


def superfluous(
    names: Sequence[str], config: CheckpointConfig, held_out: Mapping[str, float]
) -> list[str]:
    """Which checkpoints of the lineage go.

    Args:
        names: committed ones, oldest first.
        config: the recipe's section.
        held_out: loss on held-out clips of those that have one.
    """
    stay = set(names[-max(_FEWEST, config.keep) :])
    if config.keep_every:
        stay |= {name for name in names if parse_name(name)[0] % config.keep_every == 0}
    if config.keep_best:
        scored = sorted((loss, name) for name, loss in held_out.items() if name in names)
        stay |= {name for _, name in scored[: config.keep_best]}
    return [name for name in names if name not in stay]


def prune(run: RunDirectory, config: CheckpointConfig) -> list[str]:
    """Delete what nobody will resume from; returns the names of the deleted checkpoints.

    These are superfluous ones of the lineage, and whatever attempts before the newest one left outside it: parts that
    were never committed, commits that came too late, damaged ones.
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
    losses = (
        {n: loss for n in mine if (loss := _held_out_loss(run.commit(n))) is not None}
        if config.keep_best
        else {}
    )
    old += superfluous(mine, config, losses)
    for name in old:
        storage.remove(run.path("checkpoints", name, "commit.json"))  # first: no reader sees a part
        storage.remove(run.path("checkpoints", name))
        storage.remove(quarantine.uri_of(run, name))
    return old


def _held_out_loss(commit: Commit) -> float | None:
    """Of the evaluation at the checkpoint's own step, if there was one and it gave a number.

    A commit also carries points of earlier steps: those say nothing about this one's weights.
    """
    mine = [p["metrics"] for p in commit.points if p["step"] == commit.step]
    losses = [metrics["eval/loss"] for metrics in mine if "eval/loss" in metrics]
    return losses[-1] if losses and math.isfinite(losses[-1]) else None
