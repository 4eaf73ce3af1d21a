"""A manifest of very many rows: what it takes to make, read and share it, and how fast a position becomes a record.

    make bench-manifest [ROWS=10000000]        (default: a million)

Every stage runs in a process of its own, whose peak of resident memory is what the kernel has noted: ``make`` sorts,
checks and writes synthetic rows; ``driver`` reads them, holds out a share, makes the node's copy and the plan that
travels with every task, and looks up random positions of 800 epochs, one at a time; ``node`` receives the plan where
there is no copy yet and looks up the same. Writes manifest.json into build/bench.
"""

import json
import multiprocessing
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from annotated_types import Ge

from clips import ClipConfig, DecodeConfig, Manifest, read_manifest, write_manifest
from tubelet import config, rows, terminal
from tubelet.items import DataConfig, DataPlan, training_source
from tubelet.ledger import Ledger
from tubelet.selection import compact
from tubelet.timetable import Timetable

pc: Any = pyarrow.compute


@dataclass(frozen=True)
class Bench:
    """Arguments of the benchmark."""

    rows: Annotated[int, Ge(1)] = 1_000_000
    lookups: Annotated[int, Ge(1)] = 10_000
    """Random positions."""
    folder: str = "build/bench"


@dataclass
class Times:
    """What a stage took, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Note how long the block takes."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def main(arguments: list[str]) -> int:
    """Run the stages, print the tables, write the report."""
    bench = config.from_command_line(Bench, arguments, needs_recipe=False)
    folder = Path(bench.folder)
    work = folder / "manifest"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    stages: dict[str, dict[str, Any]] = {}
    with terminal.progress("bench-manifest", len(STAGES), unit="stages") as bar:
        for number, (name, stage) in enumerate(STAGES.items(), start=1):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                stages[name] = pool.apply(_measured, (stage, bench, work))
            bar.update(number, name)
    shutil.rmtree(work)
    report = {"rows": bench.rows, "lookups": bench.lookups, "stages": stages}
    (folder / "manifest.json").write_text(json.dumps(report, indent=1) + "\n")
    _tell(report)
    terminal.say(f"report     {folder / 'manifest.json'}")
    return config.DONE


def _measured(stage: Callable[..., dict[str, Any]], bench: Bench, work: Path) -> dict[str, Any]:
    times = Times()
    found = stage(bench, work, times)
    return {"seconds": times.seconds, "peak_bytes": _peak_bytes(), **found}


def _peak_bytes() -> int:
    """Most resident memory that this process has had, mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


# --- stages ------------------------------------------------------------------------------------------


def make(bench: Bench, work: Path, times: Times) -> dict[str, Any]:
    """Rows in an order that is not the manifest's, sorted, checked, hashed and written."""
    table = _synthetic(bench.rows)
    with times.of("build"):
        manifest = Manifest.build(table, root="s3://bucket/videos")
    with times.of("write"):
        write_manifest(manifest, str(work / "m.parquet"))
    return {"file_bytes": (work / "m.parquet").stat().st_size}


def driver(bench: Bench, work: Path, times: Times) -> dict[str, Any]:
    """What a training job does before its first step."""
    with times.of("read"):
        manifest = read_manifest(str(work / "m.parquet"))
    with times.of("hold out"):
        training, held_out = rows.split_rows(manifest, DataConfig())
    with times.of("node's copy"):
        table = manifest.local_table(str(work / "cache"))
    ledger = Ledger(rows=len(training), epochs=800, batch=1024, micro_batch=1, seed=0)
    plan = DataPlan(
        ledger=ledger,
        timetable=Timetable(ledger.steps, ledger.units_per_step, 0, 1),
        table=table,
        rows=(compact(training, total=len(manifest)),),
        held_out_rows=rows.evaluation_rows(held_out, clips=256, seed=0),
        copies=1,
        clip=ClipConfig(),
        decode=DecodeConfig(),
        frames=16,
        size=224,
    )
    with times.of("plan pickled"):
        travelling = pickle.dumps(plan)
    (work / "plan.pickle").write_bytes(travelling)
    return {"plan_bytes": len(travelling), **_look_up(plan, bench.lookups)}


