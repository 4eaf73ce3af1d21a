"""Every kind of fault at every place of a run: which cells of the matrix pass.

    make chaos-matrix [KINDS='[worker_sigkill,node_kill]']

One run a kind goes through all places one after the other, in the world of ``make chaos``; at its end it must have the
bits of a run without faults. Writes ``build/chaos/matrix.json``: for each kind and place ``passed``, or why not.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chaos
from chaos_world import TRAINING, World, world
from tubelet import config, terminal

KINDS = (
    "worker_sigkill",
    "worker_sigstop",
    "worker_sigterm",
    "node_kill",
    "head_kill",
    "store_down",
    "torn_checkpoint",
    "disk_full",
    "mlflow_down",
)
EPOCHS = 48
BATCH = 8
STEPS = EPOCHS * TRAINING // BATCH
GAP = 16
PLACES = {  # the phase in which it strikes, and the step if it is a certain one
    "first step": ("forward", 0),
    "data": ("data", None),
    "forward": ("forward", None),
    "all-reduce": ("reduce", None),
    "staging": ("stage", None),
    "commit": ("commit", None),
    "evaluation": ("evaluate", None),
    "epoch boundary": (
        "update",
        189,
    ),  # step 190 begins in epoch 36, and ends epoch 35: 42 rows, 8 a step
    "last step": ("update", STEPS - 1),
}
_RUNS_MORE = 2
"""Further runs of a kind, at the places that are left, after one that did not come to its end."""
IMPOSSIBLE = {
    ("torn_checkpoint", "first step"): "there is no checkpoint yet",
}


@dataclass(frozen=True)
class Matrix:
    """Arguments."""

    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    folder: str = "build/chaos/matrix"


def main(arguments: list[str]) -> int:
    """One run a kind; the table as it grows."""
    asked = config.from_command_line(Matrix, arguments, needs_recipe=False)
    folder = Path(asked.folder).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file = folder.parent / "matrix.json"
    known = json.loads(file.read_text()) if file.exists() else []
    cells: list[dict[str, Any]] = [c for c in known if c["kind"] not in asked.kinds]
    with world(folder, epochs=EPOCHS) as there:
        there.train("calm", workers=2)
        for kind in asked.kinds:
            if kind in there.missing:
                cells += [
                    _cell(kind, place, f"left out: {there.missing[kind]}") for place in PLACES
                ]
            else:
                cells += strike_everywhere(there, kind)
            file.write_text(json.dumps(cells, indent=1) + "\n")
    terminal.table(
        ("fault", "place", "result"), [(c["kind"], c["place"], c["result"]) for c in cells]
    )
    terminal.say(f"report     {file}")
    failed = [c for c in cells if not c["passed"] and (c["kind"], c["place"]) not in IMPOSSIBLE]
    return config.STOPPED if failed else config.DONE


def strike_everywhere(there: World, kind: str) -> list[dict[str, Any]]:
    """A run that meets one kind of fault at every place; if it does not get over one, another for the others."""
    cells = {
        place: _cell(kind, place, f"left out: {why}")
        for (of, place), why in IMPOSSIBLE.items()
        if of == kind
    }
    troubles, number = 0, 0
    while len(cells) < len(PLACES) and troubles <= _RUNS_MORE:
        name = kind if not number else f"{kind}-again-{number}"
        met, whole = _run_through(there, kind, name, [p for p in PLACES if p not in cells])
        cells |= {p: c for p, c in met.items() if whole or not c["passed"]}
        troubles, number = troubles + (not whole), number + 1
    missing = {p: _cell(kind, p, "the run did not come to its end") for p in PLACES}
    return list((missing | cells).values())


def _run_through(
    there: World, kind: str, name: str, places: list[str]
) -> tuple[dict[str, dict[str, Any]], bool]:
    """Strike one run at these places; what came of each, and whether the run then had the bits of the calm one."""
    there.begin(name)
    cells: dict[str, dict[str, Any]] = {}
    trouble = ""
    for place in places:
        phase, step = PLACES[place]
        fault = chaos.Fault(kind, phase)
        earliest = step if step is not None else there.step() + GAP
        if cells and (earliest <= there.step() or (step is None and earliest + 2 * GAP > STEPS)):
            continue  # too late in this run: the next one comes there in time
        try:
            there.prepare(kind)
            last = place == "last step"
            chaos.happen(there, fault, f"{name}-{place}", earliest=earliest, last=last)
            cells[place] = _cell(
                kind, place, "passed", step=fault.step, recovery_s=fault.recovery_s
            )
        except AssertionError as error:
            trouble = str(error).splitlines()[0]
            cells[place] = _cell(kind, place, trouble)
        terminal.say(f"{kind:16} {place:15} {cells[place]['result']}")
        if trouble:
            break
    if not trouble:
        report = chaos.Report(0)
        there.finish()
        if "the same command sends the rest" in (there.folder / f"{name}.log").read_text():
            there.begin(name)  # it has ended before MLflow was back
            there.finish()
        chaos.compare(there, report, name)
        same = report.weights_distance == report.loss_distance == 0.0
        if not same or report.lost or report.repeated:
            trouble = f"the run in the end: {report}"
            cells = {place: _cell(kind, place, trouble) for place in cells}
    there.stop()
    shutil.rmtree(there.storage / name, ignore_errors=True)  # the small disk has room for two runs
    return cells, not trouble


def _cell(kind: str, place: str, result: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "place": place, "passed": result == "passed", "result": result, **more}


if __name__ == "__main__":
    config.run_main(main)
