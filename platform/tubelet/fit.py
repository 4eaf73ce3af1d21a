"""One start of Ray Train for a run: our feed, our hooks, a fresh name, no checkpoints of Ray's.

Ray Train keeps its own record of a run under its name and refuses or deletes what does not fit; a fresh name for every
start of a driver makes that record disposable, and the run's directory the only truth.
"""

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clips import storage
from tubelet import cluster
from tubelet.feed import MaskMaker
from tubelet.items import DataPlan
from tubelet.notices import Notices
from tubelet.run_directory import RunDirectory
from tubelet.session import Outcome, Session

_POLL_S = 0.3


@dataclass(frozen=True)
class Job:
    """A run as the runner sees it."""

    kind: Literal["pretrain", "finetune"]
    recipe: Any
    """With the sections ``run data elastic resume track`` that all training recipes have."""
    plan: DataPlan
    manifest_hash: str
    make_masks: MaskMaker
    loop: Callable[[Any, DataPlan, Session], Outcome]
    notes: dict[str, str] = field(default_factory=dict)
    """What the user should see before it starts, by name (effective learning rate, parameters)."""
    tags: dict[str, str] = field(default_factory=dict)
    """Of its MLflow run, beside our own (a sweep's trials name their parent)."""
    draw: Callable[[Any, RunDirectory, Path, Path], None] | None = None
    """Draws pictures of (recipe, run, file of the points so far) into a local folder."""


class Fit:
    """Ray Train's ``fit`` in a thread, so that signals reach the main one."""

    def __init__(
        self,
        job: Job,
        directory: RunDirectory,
        *,
        key: str,
        workers: tuple[int, int],
    ) -> None:
        self.ray_run = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        self.error: BaseException | None = None
        self._trainer = _trainer(job, directory, self.ray_run, key, workers)
        self._thread = threading.Thread(target=self._run, name="fit", daemon=True)
        self._thread.start()

    def running(self) -> bool:
        """Wait a moment; whether Ray Train is still at work."""
        self._thread.join(_POLL_S)
        return self._thread.is_alive()

    @property
    def controller_died(self) -> bool:
        """Whether it ended because the process that steers it did."""
        from ray.exceptions import RayActorError

        return isinstance(self.error, RayActorError)

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:
            self.error = error


def _trainer(
    job: Job,
    directory: RunDirectory,
    ray_run: str,
    key: str,
    workers: tuple[int, int],
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from tubelet import membership, stream, worker

    recipe, elastic = job.recipe, job.recipe.elastic
    import ray

    cuda = elastic.device == "cuda" or (
        elastic.device == "auto" and ray.cluster_resources().get("GPU", 0) >= workers[0]
    )
    labelled = recipe.data.decode_nodes == "labelled"  # both sides: else trainers fill data nodes
    work = worker.Work(
        run_uri=directory.uri,
        ray_run=ray_run,
        recipe=recipe,
        plan=job.plan,
        make_masks=job.make_masks,
        loop=job.loop,
        threads=elastic.threads,
        supply=stream.Supply(
            decode_cpus=recipe.data.decode_cpus,
            prefetch=recipe.data.prefetch,
            labelled=labelled,
            cpus_per_worker=elastic.cpus_per_worker,
        ),
    )
    reports = membership.Reports(folder=spool_folder(directory), key=key)
    notices = Notices(notices_file(directory))
    # Ray also takes callbacks of its own kinds here, which its annotation does not say.
    callbacks: list[Any] = [
        membership.Group(directory, notices, hang_s=60 * elastic.hang_minutes),
        membership.Attempts(directory, ray_run, reports),
        reports,
    ]
    sizes = ScalingConfig(
        num_workers=workers,
        use_gpu=cuda,
        resources_per_worker={"CPU": elastic.cpus_per_worker} | ({"GPU": 1} if cuda else {}),
        label_selector={cluster.DATA_NODES[0]: f"!{cluster.DATA_NODES[1]}"} if labelled else None,
    )
    return membership.ElasticTrainer(
        worker.work,
        train_loop_config={"work": work},
        torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
        scaling_config=sizes,
        run_config=RunConfig(name=ray_run, storage_path=directory.path("ray"), callbacks=callbacks),
        scaling=membership.LiveScaling(
            sizes,
            timetable=job.plan.timetable,
            decode_cpus=0.0 if labelled else recipe.data.decode_cpus,
            labelled=labelled,
            notices=notices,
        ),
        failures=membership.CountedFailures(
            FailureConfig(), most=elastic.max_failures, notices=notices
        ),
    )


def notices_file(directory: RunDirectory) -> str:
    """Where the controller leaves what the user should be told, beside the spool."""
    return str(Path(spool_folder(directory)) / "notices.jsonl")


def spool_folder(directory: RunDirectory) -> str:
    """Where this machine keeps what is on its way to MLflow: in the run's folder when that is local."""
    if storage.is_local(directory.uri):
        return storage.local_path(directory.path("spool"))
    return str(
        Path.home() / ".cache" / "tubelet" / "runs" / directory.uri.rsplit("/", 1)[-1] / "spool"
    )
