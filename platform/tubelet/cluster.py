"""Connect to Ray: the cluster that the environment names, else one of our own on this machine.

Ray reads much of its configuration from the environment when it is first imported, and hands the driver's environment
to nobody. So everything is set here, before the import, and the same variables go to every worker by the runtime
environment. Set values are never overridden.
"""

import contextlib
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tubelet import terminal
from tubelet.config import UserError

_log = logging.getLogger(__name__)

_EVERYWHERE = {
    "OMP_NUM_THREADS": "1",  # two OpenMP threads under load spin: 1.2-2.4 s a step against 0.06-0.44 (measured)
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how fast a dead worker is seen and a report is read
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # of a group whose peer has died
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # keeps a healthy group from leaving a draining node
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # servers other than Amazon's reject the new trailers
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MALLOC_ARENA_MAX": "2",  # Ray's processes have 30 threads each; glibc would keep an arena for each
    "MALLOC_MMAP_THRESHOLD_": "33554432",  # keep the pages of tensors for the next step: a tenth of a small CPU step
    "MALLOC_TRIM_THRESHOLD_": "134217728",  # is page faults otherwise (measured); see worker.py for giving them back
    "PYTHONWARNINGS": "ignore",  # of libraries, in processes whose output only goes to a log
}
_DRIVER_ONLY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",  # a submitted job may set one of ours: the same value, not a conflict
}
_OWN_CLUSTER = {
    "RAY_AUTH_MODE": "disabled",  # unset means another thing in every entry point
    # Nobody reads a short-lived cluster's metrics and task events; making them is 2 % of two cores (make bench-feed).
    "RAY_enable_metrics_collection": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_task_events_report_interval_ms": "0",
}
DATA_NODES = ("ray-subcluster", "data")
"""Label of nodes that only decode. Ray Train counts the others by this very key: with another it waits for ever."""
_LEAVING_S = 10.0
"""How long Ray's processes may take to end after their cluster."""
_SMALLEST_STORE, _LARGEST_STORE = 256 << 20, 4 << 30


@dataclass(frozen=True)
class Cluster:
    """What a connected cluster offers to one run."""

    cpus: float
    gpus: float
    local: bool
    """Of this process alone, and ended with it: nobody adds nodes."""
    data_cpus: float = 0.0
    """Those of nodes labelled for decoding."""

    def holders(self) -> dict[str, Any]:
        """Ray Data's arguments for actors that hold a model, behind tasks that decode.

        As many as there are GPUs; on CPUs they share half of them, since decoding must have the rest. Half a CPU each
        also keeps Ray Data from fusing the two steps: it would decode in the actors, on one core of two (seen).
        """
        gpus = int(self.gpus)
        return {
            "concurrency": gpus or (1, max(1, int(self.cpus))),
            "num_cpus": 0 if gpus else 0.5,
            "num_gpus": 1 if gpus else 0,
        }


def connect(*, trainer_cpus: float, store_bytes: int = _SMALLEST_STORE) -> Cluster:
    """Connect this process to Ray, once; later calls only look.

    Args:
        trainer_cpus: what the largest worker group will hold. A cluster of our own gets at least one logical CPU more,
            which decodes.
        store_bytes: object store wanted of a cluster of our own.
    """
    remote = bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))
    for name, value in {**_EVERYWHERE, **_DRIVER_ONLY}.items():
        os.environ.setdefault(name, value)
    if not remote:
        for name, value in _OWN_CLUSTER.items():
            os.environ.setdefault(name, value)
    import ray

    if not ray.is_initialized():
        environment = {"env_vars": {name: os.environ[name] for name in _EVERYWHERE}}
        if remote:
            ray.init(address="auto", runtime_env=environment, logging_level=logging.WARNING)
        else:
            cpus = max(os.cpu_count() or 1, math.ceil(trainer_cpus) + 1)
            ray.init(
                num_cpus=cpus,
                include_dashboard=True,  # without it a killed controller leaks its placement group (measured)
                object_store_memory=store_bytes,
                runtime_env=environment,
                logging_level=logging.WARNING,
            )
        terminal.when_closing(disconnect)
        _log.info(
            "connected to Ray %s; code from %s; revision %s",
            ray.__version__,
            sys.path[:1],
            revision(),
        )
    resources = ray.cluster_resources()
    return Cluster(
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        local=not remote,
        data_cpus=total("CPU", nodes(labelled=True)),
    )


def disconnect() -> None:
    """Leave Ray; a cluster of our own ends, and no process of it stays.

    Ray has left a run's controller behind, for two minutes and more (seen once; why is not known).
    """
    import ray

    theirs: list[psutil.Process] = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "raylet":  # all other nodes' raylets are not our children
                theirs += child.children(recursive=True)
    ray.shutdown()
    for left in psutil.wait_procs(theirs, timeout=_LEAVING_S)[1]:
        _log.warning("process %d of Ray stayed behind and is killed", left.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()


def nodes(*, labelled: bool = False) -> list[dict[str, Any]]:
    """Ray's records of the nodes that are alive: all, or those labelled for decoding."""
    import ray

    label, value = DATA_NODES
    return [
        node
        for node in ray.nodes()
        if node["Alive"] and (not labelled or node["Labels"].get(label) == value)
    ]


def total(resource: str, nodes: Iterable[Mapping[str, Any]]) -> float:
    """How much of a resource these nodes have."""
    return sum(node["Resources"].get(resource, 0.0) for node in nodes)


def store_bytes(unit_bytes: int, *, workers: int, prefetch: int) -> int:
    """Object store for a run on a cluster of its own: units with the workers, on their way, and being made.

    Decoding uses half of it at most (``stream.window_of``).
    """
    waiting = workers * (prefetch + 2) + 8
    return max(_SMALLEST_STORE, min(_LARGEST_STORE, 3 * unit_bytes * waiting))


def check_room(
    cluster: Cluster, *, min_workers: int, cpus_per_worker: float, decode_cpus: float
) -> None:
    """Refuse a worker group that would leave no CPU for decoding: such a run waits for ever without a word.

    Raises:
        UserError: naming the recipe keys that decide it.
    """
    trainers = min_workers * cpus_per_worker
    if trainers + decode_cpus > cluster.cpus:
        raise UserError(
            f"the cluster has {cluster.cpus:g} CPUs: elastic.min_workers ({min_workers}) x "
            f"elastic.cpus_per_worker ({cpus_per_worker:g}) leaves {max(0.0, cluster.cpus - trainers):g} for decoding, "
            f"which needs {decode_cpus:g}; lower one of the two, or add CPUs"
        )


def room_for(
    cluster: Cluster, *, max_workers: int, cpus_per_worker: float, decode_cpus: float
) -> int:
    """How many workers fit beside one decoding task; ``max_workers`` at most."""
    spare = cluster.cpus - decode_cpus
    return max(1, min(max_workers, int(spare / cpus_per_worker + 1e-9)))


def revision() -> str:
    """Git revision of the code that runs, with ``-dirty`` when it differs; ``unknown`` outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        out = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return out.stdout.strip() or "unknown"
