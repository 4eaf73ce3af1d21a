"""A training run through twenty faults and more, against the same run without any: are all bits the same?

    make chaos [SEED=1]

Both runs train a tiny model on a Ray cluster of several raylets on this machine. The second one loses workers, nodes,
its driver, its head, its store, its disk and MLflow, at steps and phases drawn by the seed, one after the other has
been recovered from. Then its weights, every logged loss and norm, and its audit are compared. Writes
``build/chaos/report.json``; exit 0 when nothing was lost, repeated or changed, and every fault has fired.

A store that can be down needs Ceph's gateway, a disk that can be full needs root (for a tmpfs); without them these two
kinds are left out, and the report says so.
"""

import json
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from chaos_world import World, world
from tubelet import audit, config, terminal
from tubelet.loops import pretrain
from tubelet.run_directory import RunDirectory

EPOCHS = 260
"""Long enough for all faults: steps go by while nodes join and are drained."""
GAP = 20
"""Steps from one fault's recovery to the next fault."""
PATIENCE_S = 240.0
PHASES = ("data", "forward", "reduce", "update", "evaluate", "stage", "write", "commit")
ANY_PHASE = ("data", "forward", "reduce", "update")
RESTARTS = {
    "worker_sigkill",
    "worker_sigstop",
    "worker_sigterm",
    "node_kill",
    "drain",
    "head_kill",
    "driver_kill",
    "torn_checkpoint",
}
"""Kinds that end a worker group; others may let it be."""
KINDS = {  # how often, and where they may strike
    "worker_sigkill": (4, PHASES),
    "worker_sigstop": (2, ANY_PHASE),
    "worker_sigterm": (2, PHASES),
    "node_kill": (3, PHASES),
    "node_join": (3, ANY_PHASE),
    "drain": (2, ANY_PHASE),
    "head_kill": (1, ANY_PHASE),
    "driver_kill": (2, ANY_PHASE),
    "store_down": (1, ("data",)),
    "torn_checkpoint": (1, ANY_PHASE),
    "disk_full": (1, ANY_PHASE),
    "mlflow_down": (1, ANY_PHASE),
}


@dataclass(frozen=True)
class Chaos:
    """Arguments."""

    seed: int = 1
    folder: str = "build/chaos"


@dataclass
class Fault:
    """One thing that happens, and what it cost."""

    kind: str
    phase: str
    step: int = 0
    """Where it was to strike at the earliest; then where it did."""
    recovery_s: float | None = None
    """From the fault to the next step that the run had not done before; after a restart, by the new group."""
    steps_repeated: int = 0


