"""The cluster's nodes as they are now, which Ray itself learns late.

Ray Train sizes a group by reservations that ignore draining nodes, count dead ones for 10 to 17 seconds, and survive
a killed driver for three minutes (measured: 60 to 180 s lost each). Here nodes are looked at directly: alive, draining,
taking connections, and what the placement groups of others hold of them.
"""

import math
import socket
from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray._private.state import state
from ray.util import placement_group_table

from tubelet import cluster
from tubelet.elasticity import Node

_CONNECT_S = 1.0
_AT_ONCE = 32
_HELD = ("CREATED", "PENDING", "PREPARED", "RESCHEDULING")


def look(*, ours: Collection[str], labelled: bool, ask: bool) -> list[Node]:
    """The nodes that workers may be on.

    Args:
        ours: ids of placement groups of this run, which do not count as taken.
        labelled: leave out nodes that are labelled for decoding.
        ask: connect to each node, to see which have died unnoticed.
    """
    alive = cluster.nodes()
    if labelled:
        decoding = {node["NodeID"] for node in cluster.nodes(labelled=True)}
        alive = [node for node in alive if node["NodeID"] not in decoding]
    answers = [True] * len(alive)
    if ask and alive:
        with ThreadPoolExecutor(min(_AT_ONCE, len(alive))) as pool:
            answers = list(pool.map(_answers, alive))
    draining = draining_nodes()
    taken = _taken(ours)
    return [
        Node(
            id=node["NodeID"],
            name=node["NodeManagerAddress"],
            resources={
                name: amount - taken[node["NodeID"]].get(name, 0.0)
                for name, amount in node["Resources"].items()
            },
            answers=answer,
            leaves_at_s=draining.get(node["NodeID"]),
        )
        for node, answer in zip(alive, answers, strict=True)
    ]


def draining_nodes() -> dict[str, float]:
    """Nodes that were told to leave -> unix time at which they will; infinity without a deadline."""
    return {
        node: deadline_ms / 1000 if deadline_ms else math.inf
        for node, deadline_ms in (state.get_draining_nodes() or {}).items()
    }


def gone(ids: Collection[str]) -> set[str]:
    """Of these nodes, those that are dead, silent, or being drained."""
    there = {n.id for n in look(ours=(), labelled=False, ask=True) if n.usable}
    return set(ids) - there


def _answers(node: dict[str, Any]) -> bool:
    where = node["NodeManagerAddress"], node["NodeManagerPort"]
    try:
        socket.create_connection(where, timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True


def _taken(ours: Collection[str]) -> dict[str, dict[str, float]]:
    """Node -> resources that placement groups of others hold there."""
    taken: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for group, entry in placement_group_table().items():
        if group in ours or entry["state"] not in _HELD:
            continue
        for index, node in entry["bundles_to_node_id"].items():
            for name, amount in entry["bundles"][index].items():
                taken[node][name] += amount
    return taken


def kill_process(node: str, pid: int) -> None:
    """SIGKILL a process on a node, which may be stopped or stuck, and so deaf to Ray."""
    _on(node, _kill, pid)


def native_stack(node: str, pid: int) -> str:
    """What py-spy sees of a process on a node; its complaint where that is not allowed."""
    return _on(node, _py_spy, pid)


def _on(node: str, function: Any, *arguments: Any) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(function)
    there = task.options(
        num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    )
    return ray.get(there.remote(*arguments), timeout=30)


def _kill(pid: int) -> None:
    import os
    import signal

    os.kill(pid, signal.SIGKILL)


def _py_spy(pid: int) -> str:
    import shutil
    import subprocess

    program = shutil.which("py-spy")
    if program is None:
        return "py-spy is not installed on this node"
    done = subprocess.run(
        [program, "dump", "--nonblocking", "--pid", str(pid)],
        capture_output=True,
        text=True,
        timeout=20,
    )
    return done.stdout or done.stderr
