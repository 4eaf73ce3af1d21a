"""Prediction over hundreds of videos, killed in the middle: the same command gives each video exactly once."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from clips.synthetic import CLASSES, MotionConfig, write_videos
from jobs import ROOT, Ended, environment, run_jobs
from tubelet import handover
from videomae import ModelConfig, build_classifier

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
VIDEOS, BAD = 500, 3
SMALL = MotionConfig(size=32, frames=8, fps=8, gop=8)
CONFIG = ModelConfig(preset="tiny", frames=4, image_size=16, depth=1, decoder_depth=1)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder of videos, a few of them damaged, and a model."""
    write_videos(tmp_path / "videos", range(VIDEOS), seed=1, config=SMALL)
    for number in range(BAD):
        (tmp_path / "videos" / f"bad{number}.mp4").write_bytes(b"no video at all")
    torch.manual_seed(0)
    state = build_classifier(CONFIG, num_classes=8, init_scale=1.0).state_dict()
    handover.write(str(tmp_path / "model"), state, CONFIG, extra={"stride": 1}, class_names=CLASSES)
    return tmp_path


def arguments(world: Path, *more: str) -> list[str]:
    return [
        "predict",
        str(world / "videos"),
        f"model={world}/model",
        f"output={world}/out",
        *more,
    ]


def parts(world: Path) -> dict[str, int]:
    """Complete parts, and when each was written."""
    folder = world / "out" / "predictions"
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}


def killed_after(world: Path, count: int) -> None:
    """Start the job, and end it with SIGKILL as soon as so many parts are there."""
    script, *rest = arguments(world)
    with (world / "killed.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, f"jobs/{script}.py", *rest],
            cwd=ROOT,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 400
    while len(parts(world)) < count:
        assert process.poll() is None, (world / "killed.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(world: Path, *more: str) -> Ended:
    return run_jobs({"predict": arguments(world, *more)})["predict"]


def test_prediction_that_was_killed_gives_each_video_exactly_once(world: Path) -> None:
    killed_after(world, 2)
    before = parts(world)
    assert 2 <= len(before) < 16
    ended = run(world)
    assert ended.code == 0, ended.err
    after = parts(world)
    assert {name: after[name] for name in before} == before  # kept, not made again
    table = pq.read_table(world / "out" / "predictions")
    counts = Counter(table["video_id"].to_pylist())
    assert set(counts.values()) == {1}
    assert len(counts) == VIDEOS
    assert {len(row) for row in table["labels"].to_pylist()} == {5}
    known = sum(pq.read_metadata(world / "out" / "predictions" / n).num_rows for n in before)
    assert f"{known} of {VIDEOS} videos were predicted before" in ended.out
    assert f"{VIDEOS} videos predicted, {BAD} files rejected: {world}/out/predictions" in ended.out
    rejected = pq.read_table(world / "out" / "predict.rejected.parquet")
    assert rejected["video_id"].to_pylist() == [f"bad{n}.mp4" for n in range(BAD)]

    write_videos(world / "videos", range(VIDEOS, VIDEOS + 4), seed=1, config=SMALL)
    first = sorted((world / "videos").glob("0*.mp4"))[0]
    first.write_bytes(first.read_bytes() + b"\0" * 8)  # another size: it has changed
    again = run(world)
    assert again.code == 0, again.err
    counts = Counter(pq.read_table(world / "out" / "predictions")["video_id"].to_pylist())
    assert set(counts.values()) == {1}
    assert len(counts) == VIDEOS + 4
    assert f"{VIDEOS - 1} of {VIDEOS + 4} videos were predicted before" in again.out
