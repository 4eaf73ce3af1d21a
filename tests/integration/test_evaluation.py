"""Evaluating a classifier on a cluster: the same predictions, byte for byte, however many processes hold the models."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from jobs import Ended, run_jobs
from motion import motion_manifest
from tubelet import handover
from videomae import ModelConfig, build_classifier

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

VIDEOS, BROKEN = 37, 5
MODEL = ModelConfig(preset="tiny", frames=4, image_size=16, depth=2)
WORKERS = (1, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def ended(folder: Path) -> dict[str, Ended]:
    manifest = motion_manifest(folder / "videos", training=0, held_out=VIDEOS, broken=[BROKEN])
    torch.manual_seed(2)
    classes = manifest.classes
    model = build_classifier(MODEL, num_classes=len(classes), init_scale=1.0)
    for name, sampling in (("strided", "strided"), ("segments", "segments")):
        extra = {"stride": 1, "sampling": sampling}
        handover.write(
            str(folder / name), model.state_dict(), MODEL, extra=extra, class_names=classes
        )
    common = [f"manifest={manifest.uri}", "held_out=0", "views=2", "crops=3"]
    common += [f"storage={folder}/runs"]
    cases = {
        f"{model}-{workers}": [
            "evaluate",
            f"model={folder}/{model}",
            f"workers={workers}",
            f"output={folder}/{model}-{workers}",
            *common,
        ]
        for model, workers in (*(("strided", w) for w in WORKERS), ("segments", 1))
    }
    return run_jobs(cases, cpus=5)


def predictions(folder: Path, name: str) -> bytes:
    """The file's rows by video, written anew."""
    table = pq.read_table(folder / name / "predictions.parquet").sort_by("video_id")
    pq.write_table(table, folder / "sorted.parquet")
    return (folder / "sorted.parquet").read_bytes()


def test_every_size_ends_well(ended: dict[str, Ended]) -> None:
    assert {name: case.code for name, case in ended.items()} == dict.fromkeys(ended, 0), ended


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_any_number_of_workers_predicts_the_same_bytes_one_row_a_video(
    ended: dict[str, Ended], folder: Path, workers: int
) -> None:
    one = predictions(folder, "strided-1")
    assert predictions(folder, f"strided-{workers}") == one
    rows = pq.read_table(folder / "strided-1" / "predictions.parquet").to_pylist()
    assert len({row["video_id"] for row in rows}) == len(rows) == VIDEOS
    assert [bool(row["reason"]) for row in rows].count(True) == 1
    assert {row["start_s"] for row in rows} == {None}  # of whole videos


def test_a_model_of_segments_is_shown_segments(ended: dict[str, Ended], folder: Path) -> None:
    assert predictions(folder, "segments-1") != predictions(folder, "strided-1")


def test_classes_have_a_table_and_a_picture(ended: dict[str, Ended], folder: Path) -> None:
    place = folder / "strided-1"
    lines = (place / "classes_0.csv").read_text().splitlines()
    assert lines[0] == "class,videos,right,accuracy,average_precision,taken_for,times"
    metrics: dict[str, Any] = json.loads((place / "metrics.json").read_text())
    (found,) = metrics.values()
    assert sum(int(line.split(",")[1]) for line in lines[1:]) == found["videos"] == VIDEOS - 1
    assert sum(int(line.split(",")[2]) for line in lines[1:]) == sum(found["right_by_class"])
    assert 0 < found["mean_ap"] <= 1
    assert (place / "confusion_0.png").read_bytes()[:4] == b"\x89PNG"
    assert os.path.getsize(place / "confusion_0.png") > 5000
