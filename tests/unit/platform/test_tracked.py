"""The driver's side of a run's MLflow run, where the run lies in a bucket and its machine may be lost."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from mlflow import MlflowClient

from ceph import Gateway
from clips import ClipConfig, storage
from motion import motion_manifest
from tubelet import shipping
from tubelet.fit import Job, spool_folder
from tubelet.items import BatchConfig, DataConfig
from tubelet.loops import pretrain
from tubelet.recipes import Pretrain
from tubelet.run_directory import RunConfig, RunDirectory
from tubelet.schedules import ScheduleConfig
from tubelet.spool import MetricSpool
from tubelet.tracked import Tracked
from videomae import ModelConfig

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

NOBODY = "http://127.0.0.1:9"


def job_in(root: str, folder: Path) -> Job:
    manifest = motion_manifest(folder / "videos", training=2, held_out=2)
    recipe = Pretrain(
        run=RunConfig(name="mine", storage=root),
        model=ModelConfig(preset="tiny", frames=4, image_size=16),
        data=DataConfig(manifest=manifest.uri or "", clip=ClipConfig(stride=1)),
        batch=BatchConfig(size=2, micro=2),
        schedule=ScheduleConfig(epochs=1, warmup_epochs=0),
    )
    return pretrain.job(recipe)


def test_points_that_mlflow_lacks_survive_the_machine_of_a_run_in_a_bucket(
    object_store: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = object_store.bucket(f"tracked-{uuid4().hex[:8]}")
    directory, job = RunDirectory(f"{root}/mine"), job_in(root, tmp_path)
    record: dict[str, Any] = {"name": "mine"}
    monkeypatch.setattr(shipping, "REFUSED_S", 0.5)

    monkeypatch.setenv("HOME", str(tmp_path / "first machine"))
    first = Tracked(job, directory, record, uri=NOBODY, root=root)
    with first:
        first.begin(revision="r")
        spool = MetricSpool(spool_folder(directory), first.key)
        spool.append([{"step": step, "metrics": {"train/loss": 1.0 / step}} for step in (1, 2, 3)])
        assert spool.close()
        assert not first.end("KILLED")
    copy = directory.path("spool", f"{first.key}.jsonl")
    assert storage.exists(copy)

    monkeypatch.setenv("HOME", str(tmp_path / "second machine"))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    second = Tracked(job, directory, record, uri=uri, root=str(tmp_path))
    assert second.points.exists()
    assert second.points != first.points
    with second:
        second.begin(revision="r")
        assert second.end("FINISHED")
    assert second.run_id is not None
    history = MlflowClient(uri).get_metric_history(second.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5), (3, 1.0 / 3)]
    assert not storage.exists(copy), "nothing waits any more"


def test_a_run_on_a_disk_keeps_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(tmp_path / "runs")
    monkeypatch.setattr(shipping, "REFUSED_S", 0.5)
    directory, job = RunDirectory(f"{root}/mine"), job_in(root, tmp_path)
    tracked = Tracked(job, directory, {"name": "mine"}, uri=NOBODY, root=root)
    with tracked:
        tracked.begin(revision="r")
        MetricSpool(spool_folder(directory), tracked.key).append(
            [{"step": 1, "metrics": {"train/loss": 1.0}}]
        )
        assert not tracked.end("KILLED")
    assert [p.name for p in (tmp_path / "runs" / "mine" / "spool").iterdir()] == [
        tracked.points.name
    ]
