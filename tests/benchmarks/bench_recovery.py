"""How long a run stands still when a worker or a node dies, when a node joins, and where those seconds go.

    make bench-recovery [KILLS=10] [NODES=5]

A tiny model with its real feed, on a Ray cluster of several raylets on this machine. Two workers lose one of them ten
times, in phases and ranks that take turns. Then nodes die, each time with another one that has room; then all but one
are gone, and one joins. A recovery is from the fault to the first step that the run had not made before, in parts.
Writes ``build/bench/recovery.json``; exit 0 when the medians are within the bars and the join repeated no step.
"""

import json
import shutil
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

import recovery
from chaos_world import World, world
from tubelet import config, terminal

WORKER_BAR_S, NODE_BAR_S = 20.0, 35.0
PHASES = ("data", "forward", "reduce", "update")
GAP = 13
"""Steps between a recovery and the next fault: checkpoints come every ten, so faults strike at all distances."""
ENDLESS = 3000
PATIENCE_S = 240.0


@dataclass(frozen=True)
class Bench:
    """Arguments of the benchmark."""

    kills: Annotated[int, Ge(1)] = 10
    """Of a worker."""
    nodes: Annotated[int, Ge(1)] = 5
    """That die."""
    folder: str = "build/bench"


def main(arguments: list[str]) -> int:
    """Measure, print, write the report."""
    bench = config.from_command_line(Bench, arguments, needs_recipe=False)
    folder = Path(bench.folder).absolute()
    scratch = folder / "recovery"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    report: dict[str, Any] = {"faults": []}
    with world(scratch, epochs=ENDLESS, servers=False) as there:
        there.begin("workers", workers=2)
        for number in range(bench.kills):
            report["faults"].append(_strike(there, "worker_sigkill", number))
        there.stop()
        there.cluster.add()  # three nodes: a group of two, and room for the one whose node dies
        there.begin("nodes")
        for number in range(bench.nodes):
            while len(there.cluster.raylets()) < 3:
                there.cluster.add()
            report["faults"].append(_strike(there, "node_kill", number))
        there.prepare("node_join")
        report["faults"].append(_strike(there, "node_join", 0))
        there.stop()
    report |= _summary(report["faults"])
    (folder / "recovery.json").write_text(json.dumps(report, indent=1) + "\n")
    _tell(report)
    terminal.say(f"report     {folder / 'recovery.json'}")
    return config.DONE if report["within_bars"] else config.STOPPED


def _strike(there: World, kind: str, number: int) -> dict[str, Any]:
    phase = PHASES[number % len(PHASES)]
    fired = there.strike(
        f"{kind}-{number}", kind, phase, earliest=there.step() + GAP, patience_s=PATIENCE_S
    )
    at, attempts = fired["unix_s"], len(there.run.attempts())
    there.outside(kind, fired)
    found = there.wait_for_recovery(since=at, attempts=attempts, patience_s=PATIENCE_S)
    new = there.run.attempts()[attempts:]
    split = recovery.parts(new, there.run.events(), there.starts(), fault_s=at, found=found)
    measured = {key: round(value, 2) for key, value in asdict(found).items()}
    terminal.say(
        f"{kind:15} {phase:8} step {fired['step']:5}  {found.seconds:5.1f} s, {found.repeated} steps again"
    )
    return {
        "kind": kind,
        "phase": phase,
        "step": fired["step"],
        "workers": new[-1].world_size,
        **measured,
        "parts": split,
    }


def _summary(faults: list[dict[str, Any]]) -> dict[str, Any]:
    by_kind = {
        kind: [f for f in faults if f["kind"] == kind] for kind in {f["kind"] for f in faults}
    }
    medians = {
        kind: {
            "seconds": statistics.median(f["seconds"] for f in some),
            "parts": {
                part: round(statistics.median(values), 2)
                for part in recovery.PARTS
                if (values := [f["parts"][part] for f in some if part in f["parts"]])
            },
        }
        for kind, some in by_kind.items()
    }
    joins = by_kind["node_join"]
    return {
        "medians": medians,
        "bars": {"worker_sigkill": WORKER_BAR_S, "node_kill": NODE_BAR_S},
        "within_bars": medians["worker_sigkill"]["seconds"] <= WORKER_BAR_S
        and medians["node_kill"]["seconds"] <= NODE_BAR_S
        and not any(f["repeated"] for f in joins),
    }


def _tell(report: dict[str, Any]) -> None:
    terminal.table(
        ("fault", "phase", "step", "seconds", "again", *recovery.PARTS),
        [
            (
                f["kind"],
                f["phase"],
                str(f["step"]),
                f"{f['seconds']:.1f}",
                str(f["repeated"]),
                *(f"{f['parts'][p]:.1f}" if p in f["parts"] else "" for p in recovery.PARTS),
            )
            for f in report["faults"]
        ],
    )
    for kind, bar in report["bars"].items():
        terminal.say(
            f"{kind:15} median {report['medians'][kind]['seconds']:.1f} s, bar {bar:.0f} s"
        )
    for fault in report["faults"]:
        if fault["kind"] == "node_join":
            terminal.say(
                f"node_join       stood still for {fault['pause_s']:.1f} s, {fault['repeated']} steps again"
            )


if __name__ == "__main__":
    config.run_main(main)
