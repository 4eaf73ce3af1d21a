"""Features of many videos: the encoder's own numbers, the same after a kill, and each video once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from clips import ClipConfig, DecodeConfig, Manifest
from clips.disposable import take_clips
from clips.load import Take
from jobs import ROOT, Ended, environment, run_jobs
from motion import motion_manifest
from tubelet import handover
from tubelet.feature_set import FeatureSet
from videomae import FrozenEncoder, ModelConfig, build_pretraining, normalise

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
VIDEOS, BROKEN = 200, 7
CONFIG = ModelConfig(preset="tiny", frames=4, image_size=16, depth=2, decoder_depth=1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("features")
    return motion_manifest(folder / "videos", training=160, held_out=40, broken=[BROKEN])


@pytest.fixture(scope="module")
def folder(manifest: Manifest) -> Path:
    """The world: an encoder beside the videos."""
    assert manifest.uri is not None
    place = Path(manifest.uri).parent
    torch.manual_seed(0)
    state = build_pretraining(CONFIG).state_dict()
    handover.write(str(place / "encoder"), state, CONFIG, extra={"stride": 1})
    return place


def arguments(folder: Path, output: str, *more: str) -> list[str]:
    common = [f"encoder={folder}/encoder", f"manifest={folder}/videos.parquet", "tokens=true"]
    return [
        "features",
        *common,
        "views=2",
        f"storage={folder}/runs",
        f"output={folder}/{output}",
        *more,
    ]


def killed_after_a_part(folder: Path) -> set[str]:
    """Start the job, end it with SIGKILL as soon as a part is there; the parts there are."""
    script, *rest = arguments(folder, "killed")
    process = subprocess.Popen(
        [sys.executable, f"jobs/{script}.py", *rest],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list((folder / "killed" / "features").glob("part-*.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return {path.name for path in (folder / "killed" / "features").glob("part-*.parquet")}


@pytest.fixture(scope="module")
def ended(folder: Path) -> dict[str, Ended]:
    before = killed_after_a_part(folder)
    assert len(before) < 7
    cases = {
        "whole": arguments(folder, "whole"),
        "killed": arguments(folder, "killed"),
        "again": arguments(folder, "whole"),
        "other": arguments(folder, "whole", "stride=2"),
        "random": arguments(folder, "random", "random=3", "pool=2"),
        "pool": arguments(folder, "pooled", "pool=5"),
        "no such": arguments(folder, "none", f"encoder={folder}/nothing"),
        "sizes": arguments(folder, "none", f"encoder={folder}/encoder/model.safetensors"),
        "file": arguments(
            folder,
            "whole",
            f"encoder={folder}/encoder/model.safetensors",
            "model.preset=tiny",
            "model.frames=4",
            "model.image_size=16",
            "model.depth=2",
            "stride=1",
        ),
        "probe": [
            "probe",
            f"features=[{folder}/whole,{folder}/random]",
            f"manifest={folder}/videos.parquet",
            "attentive.epochs=2",
            f"storage={folder}/runs",
            f"output={folder}/probe",
        ],
    }
    return run_jobs(cases, cpus=3)


def test_features_are_what_the_encoder_gives(
    folder: Path, manifest: Manifest, ended: dict[str, Ended]
) -> None:
    assert ended["whole"].code == 0, ended["whole"].err
    assert f"features of {VIDEOS - 1} videos in {folder}/whole/features" in ended["whole"].out
    features = FeatureSet(str(folder / "whole"), manifest)
    rows, mean_RD = features.means()
    assert rows.tolist() == [n for n in range(VIDEOS) if n != BROKEN]
    encoder = FrozenEncoder(CONFIG, handover.read(str(folder / "encoder")).state_dict)
    _, tokens_RND = features.tokens(features.parts[1])
    for row in (0, 40, VIDEOS - 1):
        take = Take(manifest.video(row), ClipConfig(stride=1), 4, 16, DecodeConfig(), views=2)
        expected_VND = encoder(normalise(torch.from_numpy(take_clips(take))))
        mean_D = expected_VND.mean((0, 1)).numpy()
        assert np.allclose(mean_RD[rows.tolist().index(row)], mean_D, atol=1e-5)
        if row == 40:
            place = features.tokens(features.parts[1])[0].tolist().index(row)
            found = tokens_RND[place].astype(np.float32)
            assert np.allclose(found, expected_VND.flatten(0, 1).numpy(), atol=5e-3)
    assert f"{manifest.video(BROKEN).video_id}" in ended["whole"].out  # told, with the reason


def test_a_killed_job_goes_on_and_leaves_the_same_bytes(
    folder: Path, ended: dict[str, Ended]
) -> None:
    assert ended["killed"].code == 0, ended["killed"].err
    assert f"of {VIDEOS} videos have features from before" in ended["killed"].out
    whole, killed = (
        {path.name: path.read_bytes() for path in (folder / name / "features").iterdir()}
        for name in ("whole", "killed")
    )
    assert whole == killed
    assert ended["again"].code == 0
    assert f"{VIDEOS} of {VIDEOS} videos have features from before" in ended["again"].out


def test_a_weight_file_gives_the_same_features_once_its_sizes_are_said(
    ended: dict[str, Ended],
) -> None:
    assert ended["file"].code == 0, ended["file"].err
    assert f"{VIDEOS} of {VIDEOS} videos have features from before" in ended["file"].out
    assert ended["sizes"].code == 2
    assert "a weight file does not say the sizes of its model: give them" in ended["sizes"].err


def test_mistakes_are_told(folder: Path, ended: dict[str, Ended]) -> None:
    for name, text in (
        ("other", f"{folder}/whole holds features of another kind (model {folder}/encoder, now "),
        ("other", "  stride: 1 -> 2\n"),
        ("pool", "pool=5 does not divide the 2 x 2 tokens of a picture; allowed: 1, 2"),
        ("no such", f"encoder: {folder}/nothing: "),
    ):
        assert ended[name].code == 2, ended[name].err
        assert text in ended[name].err


def test_fresh_weights_have_pooled_features_of_their_own(
    folder: Path, manifest: Manifest, ended: dict[str, Ended]
) -> None:
    assert ended["random"].code == 0, ended["random"].err
    pooled = FeatureSet(str(folder / "random"), manifest)
    assert pooled.said["grid"] == [2, 1, 1]
    rows, tokens_RND = pooled.tokens(pooled.parts[0])
    assert tokens_RND.shape == (31, 4, CONFIG.encoder.width)  # one is broken
    means = pooled.means()[1][: len(rows)]
    assert np.allclose(tokens_RND.astype(np.float32).mean(1), means, atol=5e-3)
    assert not np.allclose(means, FeatureSet(str(folder / "whole"), manifest).means()[1][:31])


def test_probes_of_both_are_told(folder: Path, ended: dict[str, Ended]) -> None:
    assert ended["probe"].code == 0, ended["probe"].err
    told = json.loads((folder / "probe" / "probes.json").read_text())
    assert [(each["features"], each["probe"]) for each in told] == [
        (name, probe) for name in ("whole", "random") for probe in ("linear", "attentive", "knn")
    ]
    assert {each["videos"] for each in told} == {40}
    table = pq.read_table(folder / "whole" / "features")
    assert table.num_rows == VIDEOS - 1
    assert table.schema.names == ["video_id", "start_s", "mean", "tokens"]
