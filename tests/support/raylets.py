"""A Ray cluster of several nodes on this machine, each a raylet of its own: they can join, drain, and die.

``Cluster.add_node`` works in a main thread only, and a killed head takes its process along; so the cluster lives in a
process (this file as a script), which is told what to do by lines on its standard input.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

SHELVES = [str(Path(__file__).resolve().parents[2] / s) for s in ("platform", "models", "datasets")]
INJECTED = str(Path(__file__).resolve().parent / "injected")
NODE_CPUS = 2


class Raylets:
    """A head without CPUs, and nodes of two CPUs each.

    Args:
        folder: Ray's, short, since sockets lie in it.
        environment: what all its processes get, besides what a shell would have.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        kept = {
            n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "PYTHON", "PYTEST"))
        }
        path = os.pathsep.join([INJECTED, *SHELVES, str(Path(__file__).parent)])
        self.environment = {
            **kept,
            "RAY_TMPDIR": str(folder),
            "RAY_AUTH_MODE": "disabled",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": path,
            **environment,
        }
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.address = ""

    def start(self, nodes: int) -> None:
        """Start a head and so many nodes; returns when they are there."""
        with (self._folder / "raylets.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.address = self._ask("head")["address"]
        for _ in range(nodes):
            self.add()

    def add(self) -> str:
        """Let a node join; returns its id."""
        return self._ask("add")["node"]

    def drain(self, raylet: int, *, seconds: float) -> str:
        """Tell a node (by its raylet's process id) that it will be taken away; returns its id."""
        return self._ask("drain", raylet=raylet, deadline_ms=int(1000 * (time.time() + seconds)))[
            "node"
        ]

    def raylets(self) -> list[int]:
        """Process ids of the nodes' raylets that live, the head's left out."""
        return self._ask("raylets")["pids"]

    def kill_node(self, raylet: int) -> None:
        """Kill a node: its raylet and everything on it."""
        kill_tree(raylet)

    def kill(self) -> None:
        """Kill head and nodes at once, as a power cut would."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("RAY_TMPDIR") == str(self._folder):
                    process.kill()
            except psutil.Error:
                continue
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # closes the pipes too
            self._process = None

    def _ask(self, what: str, **details: Any) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what, **details}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        said = (self._folder / "raylets.log").read_text(errors="replace")
        raise AssertionError(f"the cluster's process has ended:\n{said[-3000:]}")


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all below it."""
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            process.kill()
    except psutil.NoSuchProcess:
        pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _serve() -> None:
    from ray._private.state import state as _  # noqa: F401  (the cluster's module needs it loaded)
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.cluster_utils import Cluster

    cluster: Any = None
    nodes: dict[int, Any] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any] = {}
        if asked["what"] == "head":
            head = {
                "num_cpus": 0,
                "include_dashboard": True,
                "dashboard_port": _free_port(),  # its own fails where another Ray has it
                "object_store_memory": 300 << 20,
            }
            cluster = Cluster(initialize_head=True, head_node_args=head)
            answer = {"address": cluster.address}
        elif asked["what"] == "add":
            node = cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=200 << 20)
            (raylet,) = node.all_processes["raylet"]
            nodes[raylet.process.pid] = node
            answer = {"node": node.node_id}
        elif asked["what"] == "drain":
            node = nodes[asked["raylet"]]
            client = GcsClient(address=cluster.address)
            accepted, why = client.drain_node(node.node_id, 2, "taken away", asked["deadline_ms"])
            assert accepted, why
            answer = {"node": node.node_id}
        elif asked["what"] == "raylets":
            answer = {
                "pids": [
                    p
                    for p, n in nodes.items()
                    if n.all_processes["raylet"][0].process.poll() is None
                ]
            }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
