"""Where a video may have several labels, each has a probability of its own, whoever asks the model."""

import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import ray
import torch

import models_made
from clips import DecodeConfig
from motion import one_motion_video
from tubelet import handover, labelling, models, one_video, registry, tracking
from tubelet.evaluation.inference import Classifiers
from videomae import ModelConfig, build_classifier, class_probabilities, load_export

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]

MODEL = ModelConfig(preset="tiny", frames=8, image_size=32, patch_size=8, depth=1)
LOGITS = {"dog": 2.0, "barks": 1.0, "sleeps": -3.0}
SHARES = [0.880797, 0.731059, 0.047426]  # 1 / (1 + exp(-logit))


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says the same of every clip."""
    folder = tmp_path_factory.mktemp("export")
    state = build_classifier(MODEL, num_classes=len(LOGITS)).state_dict()
    state["head.weight"].zero_()
    state["head.bias"].copy_(torch.tensor(list(LOGITS.values())))
    handover.write(
        str(folder), state, MODEL, extra={"stride": 1}, class_names=tuple(LOGITS), several=True
    )
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return one_motion_video(tmp_path_factory.mktemp("videos"))


def test_one_of_several_shares_and_several_do_not() -> None:
    logits_BK = torch.tensor([list(LOGITS.values())], dtype=torch.bfloat16)
    several = class_probabilities(logits_BK, several=True)
    one = class_probabilities(logits_BK, several=False)
    assert several.dtype == one.dtype == torch.float32
    assert np.allclose(several, [SHARES], atol=1e-6)
    assert np.allclose(one, [[0.727475, 0.267623, 0.004902]], atol=1e-6)


def test_an_export_says_which(export: Path, tmp_path: Path) -> None:
    assert load_export(export).several
    for name in handover.FILES:
        (tmp_path / name).write_bytes((export / name).read_bytes())
    described = json.loads((export / "config.json").read_text())
    del described["several"]  # as exports were before
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert not load_export(tmp_path).several


def test_evaluation_and_prediction_of_many(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda reference: reference)  # no store without a cluster
    clips_NVTHWC = np.zeros((1, 2, 8, 32, 32, 3), np.uint8)
    batch = {
        "row": np.array([0]),
        "reason": np.array([""], dtype=object),
        "clips": clips_NVTHWC,
        "group": np.array([0]),
    }
    found = Classifiers([load_export(export)], each=1)(dict(batch))
    assert np.allclose(found["model_0"], [SHARES], atol=1e-6)
    labeller = labelling.Labeller([load_export(export)], tuple(LOGITS), 2)
    answer = labeller(dict(batch))
    assert answer["labels"].to_pylist() == [["dog", "barks"]]
    assert np.allclose(answer["probabilities"].to_pylist(), [SHARES[:2]], atol=1e-6)


def test_prediction_of_one_and_the_registered_model(
    export: Path, video: Path, tmp_path: Path
) -> None:
    asked = one_video.PredictOne(
        str(video), model=str(export), picture=str(tmp_path / "shown.png"), decode=DecodeConfig()
    )
    said = one_video.predict(asked, scratch=tmp_path)
    assert said.labels == tuple(LOGITS)
    assert np.allclose(said.probabilities, SHARES, atol=1e-6)
    uri = tracking.resolve_uri(str(tmp_path))
    run_id = models_made.start_run(tmp_path)
    card = registry.Card(metrics={}, manifest="m", recipe="", lineage="none", revision="r")
    where = registry.register(
        export, uri=uri, name="pets", alias="champion", run_id=run_id, card=card, stride=1
    )
    (answer,) = registry.load(where, uri=uri).predict(
        pandas.DataFrame({"video_path": [str(video)]})
    )
    assert np.allclose(answer["probabilities"], SHARES, atol=1e-6)
    (again,) = models.find(where, storage_root=str(tmp_path), folder=tmp_path / "fetched")
    assert again.export.several
