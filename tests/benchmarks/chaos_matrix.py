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
    cells: list[dict[str, Any]] = []
    with world(folder, epochs=EPOCHS) as there:
        there.train("calm", workers=2)
        for kind in asked.kinds:
            if kind in there.missing:
                cells += [
                    _cell(kind, place, f"left out: {there.missing[kind]}") for place in PLACES
                ]
            else:
                cells += strike_everywhere(there, kind)
            (folder.parent / "matrix.json").write_text(json.dumps(cells, indent=1) + "\n")
    terminal.table(
        ("fault", "place", "result"), [(c["kind"], c["place"], c["result"]) for c in cells]
    )
    terminal.say(f"report     {folder.parent / 'matrix.json'}")
    failed = [c for c in cells if not c["passed"] and (c["kind"], c["place"]) not in IMPOSSIBLE]
    return config.STOPPED if failed else config.DONE


def strike_everywhere(there: World, kind: str) -> list[dict[str, Any]]:
    """A run that meets one kind of fault at every place."""
    there.begin(kind)
    cells: list[dict[str, Any]] = []
    report = chaos.Report(0)
    trouble = ""
    for number, (place, (phase, step)) in enumerate(PLACES.items()):
        if trouble or (kind, place) in IMPOSSIBLE:
            cells.append(_cell(kind, place, trouble or f"left out: {IMPOSSIBLE[kind, place]}"))
            continue
        fault = chaos.Fault(kind, phase)
        try:
            there.prepare(kind)
            earliest = step if step is not None else there.step() + GAP
            chaos.happen(
                there, fault, f"{kind}-{number}", earliest=earliest, last=place == "last step"
            )
            cells.append(_cell(kind, place, "passed", step=fault.step, recovery_s=fault.recovery_s))
        except AssertionError as error:
            trouble = str(error).splitlines()[0]
            cells.append(_cell(kind, place, trouble))
        terminal.say(f"{kind:16} {place:15} {cells[-1]['result']}")
    if not trouble:
        there.finish()
        chaos.compare(there, report, kind)
        same = report.weights_distance == report.loss_distance == 0.0
        if not same or report.lost or report.repeated:
            said = f"the run in the end: {report}"
            cells = [{**cell, "passed": False, "result": said} for cell in cells]
    there.stop()
    return cells


def _cell(kind: str, place: str, result: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "place": place, "passed": result == "passed", "result": result, **more}


if __name__ == "__main__":
    config.run_main(main)
