"""What exactness and safety cost a run in which nothing happens: exact mode, background saves, accounting.

    make bench-step [ROUNDS=3]

The real pretraining loop on two workers, fed from memory, so that nothing but the step is measured: the demo's tiny
model, and ViT-S on 16 frames of 224 pixels. Exact and normal mode take turns. With a save every 20 steps, as asked:

    ratio        step time, exact / normal, median of the rounds' medians
    blocked      share of the time that training waited for saves, of the round with most
    accounting   milliseconds a step for the ledger's seeds, the fence's checks and the audit trail

Writes ``build/bench/step.json``; exit 0 when less than 5 % of the time is blocked, and accounting takes less than
0.5 % of a ViT-S step or 1 ms, whichever is larger.
"""

import json
import shutil
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from motion import motion_manifest
from parity import decode_stream
from step_costs import measured_rank
from tubelet import config, terminal
from tubelet.recipes import Pretrain
from tubelet.run_directory import RunDirectory
from workers import run_group

WORKERS, SAVE_EVERY = 2, 20
BLOCKED_BAR, ACCOUNTING_BAR, ACCOUNTING_FLOOR_MS = 0.05, 0.005, 1.0
DEMO = Path(__file__).resolve().parents[2] / "jobs" / "recipes" / "demo" / "pretrain.yaml"
CASES = {  # what the recipe says besides, the training videos, and steps before the clock starts
    "demo": (["schedule.epochs=30", "data.copies=1", "batch.size=8", "batch.micro=4"], 64, 40),
    "vit_s": (
        [
            *("model.preset=vit_s", "model.frames=16", "model.image_size=224"),
            *(f"model.{name}=null" for name in ("patch_size", "width", "depth", "heads")),
            *(f"model.decoder_{name}=null" for name in ("width", "depth", "heads")),
            *("mask.ratio=0.9", "data.copies=1", "batch.size=2", "batch.micro=1"),
            "schedule.epochs=9",
        ],
        10,
        4,
    ),
}


@dataclass(frozen=True)
class Bench:
    """Arguments of the benchmark."""

    rounds: Annotated[int, Ge(1)] = 3
    folder: str = "build/bench"


def main(arguments: list[str]) -> int:
    """Measure, print, write the report."""
    bench = config.from_command_line(Bench, arguments, needs_recipe=False)
    folder = Path(bench.folder).absolute()
    scratch = folder / "step"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    cases = [_measure(name, scratch / name, bench.rounds) for name in CASES]
    step_ms = next(c["step_ms_normal"] for c in cases if c["case"] == "vit_s")
    bar_ms = max(ACCOUNTING_FLOOR_MS, ACCOUNTING_BAR * step_ms)
    good = all(c["blocked"] < BLOCKED_BAR and c["accounting_ms"] < bar_ms for c in cases)
    report = {"cases": cases, "accounting_bar_ms": bar_ms, "within_bars": good}
    (folder / "step.json").write_text(json.dumps(report, indent=1) + "\n")
    terminal.table(
        ("model", "step, ms", "exact, ms", "ratio", "blocked", "accounting, ms"),
        [
            (
                c["case"],
                f"{c['step_ms_normal']:.1f}",
                f"{c['step_ms_exact']:.1f}",
                f"{c['ratio']:.3f}",
                f"{c['blocked']:.2%}",
                f"{c['accounting_ms']:.3f}",
            )
            for c in cases
        ],
    )
    terminal.say(f"bars       blocked {BLOCKED_BAR:.0%}, accounting {bar_ms:.1f} ms")
    terminal.say(f"report     {folder / 'step.json'}")
    shutil.rmtree(scratch)
    return config.DONE if good else config.STOPPED


def _measure(case: str, folder: Path, rounds: int) -> dict[str, Any]:
    overrides, videos, warm_up = CASES[case]
    manifest = motion_manifest(folder / "videos", training=videos)
    recipe = config.load(
        Pretrain,
        [DEMO],
        [
            *overrides,
            f"data.manifest={manifest.uri}",
            "data.held_out_clips=0",
            f"checkpoint.every_steps={SAVE_EVERY}",
            "track.pictures=false",
        ],
    )
    items = decode_stream(recipe, folder / "items.pickle")
    steps: dict[bool, list[float]] = {False: [], True: []}
    blocked: list[float] = []
    accounting: list[float] = []
    for number in range(rounds):
        for exact in (False, True):
            run = RunDirectory(str(folder / f"run-{number}-{exact}"))
            run.begin_attempt(ray_run="none", world_size=WORKERS)
            this = replace(recipe, elastic=replace(recipe.elastic, exact=exact))
            ranks = run_group(WORKERS, measured_rank, this, run.uri, items, warm_up=warm_up)
            steps[exact].append(statistics.median(ranks[0]["steps_s"]))
            blocked += [sum(r["saves_s"]) / r["elapsed_s"] for r in ranks]
            accounting += [r["accounting_s"] / len(r["steps_s"]) for r in ranks]
            terminal.say(
                f"{case:6} round {number + 1} exact={exact}: {steps[exact][-1] * 1e3:.1f} ms a step"
            )
            shutil.rmtree(run.uri)
    ratios = [e / n for e, n in zip(steps[True], steps[False], strict=True)]
    return {
        "case": case,
        "workers": WORKERS,
        "step_ms_normal": 1e3 * statistics.median(steps[False]),
        "step_ms_exact": 1e3 * statistics.median(steps[True]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "blocked": max(blocked),
        "accounting_ms": 1e3 * max(accounting),
    }


if __name__ == "__main__":
    config.run_main(main)
