"""A sweep whose driver is killed in its middle and started again: what it looked like before and after."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import ROOT, environment
from tubelet import tracking
from tubelet.run_directory import RunDirectory
from tubelet.sweep.journal import Journal

_PATIENCE_S = 1500


@dataclass(frozen=True)
class Seen:
    """A sweep at one moment."""

    ended: dict[int, dict[str, Any]]
    """The journal's files of the trials that had ended."""
    rungs: dict[str, dict[str, float]]
    """As the scheduler of the running driver had them."""
    mlflow: dict[int, str]
    """Id of the MLflow run of every trial that has one."""


def look(storage: Path, name: str) -> Seen:
    """The sweep as it is."""
    directory = RunDirectory(str(storage / name))
    journal = Journal.read(directory)
    files = {n: directory.read_json("trials", f"{n:05d}.json") or {} for n in journal.trials}
    return Seen(
        ended={trial.number: files[trial.number] for trial in journal.ended},
        rungs=directory.read_json("rungs.json") or {},
        mlflow={
            int(run.data.tags["tubelet.trial"]): run.info.run_id for run in children(storage, name)
        },
    )


def children(storage: Path, name: str) -> list[Any]:
    """MLflow's runs that name the sweep's run as their parent."""
    client = tracking.connect(tracking.resolve_uri(str(storage)))
    record = RunDirectory(str(storage / name)).read_json("sweep.json") or {}
    mine = f"tags.`mlflow.parentRunId` = '{record['mlflow_run_id']}'"
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids, filter_string=mine))


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start ``jobs/sweep.py`` in a session of its own."""
    with log.open("ab") as opened:
        return subprocess.Popen(
            [sys.executable, "jobs/sweep.py", *arguments],
            cwd=ROOT,
            env=environment(),
            stdout=opened,
            stderr=opened,
            start_new_session=True,
        )


def kill_after(driver: subprocess.Popen[bytes], storage: Path, name: str, *, ended: int) -> None:
    """SIGKILL the driver once so many trials have ended."""
    deadline = time.monotonic() + _PATIENCE_S
    folder = storage / name / "trials"
    while time.monotonic() < deadline:
        assert driver.poll() is None, "the sweep ended before it could be killed"
        trials = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        if sum(trial["status"] != "running" for trial in trials) >= ended:
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            return
        time.sleep(0.05)
    raise AssertionError(f"not {ended} trials in {_PATIENCE_S} s")


def finish(driver: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a driver; its exit code."""
    return driver.wait(_PATIENCE_S)
