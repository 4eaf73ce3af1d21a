"""Connecting to Ray: room for decoding beside training, and the environment of every process."""

import json
import subprocess
import sys

import pytest

from jobs import environment
from tubelet.cluster import Cluster, check_room, room_for
from tubelet.config import UserError


def cluster(cpus: float) -> Cluster:
    return Cluster(cpus=cpus, gpus=0.0, local=True)


@pytest.mark.parametrize(
    ("cpus", "min_workers", "cpus_per_worker", "decode_cpus", "message"),
    [
        (2, 2, 0.5, 1.0, None),
        (2, 2, 0.5, 0.5, None),
        (2, 1, 1.0, 1.0, None),
        (
            1,
            2,
            0.5,
            1.0,
            r"elastic\.min_workers \(2\) x elastic\.cpus_per_worker \(0\.5\) leaves 0 ",
        ),
        (2, 3, 0.5, 0.5, None),
        (2, 4, 0.5, 0.5, r"leaves 0 for decoding, which needs 0\.5; lower one of the two"),
        (4, 2, 1.0, 3.0, r"the cluster has 4 CPUs: .* leaves 2 for decoding, which needs 3"),
        (1, 4, 1.0, 1.0, r"leaves 0 for decoding"),
    ],
)
def test_a_group_that_leaves_no_cpu_for_decoding_is_refused(
    cpus: float, min_workers: int, cpus_per_worker: float, decode_cpus: float, message: str | None
) -> None:
    sizes = {"cpus_per_worker": cpus_per_worker, "decode_cpus": decode_cpus}
    if message is None:
        check_room(cluster(cpus), min_workers=min_workers, **sizes)
        return
    with pytest.raises(UserError, match=message):
        check_room(cluster(cpus), min_workers=min_workers, **sizes)


@pytest.mark.parametrize(
    ("cpus", "max_workers", "cpus_per_worker", "most"),
    [
        (2, 2, 0.5, 2),
        (2, 8, 0.5, 2),
        (4, 8, 0.1, 8),
        (4, 8, 0.3, 8),
        (4, 16, 0.3, 10),
        (1, 4, 1, 1),
    ],
)
def test_the_largest_group_leaves_a_cpu_for_decoding(
    cpus: float, max_workers: int, cpus_per_worker: float, most: int
) -> None:
    sizes = {"cpus_per_worker": cpus_per_worker, "decode_cpus": 1.0}
    assert room_for(cluster(cpus), max_workers=max_workers, **sizes) == most


def drive(program: str, **variables: str) -> None:
    """Run a driver in a process of its own, as Ray's job manager starts one."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr


_JOB = """
import os, ray
from tubelet import cluster
names = ("OMP_NUM_THREADS", "MLFLOW_DISABLE_TELEMETRY", "OTHER")
found = cluster.connect(trainer_cpus=0)
assert found.local and found.cpus >= 1, found
seen = ray.get(ray.remote(lambda: [os.environ.get(name) for name in names]).remote())
assert seen == ["3", "true", "mine"], seen
"""


@pytest.mark.cluster
def test_a_submitted_job_may_set_variables_that_we_set_too() -> None:
    variables = {"OMP_NUM_THREADS": "3", "OTHER": "mine"}
    submitted = {"runtime_env": {"env_vars": variables}, "metadata": {}}
    drive(_JOB, RAY_JOB_CONFIG_JSON_ENV_VAR=json.dumps(submitted), **variables)


_LEAVING = """
import subprocess, psutil, ray
from tubelet import cluster

@ray.remote
def leave_one() -> int:
    return subprocess.Popen(["sleep", "300"], start_new_session=True).pid  # Ray ends its own groups alone

cluster.connect(trainer_cpus=0)
left = psutil.Process(ray.get(leave_one.remote()))
cluster.disconnect()
gone, _ = psutil.wait_procs([left], timeout=5)
assert gone or left.status() == psutil.STATUS_ZOMBIE, left
"""


@pytest.mark.cluster
def test_no_process_of_an_own_cluster_stays() -> None:
    drive(_LEAVING)
