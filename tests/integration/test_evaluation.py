"""Evaluating a classifier on a cluster: the same predictions, byte for byte, however many processes hold the models."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clips import Manifest, write_manifest
from jobs import Ended, run_jobs
from motion import motion_manifest
from tubelet import handover
from videomae import ModelConfig, build_classifier

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

VIDEOS, BROKEN, SPANS = 37, 5, (0.0, 0.5)
ROWS = VIDEOS + len(SPANS)
MODEL = ModelConfig(preset="tiny", frames=4, image_size=16, depth=2)
WORKERS = (1, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def ended(folder: Path) -> dict[str, Ended]:
    whole = motion_manifest(folder / "videos", training=0, held_out=VIDEOS, broken=[BROKEN])
    first = whole.table.to_pylist()[0]
    spans = [{**first, "start_s": start, "end_s": start + 0.5} for start in SPANS]
    both = Manifest.build([*spans, *whole.table.to_pylist()], root=whole.root)
    manifest = write_manifest(both, str(folder / "spans.parquet"))
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
    return (folder / name / "predictions.parquet").read_bytes()


def test_every_size_ends_well(ended: dict[str, Ended]) -> None:
    assert {name: case.code for name, case in ended.items()} == dict.fromkeys(ended, 0), ended


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_any_number_of_workers_writes_the_same_bytes(
    ended: dict[str, Ended], folder: Path, workers: int
) -> None:
    assert predictions(folder, f"strided-{workers}") == predictions(folder, "strided-1")


def test_each_video_and_span_has_its_row_by_name_and_start(
    ended: dict[str, Ended], folder: Path
) -> None:
    table = pq.read_table(folder / "strided-1" / "predictions.parquet")
    assert table.schema.field("model_0").type == pa.list_(pa.float32()), "anybody can read it"
    rows = table.to_pylist()
    keys = [(row["video_id"], row["start_s"]) for row in rows]
    assert [start for _, start in keys[: 1 + len(SPANS)]] == [None, *SPANS]
    assert len(set(keys)) == len(keys) == ROWS
    assert keys == sorted(keys, key=lambda key: (key[0], -1.0 if key[1] is None else key[1]))
    assert [row["row"] for row in rows] == list(range(ROWS))
    assert [bool(row["reason"]) for row in rows].count(True) == 1
    first, second = (row["model_0"] for row in rows[1:3])
    assert first != second, "each span shows its own frames"


def test_a_model_of_segments_is_shown_segments(ended: dict[str, Ended], folder: Path) -> None:
    assert predictions(folder, "segments-1") != predictions(folder, "strided-1")


def test_classes_have_a_table_and_a_picture(ended: dict[str, Ended], folder: Path) -> None:
    place = folder / "strided-1"
    lines = (place / "classes_0.csv").read_text().splitlines()
    assert lines[0] == "class,videos,right,accuracy,average_precision,taken_for,times"
    metrics: dict[str, Any] = json.loads((place / "metrics.json").read_text())
    (found,) = metrics.values()
    assert sum(int(line.split(",")[1]) for line in lines[1:]) == found["videos"] == ROWS - 1
    assert sum(int(line.split(",")[2]) for line in lines[1:]) == sum(found["right_by_class"])
    assert 0 < found["mean_ap"] <= 1
    assert (place / "confusion_0.png").read_bytes()[:4] == b"\x89PNG"
    assert os.path.getsize(place / "confusion_0.png") > 5000
