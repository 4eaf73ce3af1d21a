"""What a run through faults takes place in: nodes, a store, a disk, MLflow, a driver; and what can happen to each."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from clips import Manifest, write_manifest
from mlflow_server import MlflowServer
from motion import motion_manifest
from raylets import Raylets, kill_tree
from recovery import Recovery, recovery
from tubelet import config
from tubelet.recipes import Pretrain
from tubelet.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
NODES, FEWEST = 2, 1
DISK_MB, OUTAGE_S, MLFLOW_S, NOTICE_S = 48, 30.0, 15.0, 30.0
GROWTH_S = 45.0
RECIPE = {
    "model": {"preset": "tiny", "frames": 4, "image_size": 16, "depth": 2, "decoder_depth": 1},
    "mask": {"ratio": 0.75},
    "batch": {"size": 8, "micro": 2},
    "optim": {"lr": 0.02, "min_lr": 1e-4, "clip_grad": 0.1, "precision": "float32"},
    "schedule": {"warmup_epochs": 2},
    "checkpoint": {"every_steps": 10},
    "track": {"evaluate_every": 20, "pictures": False},
}
TRAINING, HELD_OUT, BROKEN = 42, 6, 7


@dataclass
class World:
    """All of it. ``folder`` keeps what is worth reading afterwards."""

    folder: Path
    storage: Path
    """Where runs lie: a small file system of its own where that can be had."""
    cluster: Raylets
    mlflow: MlflowServer | None
    manifest: str
    gateway: Any = None
    missing: dict[str, str] = field(default_factory=dict)
    """Kinds of faults that this machine cannot have, and why."""
    epochs: int = 1
    more: tuple[str, ...] = ()
    """What the command says besides, of a story of its own."""
    driver: "subprocess.Popen[bytes] | None" = None
    name: str = ""

    @property
    def run(self) -> RunDirectory:
        """The run that is being trained."""
        return RunDirectory(str(self.storage / self.name))

    @property
    def mlflow_uri(self) -> str:
        """Where its runs are tracked."""
        return self.mlflow.uri if self.mlflow else f"sqlite:///{self.storage}/mlflow.db"

    def overrides(self, name: str, workers: int | None) -> list[str]:
        """What the command says besides the recipe."""
        sizes = (workers, workers) if workers else (FEWEST, 3)
        return [
            f"run.name={name}",
            f"schedule.epochs={self.epochs}",
            f"run.storage={self.storage}",
            f"data.manifest={self.manifest}",
            "data.clip.stride=1",
            "data.clip.flip=true",
            "data.decode_cpus=0.5",
            f"elastic.min_workers={sizes[0]}",
            f"elastic.max_workers={sizes[1]}",
            "elastic.cpus_per_worker=1.5",
            "elastic.hang_minutes=0.25",
            "elastic.max_failures=100",
            *self.more,
        ]

    def recipe(self, name: str, workers: int | None = None) -> Pretrain:
        """The recipe of a run."""
        return config.load(Pretrain, [self.folder / "tiny.yaml"], self.overrides(name, workers))

    # --- the driver ------------------------------------------------------------------------------

    def begin(self, name: str, workers: int | None = None) -> None:
        """Start, or start again, the command that trains a run."""
        self.name = name
        command = [
            sys.executable,
            str(ROOT / "jobs" / "pretrain.py"),
            str(self.folder / "tiny.yaml"),
        ]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.driver = subprocess.Popen(
                [*command, *self.overrides(name, workers)],
                env={
                    **self.cluster.environment,
                    "RAY_ADDRESS": self.cluster.address,
                    "MLFLOW_TRACKING_URI": self.mlflow_uri,
                },
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def finish(self, *, patience_s: float = 1800.0) -> None:
        """Wait for the run's end."""
        assert self.driver is not None
        code = self.driver.wait(patience_s)
        log = (self.folder / f"{self.name}.log").read_text()
        assert code == 0, f"{self.name} ended with {code}:\n{log[-3000:]}"

    def stop(self) -> None:
        """End the driver if it still runs."""
        if self.driver is not None and self.driver.poll() is None:
            kill_tree(self.driver.pid)
            self.driver.wait()

    def train(self, name: str, workers: int) -> None:
        """A run from beginning to end."""
        self.begin(name, workers)
        self.finish()

    # --- what is seen of it ------------------------------------------------------------------------

    def steps(self) -> list[tuple[float, int]]:
        """Time and number of every optimizer step, by whichever worker."""
        return [(at, int(step)) for at, step in self._lines("steps")]

    def starts(self) -> list[tuple[float, str]]:
        """When each worker began to load, and when it first waited for data."""
        return self._lines("starts")

    def _lines(self, folder: str) -> list[tuple[float, str]]:
        found: list[tuple[float, str]] = []
        for file in (self.folder / folder).glob("*"):
            for line in file.read_text().splitlines(keepends=True):
                if line.endswith("\n"):  # else it is being written
                    at, what = line.split()
                    found.append((float(at), what))
        return found

    def step(self) -> int:
        """The furthest that the run has been."""
        return max((step for _, step in self.run_steps()), default=0)

    def run_steps(self) -> list[tuple[float, int]]:
        """``steps`` of the present run alone."""
        begun = min((a.started_unix_s for a in self.run.attempts()), default=float("inf"))
        return [(at, step) for at, step in self.steps() if at >= begun]

    def wait_for_step(self, step: int, *, since: float, patience_s: float) -> float:
        """When a step was made after a moment."""
        deadline = time.time() + patience_s
        while True:
            after = [at for at, made in self.steps() if made >= step and at > since]
            if after:
                return min(after)
            self._check(deadline, f"step {step}")
            time.sleep(0.2)

    def wait_for_recovery(self, *, since: float, attempts: int, patience_s: float) -> Recovery:
        """Until a new group has made a step that the run had not made.

        Args:
            since: when the fault struck.
            attempts: that the run had had by then.
            patience_s: how long at most.
        """
        deadline = time.time() + patience_s
        while True:
            found = recovery(self.run_steps(), self.run.attempts()[attempts:], fault_s=since)
            if found:
                return found
            self._check(deadline, "a new group's first new step")
            time.sleep(0.2)

    def curves(self, name: str) -> dict[str, dict[int, float]]:
        """Losses and norms of a run as MLflow has them; a step that is there twice is an error."""
        from mlflow import MlflowClient

        client = MlflowClient(self.mlflow_uri)
        experiment = client.get_experiment_by_name("tubelet/pretrain")
        assert experiment is not None
        (run,) = client.search_runs(
            [experiment.experiment_id], filter_string=f"attributes.run_name = '{name}'"
        )
        curves: dict[str, dict[int, float]] = {}
        for metric in ("train/loss", "train/grad_norm", "eval/loss"):
            points = client.get_metric_history(run.info.run_id, metric)
            curves[metric] = {p.step: p.value for p in points}
            assert len(curves[metric]) == len(points), f"{metric} of {name} has a step twice"
        return curves

    def _check(self, deadline: float, what: str) -> None:
        log = self.folder / f"{self.name}.log"
        tail = log.read_text()[-2500:] if log.exists() else ""
        assert self.driver is not None
        code = self.driver.poll()
        assert code is None, f"the driver ended with {code} before {what}:\n{tail}"
        assert time.time() < deadline, f"waited in vain for {what}:\n{tail}"

    # --- what happens to it ----------------------------------------------------------------------

    def prepare(self, kind: str) -> None:
        """Have as many nodes as a fault needs: one to take, one to stay; room for one that joins."""
        living = self.cluster.raylets()
        if kind in ("node_kill", "drain"):
            for _ in range(len(living), NODES):
                self.cluster.add()
        if (
            kind == "node_join" and len(living) > 1
        ):  # from one to two workers always pays, further ones may not
            before = len(self.run.attempts())
            for raylet in living[1:]:
                self.cluster.kill_node(raylet)
            deadline = time.time() + 120
            while len(self.run.attempts()) == before:
                self._check(deadline, "the run on one node")
                time.sleep(0.2)

    def strike(
        self, number: int | str, kind: str, phase: str, *, earliest: int, patience_s: float
    ) -> dict[str, Any]:
        """Arm a fault, and wait until it has fired; where and when."""
        armed = {"id": number, "kind": kind, "rank": 0, "phase": phase, "step": earliest}
        attempts = self.run.attempts()
        workers = attempts[-1].world_size if attempts else 1
        if workers > 1:
            armed["rank"] = len(attempts) % workers
        new = self.folder / "armed.json.new"
        new.write_text(json.dumps({**armed, "run": self.run.uri}))
        new.rename(self.folder / "armed.json")
        fired = self.folder / f"fired-{number}.json"
        deadline = time.time() + patience_s
        while not fired.exists():
            self._check(
                deadline, f"fault {number} ({kind} in {phase} from step {earliest}) to fire"
            )
            time.sleep(0.05)
        (self.folder / "armed.json").unlink()
        return json.loads(fired.read_text())

    def outside(self, kind: str, fired: dict[str, Any]) -> None:
        """Do what a worker cannot do to itself."""
        assert self.driver is not None
        if kind == "node_join":
            self.cluster.add()
            self._wait_for_growth()
        elif kind == "drain":
            self.cluster.drain(fired["raylet"], seconds=NOTICE_S)
            leaves = time.time() + NOTICE_S
            self._wait_for_attempt("the group without the drained node")
            time.sleep(max(0.0, leaves - time.time()))
            self.cluster.kill_node(fired["raylet"])
        elif kind == "head_kill":
            self.cluster.kill()
            kill_tree(self.driver.pid)
            self.driver.wait()
            self.cluster.start(NODES)
            self.begin(self.name)
        elif kind == "driver_kill":
            os.kill(self.driver.pid, signal.SIGKILL)
            self.driver.wait()
            self.begin(self.name)
        elif kind == "store_down":
            self.gateway.kill()
            time.sleep(OUTAGE_S)
            self.gateway.start()
        elif kind == "disk_full":
            self._fill_disk()
        elif kind == "mlflow_down":
            assert self.mlflow is not None
            self.mlflow.kill()
            time.sleep(MLFLOW_S)
            self.mlflow.start()
            self.mlflow.wait()

    def _wait_for_growth(self) -> None:
        """Until the group has grown, or for so long that it never will: near its end that does not pay."""
        before, deadline = len(self.run.attempts()), time.time() + GROWTH_S
        while len(self.run.attempts()) == before and time.time() < deadline:
            time.sleep(0.2)

    def _wait_for_attempt(self, what: str) -> None:
        before = len(self.run.attempts())
        deadline = time.time() + 120
        while len(self.run.attempts()) == before:
            self._check(deadline, what)
            time.sleep(0.1)

    def _fill_disk(self) -> None:
        """Leave no byte on the run's disk until a checkpoint has failed for it."""
        ballast, said = self.storage / "ballast", self.run.path("logs")
        refused = "could not be saved"
        before = self._worker_logs().count(refused)
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(b"x" * (1 << 16))
        deadline = time.time() + 60
        assert self.driver is not None
        while self._worker_logs().count(refused) == before and self.driver.poll() != config.STOPPED:
            self._check(deadline, f"a checkpoint that finds no room ({said})")
            time.sleep(0.5)
        ballast.unlink()
        if (
            self.driver.poll() == config.STOPPED
        ):  # at its very end: it asks for room, and to be started again
            self.begin(self.name)

    def _worker_logs(self) -> str:
        """What workers have logged."""
        folder = Path(self.cluster.environment["RAY_TMPDIR"])
        files = folder.glob("ray/session_*/logs/worker-*.err")
        return "".join(file.read_text(errors="replace") for file in files)