def node(bench: Bench, work: Path, times: Times) -> dict[str, Any]:
    """What a process on another node does before and at its first tasks."""
    shutil.rmtree(work / "cache")
    received = (work / "plan.pickle").read_bytes()
    with times.of("node's copy"):
        pickle.loads(received)
    with times.of("plan again"):
        plan = pickle.loads(received)
    (copy,) = (work / "cache").iterdir()
    return {"copy_bytes": copy.stat().st_size, **_look_up(plan, bench.lookups)}


STAGES = {"make": make, "driver": driver, "node": node}


def _look_up(plan: DataPlan, count: int) -> dict[str, Any]:
    """Milliseconds from a position to its row, and from the row to its record, at random positions.

    ``cpu`` leaves out the time in which other programs had the processor.
    """
    positions = np.random.default_rng(0).integers(0, plan.ledger.visits, count)
    clocks = {"wall": time.perf_counter, "cpu": time.thread_time}
    found: dict[str, Any] = {
        "peak_before_bytes": _peak_bytes()
    }  # afterwards it has the mapped pages too
    for name, clock in clocks.items():
        taken = np.empty((3, count))
        for n, position in enumerate(positions.tolist()):
            started = clock()
            source = training_source(plan, plan.timetable.item(position))  # units of one visit
            between = clock()
            plan.table.video(int(source["row"][0]))
            ended = clock()
            taken[:, n] = between - started, ended - between, ended - started
        for what, values in zip(("position_to_row", "row_to_record", "both"), taken, strict=True):
            found[f"{what}_{name}_ms"] = {
                f"p{q}": float(np.percentile(values, q)) * 1e3 for q in (50, 99)
            }
    return found


def _synthetic(count: int) -> pa.Table:
    """Videos of 700 classes as a probe describes them."""
    rng = np.random.default_rng(0)
    number = rng.permutation(count)
    digits = pc.utf8_lpad(pa.array(number).cast(pa.string()), 9, "0")
    label = pc.binary_join_element_wise(
        "class", pc.utf8_lpad(pa.array(number % 700).cast(pa.string()), 3, "0"), "_"
    )
    name = pc.binary_join_element_wise("video", digits, "_")
    frames = rng.integers(150, 301, count)
    constant = {"container": "mp4", "codec": "h264", "pixel_format": "yuv420p"}
    return pa.table(
        {
            "video_id": pc.binary_join_element_wise(
                label, pc.binary_join_element_wise(name, "mp4", "."), "/"
            ),
            "size": rng.integers(10**5, 10**7, count),
            "etag": pc.binary_join_element_wise("0123456789abcdef01234567", digits, ""),
            "label": label,
            **{key: pa.repeat(value, count) for key, value in constant.items()},
            "width": pa.repeat(pa.scalar(340, pa.int32()), count),
            "height": pa.repeat(pa.scalar(256, pa.int32()), count),
            "rotation": pa.repeat(pa.scalar(0, pa.int32()), count),
            "fps": pa.repeat(30.0, count),
            "frames": frames,
            "duration_s": frames / 30.0,
            "keyframe_spacing": pa.repeat(pa.scalar(250, pa.int32()), count),
        }
    )


# --- telling -----------------------------------------------------------------------------------------


def _tell(report: dict[str, Any]) -> None:
    terminal.say(f"{report['rows']:,} rows, {report['lookups']:,} random positions")
    terminal.say(
        "stage    seconds                                               peak, MiB (before look-ups)"
    )
    for name, stage in report["stages"].items():
        taken = ", ".join(f"{key} {seconds:.2f}" for key, seconds in stage["seconds"].items())
        peaks = [stage["peak_bytes"], *filter(None, [stage.get("peak_before_bytes")])]
        mib = " ".join(f"{peak / 2**20:.0f}" for peak in peaks)
        terminal.say(f"{name:<8} {taken:<52} {mib:>10}")
    for name in ("driver", "node"):
        for what in ("position_to_row", "row_to_record", "both"):
            wall, cpu = (report["stages"][name][f"{what}_{clock}_ms"] for clock in ("wall", "cpu"))
            terminal.say(
                f"{name:<8} {what.replace('_', ' '):<16} median {wall['p50']:.3f} ms, "
                f"99th percentile {wall['p99']:.3f} ms ({cpu['p50']:.3f} and {cpu['p99']:.3f} of CPU)"
            )
    terminal.say(f"plan     {report['stages']['driver']['plan_bytes']:,} bytes with every task")


if __name__ == "__main__":
    config.run_main(main)
