"""Training from a real S3 server: the same numbers as from disk, over an outage, and read once with a cache."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ceph import Gateway
from clips import Manifest, storage, write_manifest
from jobs import run_jobs
from motion import motion_manifest
from tubelet import audit, config
from tubelet.loops import pretrain
from tubelet.recipes import Pretrain
from tubelet.run_directory import RunDirectory

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

VIDEOS, EPOCHS, OUTAGE_S = 64, 24, 30.0
RECIPE = {
    "model": {"preset": "tiny", "frames": 4, "image_size": 16, "depth": 1, "decoder_depth": 1},
    "mask": {"ratio": 0.75},
    "data": {"clip": {"stride": 1, "flip": True}, "held_out_clips": 0},
    "batch": {"size": 8, "micro": 4},
    "optim": {"lr": 0.02, "precision": "float32"},
    "schedule": {"epochs": EPOCHS, "warmup_epochs": 1},
    "elastic": {"min_workers": 2, "max_workers": 2, "cpus_per_worker": 0.5},
    "track": {"pictures": False},
}


@dataclass
class Data:
    folder: Path
    recipe: Path
    disk: Manifest
    bucket: Manifest


@pytest.fixture(scope="module")
def data(ceph: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The same videos on disk and in a bucket, each with its manifest."""
    folder = tmp_path_factory.mktemp("s3")
    disk = motion_manifest(folder / "videos", training=VIDEOS)
    client, place = ceph.client(), ceph.bucket("training")
    for name in disk.table["video_id"].to_pylist():
        client.put_object(
            Bucket="training", Key=f"videos/{name}", Body=(folder / "videos" / name).read_bytes()
        )
    bucket = Manifest.build(disk.table, root=f"{place}/videos")
    assert bucket.hash == disk.hash
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    return Data(folder, folder / "tiny.yaml", disk, write_manifest(bucket, f"{folder}/s3.parquet"))


@dataclass
class Ran:
    points: list[dict[str, Any]]
    """As they were written ahead for MLflow: milliseconds, step, metrics."""
    report: audit.AuditReport

    def series(self, metric: str) -> dict[int, float]:
        return {p["s"]: p["m"][metric] for p in self.points if metric in p["m"]}


def train(
    data: Data,
    name: str,
    manifest: Manifest,
    variables: Mapping[str, str],
    meanwhile: Callable[[RunDirectory], None] = lambda run: None,
    *more: str,
) -> Ran:
    arguments = [
        str(data.recipe),
        f"data.manifest={manifest.uri}",
        f"run.storage={data.folder}/runs",
        f"run.name={name}",
        *more,
    ]
    run = RunDirectory(f"{data.folder}/runs/{name}")
    watcher = threading.Thread(target=meanwhile, args=(run,))
    watcher.start()
    ended = run_jobs({"run": ["pretrain", *arguments]}, variables=variables)["run"]
    watcher.join()
    assert ended.code == 0, ended.err
    recipe = config.load(Pretrain, [data.recipe], arguments[1:])
    plan = pretrain.job(recipe).plan
    (spool,) = Path(run.path("spool")).glob("*.jsonl")
    points = [json.loads(line) for line in spool.read_text().splitlines()]
    return Ran(points, audit.verify(run, ledger=plan.ledger, copies=plan.copies))


@pytest.fixture(scope="module")
def from_disk(data: Data) -> Ran:
    return train(data, "disk", data.disk, {})


def same_numbers(one: Ran, other: Ran) -> None:
    for metric in ("train/loss", "train/grad_norm"):
        assert one.series(metric) == other.series(metric)  # bit for bit
    assert len(one.series("train/loss")) == VIDEOS * EPOCHS // 8
    for ran in (one, other):
        assert ran.report.exact
        assert (ran.report.consumed, ran.report.bad) == (VIDEOS * EPOCHS, [])


def test_an_outage_in_mid_epoch_changes_no_number_and_loses_no_sample(
    data: Data, from_disk: Ran, object_store: Gateway
) -> None:
    killed: list[float] = []

    def outage(run: RunDirectory) -> None:
        limit = time.monotonic() + 200
        while not any(
            "train/loss" in f.read_text() for f in Path(run.path("spool")).glob("*.jsonl")
        ):
            assert time.monotonic() < limit, "the run does not start"
            time.sleep(0.2)
        object_store.kill()
        killed.append(time.time() * 1e3)
        time.sleep(OUTAGE_S)
        object_store.start()

    ran = train(data, "outage", data.bucket, object_store.environment, outage)
    same_numbers(from_disk, ran)
    times = [p["t"] for p in ran.points]
    felt = max(b - a for a, b in itertools.pairwise(times) if b > killed[0])
    assert felt > 1e3 * OUTAGE_S / 2, "the outage was not felt: everything had been read before"


def test_with_a_cache_the_second_epoch_reads_nothing(
    data: Data, from_disk: Ran, object_store: Gateway
) -> None:
    cache = data.folder / "cache"
    options = (f"data.cache_dir={cache}", "data.cache_gb=0.1")
    ran = train(data, "cached", data.bucket, object_store.environment, lambda run: None, *options)
    same_numbers(from_disk, ran)
    read, asked = ran.series("data/bytes_per_clip"), ran.series("data/requests_per_clip")
    assert max(read.values()) > 0
    assert max(asked.values()) > 0
    after = [
        step for step in read if step > 3 * VIDEOS // 8
    ]  # units on their way straddle the epoch
    assert after
    assert {read[step] for step in after} == {asked[step] for step in after} == {0.0}
    kept = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert kept >= sum(data.disk.table["size"].to_pylist())


def test_without_a_cache_every_visit_reads_its_video(
    data: Data, from_disk: Ran, object_store: Gateway
) -> None:
    ran = train(data, "uncached", data.bucket, object_store.environment)
    same_numbers(from_disk, ran)
    mean = sum(data.disk.table["size"].to_pylist()) / VIDEOS
    read = ran.series("data/bytes_per_clip")
    assert min(read.values()) > 0.8 * mean
    assert set(ran.series("data/requests_per_clip").values()) == {1.0}
    assert not storage.is_local(data.bucket.root)