@dataclass
class Report:
    """What is written."""

    seed: int
    expected: int = 0
    lost: int = 0
    repeated: int = 0
    weights_distance: float | None = None
    loss_distance: float | None = None
    faults: list[Fault] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Nothing lost, repeated or changed; every fault fired and was recovered from."""
        same = self.weights_distance == self.loss_distance == 0.0
        return (
            same
            and not self.lost
            and not self.repeated
            and all(f.recovery_s is not None for f in self.faults)
        )


def main(arguments: list[str]) -> int:
    """Train twice, compare, report."""
    asked = config.from_command_line(Chaos, arguments, needs_recipe=False)
    folder = Path(asked.folder).absolute()
    shutil.rmtree(folder / "world", ignore_errors=True)
    (folder / "world").mkdir(parents=True)
    with world(folder / "world", epochs=EPOCHS) as there:
        report = Report(asked.seed, left_out=there.missing)
        faults = schedule(asked.seed, without=there.missing)
        terminal.say(f"{len(faults)} faults; first the run without any")
        there.train("calm", workers=2)
        terminal.say("now with them")
        there.begin("chaos")
        for number, fault in enumerate(faults, start=1):
            there.prepare(fault.kind)
            happen(there, fault, number, earliest=there.step() + GAP)
            report.faults.append(fault)
            terminal.say(
                f"{number:3}  {fault.kind:16} {fault.phase:9} step {fault.step:5}  "
                f"back after {fault.recovery_s:6.1f} s, {fault.steps_repeated} steps again"
            )
            (folder / "report.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
        there.finish()
        compare(there, report)
    (folder / "report.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
    _tell(report)
    terminal.say(f"report     {folder / 'report.json'}")
    return config.DONE if report.good else config.STOPPED


def schedule(seed: int, *, without: Mapping[str, str] = {}) -> list[Fault]:
    """Kinds in an order of the seed, with the phase each strikes in; a node joins before one is taken."""
    draw = random.Random(seed)
    faults = [
        Fault(kind, draw.choice(phases))
        for kind, (count, phases) in KINDS.items()
        if kind not in without
        for _ in range(count)
    ]
    draw.shuffle(faults)
    return faults


def happen(
    there: World, fault: Fault, number: int | str, *, earliest: int, last: bool = False
) -> None:
    """Arm a fault, wait until it fires, do what only the outside can do, wait until the run is over it.

    Args:
        there: where the run is.
        fault: what; learns where it struck and what it cost.
        number: unlike that of all others.
        earliest: step.
        last: it strikes in the last step: over it is the run that has ended.
    """
    fired = there.strike(number, fault.kind, fault.phase, earliest=earliest, patience_s=PATIENCE_S)
    fault.step, at = fired["step"], fired["unix_s"]
    attempts = len(there.run.attempts())
    there.outside(fault.kind, fired)
    if last:
        there.finish()
        over = time.time()
        started = there.run.attempts()[attempts:]
        fault.recovery_s = round(over - at, 1)
        fault.steps_repeated = max(0, fault.step - started[0].step) if started else 0
    elif fault.kind in RESTARTS or len(there.run.attempts()) > attempts:
        found = there.wait_for_recovery(since=at, attempts=attempts, patience_s=PATIENCE_S)
        fault.recovery_s, fault.steps_repeated = round(found.seconds, 1), found.repeated
    else:
        over = there.wait_for_step(fault.step + 1, since=at, patience_s=PATIENCE_S)
        fault.recovery_s = round(over - at, 1)


def compare(there: World, report: Report, name: str = "chaos") -> None:
    """The faulted run against the calm one."""
    calm, chaos = (RunDirectory(f"{there.storage}/{n}") for n in ("calm", name))
    plan = pretrain.job(there.recipe(name)).plan
    found = audit.verify(chaos, ledger=plan.ledger, copies=plan.copies)
    report.expected, report.lost, report.repeated = (
        found.expected,
        len(found.lost),
        len(found.repeated),
    )
    if found.step != plan.ledger.steps:
        report.lost += 1
    weights = [load_file(Path(run.uri) / "export" / "model.safetensors") for run in (calm, chaos)]
    report.weights_distance = max(
        float(np.abs(weights[0][name].astype(np.float64) - weights[1][name]).max())
        for name in weights[0]
    )
    curves = [there.curves(n) for n in ("calm", name)]
    report.loss_distance = _distance(*curves)


def _distance(calm: dict[str, dict[int, float]], chaos: dict[str, dict[int, float]]) -> float:
    """The largest relative difference of any logged loss or norm; infinite where a step is missing or twice."""
    worst = 0.0
    for name, values in calm.items():
        if values.keys() != chaos[name].keys():
            return float("inf")
        worst = max(
            worst, *(abs(chaos[name][s] - v) / max(abs(v), 1e-30) for s, v in values.items())
        )
    return worst


def _tell(report: Report) -> None:
    terminal.table(
        ("fault", "phase", "step", "recovery, s", "steps again"),
        [
            (f.kind, f.phase, str(f.step), f"{f.recovery_s}", str(f.steps_repeated))
            for f in report.faults
        ],
    )
    for kind, why in report.left_out.items():
        terminal.say(f"left out   {kind}: {why}")
    terminal.say(
        f"positions  {report.expected}, lost {report.lost}, repeated {report.repeated}\n"
        f"weights    differ by {report.weights_distance}\nlosses     differ by {report.loss_distance}"
    )


if __name__ == "__main__":
    config.run_main(main)