@contextlib.contextmanager
def world(folder: Path, *, epochs: int, servers: bool = True) -> Iterator[World]:
    """Make it, and clear it away.

    Args:
        folder: for all of it.
        epochs: of its runs.
        servers: a store and MLflow of their own, that can be down; else videos and MLflow's file are on the disk.
    """
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as closing:
        ray = Path(tempfile.mkdtemp(prefix="ch", dir="/tmp"))
        closing.callback(shutil.rmtree, ray, ignore_errors=True)
        storage = _small_disk(folder / "runs", closing, missing)
        videos = motion_manifest(
            folder / "videos", training=TRAINING, held_out=HELD_OUT, broken=[BROKEN]
        )
        gateway, manifest, environment = None, str(videos.uri), {}
        if servers and shutil.which("radosgw"):
            gateway, manifest, environment = _in_bucket(folder, videos, closing)
        else:
            missing["store_down"] = "needs Ceph's gateway (tests/apt.txt)"
        mlflow = MlflowServer(folder) if servers else None
        if mlflow:
            mlflow.start()
            closing.callback(mlflow.kill)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
        cluster = Raylets(ray, {"CHAOS": str(folder), **environment})
        closing.callback(cluster.kill)
        cluster.start(NODES)
        if mlflow:
            mlflow.wait()
        there = World(folder, storage, cluster, mlflow, manifest, gateway, missing, epochs)
        closing.callback(there.stop)
        yield there


def _small_disk(place: Path, closing: contextlib.ExitStack, missing: dict[str, str]) -> Path:
    place.mkdir(parents=True)
    if os.geteuid() == 0:
        options = f"size={DISK_MB}m"
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)])
        if mounted.returncode == 0:
            closing.callback(subprocess.run, ["umount", "--lazy", str(place)])
            return place
    missing["disk_full"] = "needs root and mount, for a file system that can be filled"
    return place


def _in_bucket(
    folder: Path, videos: Manifest, closing: contextlib.ExitStack
) -> tuple[Any, str, dict[str, str]]:
    from ceph import running

    gateway = closing.enter_context(running(Path(tempfile.mkdtemp(prefix="ceph", dir="/tmp"))))
    place, client = gateway.bucket("chaos"), gateway.client()
    for name in videos.table["video_id"].to_pylist():
        body = (folder / "videos" / name).read_bytes()
        client.put_object(Bucket="chaos", Key=f"videos/{name}", Body=body)
    stored = write_manifest(
        Manifest.build(videos.table, root=f"{place}/videos"), str(folder / "s3.parquet")
    )
    return gateway, str(stored.uri), dict(gateway.environment)
