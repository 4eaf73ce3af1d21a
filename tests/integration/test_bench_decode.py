"""The decode benchmark: all ways make the same clips, and the report says what it should."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import decode_ways as ways
from clips.synthetic import Encoding, MotionConfig, encode, motion_frames

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ways.Task:
    path = tmp_path_factory.mktemp("bench") / "a.mp4"
    motion = MotionConfig(size=240, frames=120, speed=(1.0, 3.0), wave=(20.0, 120.0))
    path.write_bytes(
        encode(motion_frames(0, seed=0, config=motion), Encoding(gop=250, options={"crf": "18"}))
    )
    return ways.Task(str(path), 4, (3, 4), 120, 240, 240)


def test_our_clips_are_those_of_the_authors_loader(task: ways.Task) -> None:
    pytest.importorskip("decord", reason="decord has wheels for x86-64 Linux only")
    mine = torch.from_numpy(ways.ours(task)).permute(0, 4, 1, 2, 3).float()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)
    theirs = torch.stack([255 * (clip * deviation + mean) for clip in ways.authors(task)])
    assert mine.shape == theirs.shape == (2, 3, 16, 224, 224)
    assert (mine - theirs).abs().mean() < 2, "another conversion to RGB moves a value by one or two"


def test_the_limit_decodes_the_same_frames_and_crops(task: ways.Task, tmp_path: Path) -> None:
    limit = ways.limit(tmp_path)
    if limit is None:
        pytest.skip("needs cc, pkg-config and the headers of libav")
    off = np.abs(limit(task).astype(int) - ways.ours(task))
    assert off.mean() < 4, "its resizing has no antialiasing, which is all that may differ"


@pytest.mark.slow  # 40 s: it encodes six videos of ten seconds, and copies of three
def test_the_benchmark_measures_generated_videos_and_lists_what_fails(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(BENCHMARKS / "bench_decode.py")),
            *("tasks=1", "rounds=1", f"folder={tmp_path}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "decode.json").read_text())
    names = ["k400_r1", "k400_r4", "copy_r1", "copy_r4", "ucf_r1"]
    assert [case["case"] for case in report["cases"]] == names
    assert all(case["ms_ours"] > 0 and case["videos"] == 3 for case in report["cases"])
    assert (tmp_path / "decode.png").stat().st_size > 5000
    assert "authors ms" in done.stdout
    assert all(
        failure["way"] in ("authors", "decord", "torchcodec") for failure in report["failed"]
    )


def test_a_folder_without_videos_to_measure_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(
        encode(motion_frames(0, seed=0, config=MotionConfig(size=64, frames=20)))
    )
    done = subprocess.run(
        [
            sys.executable,
            str(BENCHMARKS / "bench_decode.py"),
            f"videos={tmp_path}/in",
            f"folder={tmp_path}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: videos={tmp_path}/in holds none to measure: H.264 in MP4"
    )
