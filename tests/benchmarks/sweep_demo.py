"""A sweep that is killed in its middle and goes on: python tests/benchmarks/sweep_demo.py [key=value ...].

Usually started by ``make sweep-demo``. Generates motion videos, runs jobs/recipes/sweep/demo.yaml on them (twelve
trials of a tiny classifier, successive halving), kills the driver with SIGKILL after the fourth trial has ended, starts
the same command again, and checks that nothing was lost: exits 1 if anything was.
"""

import shutil
import sys
import time
from pathlib import Path

import sweeping
from clips.synthetic import MotionConfig
from jobs import ROOT
from motion import motion_manifest

FOLDER = ROOT / "build" / "sweep_demo"
NAME, TRIALS, KILLED_AFTER = "demo", 12, 4
TRAINING, HELD_OUT = 640, 128
MOTION = MotionConfig(size=24, frames=8, fps=8, gop=8, wave=(12.0, 24.0), speed=(2.0, 3.0))


def main(overrides: list[str]) -> int:
    """Run it all; returns the exit code."""
    videos, storage = FOLDER / "videos", FOLDER / "runs"
    shutil.rmtree(storage, ignore_errors=True)
    if not videos.with_suffix(".parquet").exists():
        motion_manifest(videos, training=TRAINING, held_out=HELD_OUT, config=MOTION)
    arguments = [
        "jobs/recipes/sweep/demo.yaml",
        f"set.data.manifest={videos}.parquet",
        f"run.storage={storage}",
        *overrides,
    ]
    storage.mkdir(parents=True)
    log = FOLDER / "sweep.log"
    log.unlink(missing_ok=True)
    began = time.monotonic()
    driver = sweeping.start(arguments, log)
    sweeping.kill_after(driver, storage, NAME, ended=KILLED_AFTER)
    before, killed = sweeping.look(storage, NAME), time.monotonic()
    print(f"killed after {killed - began:.0f} s with {len(before.ended)} trials ended; rungs:")
    for epochs, held in before.rungs.items():
        print(f"  epoch {epochs}: {held}")
    code = sweeping.finish(sweeping.start(arguments, log))
    ended = time.monotonic()
    print(log.read_text())
    after = sweeping.look(storage, NAME)
    checks = {
        f"exit code 0 (is {code})": code == 0,
        f"{TRIALS} trials ended (are {len(after.ended)})": len(after.ended) == TRIALS,
        "trials that had ended are as they were": all(
            after.ended.get(number) == trial for number, trial in before.ended.items()
        ),
        "and so are their MLflow runs": all(
            after.mlflow[number] == before.mlflow[number] for number in before.ended
        ),
        f"each rung holds what it held ({sum(map(len, before.rungs.values()))} values)": all(
            after.rungs[epochs].items() >= held.items() for epochs, held in before.rungs.items()
        ),
        f"MLflow has one parent with {TRIALS} children": (
            len(sweeping.children(storage, NAME)) == len(after.mlflow) == TRIALS
        ),
        "and none of them is still running": not [
            run for run in sweeping.children(storage, NAME) if run.info.status == "RUNNING"
        ],
        f"at most 15 minutes (are {(ended - began) / 60:.1f})": ended - began < 900,
    }
    for what, holds in checks.items():
        print(f"  {'ok' if holds else 'NO'}  {what}")
    print(f"  {Path(storage, NAME, 'results', 'results.html')}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
