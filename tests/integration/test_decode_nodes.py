"""Nodes that only decode: labelled, on both sides, and joining while a run waits for them."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import ROOT, Ended, environment, run_jobs
from motion import motion_manifest
from witness import BACKEND

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RECIPE = {
    "model": {"preset": "tiny", "frames": 4, "image_size": 16, "depth": 1, "decoder_depth": 1},
    "mask": {"ratio": 0.75},
    "data": {"clip": {"stride": 1}, "held_out_clips": 0, "decode_nodes": "labelled"},
    "decode": {"backend": BACKEND},
    "batch": {"size": 8, "micro": 4},
    "schedule": {"epochs": 10, "warmup_epochs": 1},
    "elastic": {"min_workers": 2, "max_workers": 2, "cpus_per_worker": 1.0},
    "track": {"pictures": False},
}

_JOIN_AFTER_S = 25.0


@dataclass
class Ran:
    ended: Ended
    decoded_on: set[int]
    data_nodes: set[int]


def raylet_of(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """A run whose two trainers fill a node; the nodes that decode come when it already waits."""
    folder = tmp_path_factory.mktemp("nodes")
    manifest = motion_manifest(folder / "videos", training=40)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    variables = {
        "PYTHONPATH": f"{environment()['PYTHONPATH']}{os.pathsep}{ROOT / 'tests/support'}",
        "WITNESS": str(folder / "decoded_on"),
        "RAY_AUTH_MODE": "disabled",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": True}
        )
        cluster.add_node(num_cpus=2)
        arguments = [
            str(folder / "tiny.yaml"),
            f"data.manifest={manifest.uri}",
            f"run.storage={folder}/runs",
        ]
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(
                run_jobs,
                {"run": ["pretrain", *arguments]},
                variables={**variables, "RAY_ADDRESS": str(cluster.address)},
            )
            time.sleep(_JOIN_AFTER_S)
            # In this thread: starting a node sets signal handlers.
            joined = [
                cluster.add_node(num_cpus=1, labels={"ray-subcluster": "data"}) for _ in range(2)
            ]
            ended = running.result()
        nodes = {raylet_of(node) for node in joined}
        decoded_on = set(map(int, Path(variables["WITNESS"]).read_text().split()))
        yield Ran(ended["run"], decoded_on, nodes)
        cluster.shutdown()


def test_a_run_waits_for_nodes_that_decode_and_uses_all_that_join(ran: Ran) -> None:
    assert ran.ended.code == 0, ran.ended.out + ran.ended.err
    assert "note: no node is labelled ray-subcluster=data yet" in ran.ended.out
    assert ran.decoded_on == ran.data_nodes
