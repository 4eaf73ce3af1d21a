"""``ray job submit`` from a clean copy of the repository to a cluster that has our dependencies and not this code."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import faults
from clips import synthetic
from motion import motion_manifest

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.e2e,
    pytest.mark.slow,  # 2 minutes: a head, and a job that packs and unpacks the repository
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

STEPS = 5
RAY = Path(sys.executable).parent / "ray"
MARK = "million parameters, by the uploaded code"


@dataclass(frozen=True)
class Submitted:
    code: int
    output: str
    """What the person who submitted saw."""
    log: str
    """The job's own log."""
    storage: Path


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


def clean_copy(folder: Path) -> Path:
    """The files that a clone would have, as they are now, with one change to recognise them by."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=faults.ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in listed.stdout.split("\0"):
        if name and (faults.ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(faults.ROOT / name, folder / name)
    marked = folder / "platform" / "tubelet" / "loops" / "pretrain.py"
    text = marked.read_text()
    assert text.count("million parameters") == 1
    marked.write_text(text.replace("million parameters", MARK))
    return folder


@pytest.fixture(scope="module")
def submitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitted]:
    folder = tmp_path_factory.mktemp("submit")
    manifest = motion_manifest(
        folder / "videos",
        training=8 * STEPS,
        held_out=4,
        config=synthetic.MotionConfig(size=32, frames=16),
    )
    copy = clean_copy(folder / "copy")
    with faults.machine(copy) as machine:
        gcs, dashboard, client, agent = free_ports(4)
        surroundings = {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",  # the job's `python`
        }
        head = faults.Driver(
            machine,
            [
                *(str(RAY), "start", "--head", "--num-cpus=3", f"--port={gcs}"),
                *("--include-dashboard=true", "--dashboard-host=127.0.0.1"),
                *(f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
                *(f"--dashboard-agent-listen-port={agent}", f"--temp-dir={machine.ray_folder}"),
                *("--object-store-memory=300000000", "--min-worker-port=0", "--max-worker-port=0"),
            ],
            more=surroundings,
        )
        assert head.end() == 0, head.output
        job = faults.Driver(
            machine,
            [
                *(str(RAY), "job", "submit", "--address", f"http://127.0.0.1:{dashboard}"),
                *("--working-dir", ".", "--runtime-env", "infra/runtime_env.yaml"),
                *("--submission-id", "one", "--"),
                *("python", "jobs/pretrain.py", "jobs/recipes/demo/pretrain.yaml"),
                *(f"data.manifest={manifest.uri}", f"run.storage={folder / 'runs'}"),
                *("schedule.epochs=1", "run.name=submitted"),
            ],
            more=surroundings,
        )
        code = job.end(timeout_s=600)
        log = machine.ray_folder / "session_latest" / "logs" / "job-driver-one.log"
        yield Submitted(
            code,
            job.output,
            log.read_text() if log.exists() else "",
            folder / "runs",
        )


def test_the_job_succeeds_with_the_uploaded_code(submitted: Submitted) -> None:
    assert submitted.code == 0, submitted.output
    assert "Job 'one' succeeded" in submitted.output
    assert MARK in submitted.log, "it ran what the cluster had installed"


def test_the_jobs_log_is_our_words_alone(submitted: Submitted) -> None:
    """But for the two lines in which Ray says that it starts the job."""
    _, entrypoint, said = submitted.log.split("\n", 2)
    assert entrypoint.startswith("Running entrypoint for job one: ")
    lines = said.splitlines()
    assert any(re.match(rf"pretrain +\d+/{STEPS} steps ", line) for line in lines), submitted.log
    assert lines[-1].startswith(f"finished after {STEPS} steps; results in ")
    for noise in ("pid=", "WARNING", "INFO", "raylet", "TrainController", "mlflow"):
        assert noise not in said, said


def test_its_run_is_in_mlflow_with_its_whole_curve(submitted: Submitted) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{submitted.storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tubelet/pretrain")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "submitted")
    steps = [p.step for p in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(steps) == list(range(1, STEPS + 1))
    assert [p.step for p in client.get_metric_history(run.info.run_id, "eval/loss")] == [STEPS]
    pictures = {f.path for f in client.list_artifacts(run.info.run_id, "pictures")}
    assert "pictures/reconstructions.png" in pictures
