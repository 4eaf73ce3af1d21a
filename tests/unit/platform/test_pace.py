"""A model is asked at the pace it was trained at."""

from pathlib import Path

import pytest
import torch

from clips import ClipConfig
from tubelet import handover, models, pace
from tubelet.config import UserError
from tubelet.evaluation import judge
from videomae import ModelConfig, build_classifier

MODEL = ModelConfig(preset="tiny", frames=4, image_size=16, depth=1)


def source(folder: Path, clip: ClipConfig | None) -> models.Source:
    """A model that was trained with such clips; None: an export from before that was noted."""
    torch.manual_seed(0)
    state = build_classifier(MODEL, num_classes=2).state_dict()
    notes = {"stride": 3} if clip is None else pace.written(clip)
    handover.write(str(folder), state, MODEL, extra=notes, class_names=("a", "b"))
    return models.find_one(str(folder), storage_root=str(folder), folder=folder)


@pytest.mark.parametrize(
    ("trained", "asked"),
    [
        (None, ClipConfig(stride=3)),
        (ClipConfig(stride=2, fps=12.5), ClipConfig(stride=2, fps=12.5)),
        (ClipConfig(stride=4, sampling="window"), ClipConfig(stride=4)),
        (ClipConfig(sampling="segments"), ClipConfig(sampling="segments")),
    ],
)
def test_clips_are_taken_as_in_training(
    tmp_path: Path, trained: ClipConfig | None, asked: ClipConfig
) -> None:
    found = source(tmp_path, trained)
    assert found.clip() == asked
    assert found.clip(stride=7).stride == 7


def test_models_of_another_pace_are_not_judged_in_one_pass(tmp_path: Path) -> None:
    from motion import motion_manifest

    manifest = motion_manifest(tmp_path / "videos", training=2)
    pair = [
        source(tmp_path / name, ClipConfig(stride=2, fps=fps))
        for name, fps in (("fast", 25.0), ("slow", None))
    ]
    with pytest.raises(
        UserError, match="differ in classes, size of clips, stride, sampling or frame rate"
    ):
        judge.check(manifest, pair)
