"""Sizes of the published models, and the errors of the recipe section `model`."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import nn

from videomae import PRESETS, ModelConfig, build_classifier, build_pretraining
from videomae.presets import PresetName

PRETRAINING = {  # total, encoder, decoder
    "vit_s": (24_029_376, 21_879_936, 2_075_520),
    "vit_b": (94_210_944, 86_227_200, 7_688_448),
    "vit_l": (342_996_992, 303_860_736, 38_611_456),
    "vit_h": (692_487_296, 631_607_040, 60_060_416),
    "vit_l_v2": (317_782_016, 303_860_736, None),
    "vit_h_v2": (645_659_392, 631_607_040, None),
    "vit_g": (1_026_306_560, 1_011_610_752, 13_974_400),
}
FINE_TUNING = {  # 400 classes, 710 classes
    "vit_s": (22_033_936, 22_153_286),
    "vit_b": (86_534_800, 86_773_190),
    "vit_l": (304_270_736, 304_588_486),
    "vit_h": (632_119_440, 632_516_550),
    "vit_l_v2": (304_270_736, 304_588_486),
    "vit_h_v2": (632_119_440, 632_516_550),
    "vit_g": (None, 1_012_611_142),
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("preset", PRETRAINING)
def test_pretraining_models_have_the_published_parameter_counts(preset: PresetName) -> None:
    with torch.device("meta"):
        model = build_pretraining(ModelConfig(preset))
    total, encoder, decoder = PRETRAINING[preset]
    assert (count(model), count(model.encoder)) == (total, encoder)
    assert decoder in (None, count(model.decoder))


@pytest.mark.parametrize("preset", FINE_TUNING)
def test_classifiers_have_the_published_parameter_counts(preset: PresetName) -> None:
    for classes, wanted in zip((400, 710), FINE_TUNING[preset], strict=True):
        with torch.device("meta"):
            model = build_classifier(ModelConfig(preset), num_classes=classes)
        assert wanted in (None, count(model))


def test_every_preset_is_counted_except_the_one_of_ours() -> None:
    assert set(PRESETS) - {"tiny"} == set(PRETRAINING) == set(FINE_TUNING)


def test_grids_of_published_clips() -> None:
    assert ModelConfig("vit_b").grid == (8, 14, 14)
    assert ModelConfig("vit_b").tokens == 1568
    assert ModelConfig("vit_g").grid == (8, 16, 16)
    assert ModelConfig("vit_b").token_values == 1536
    assert ModelConfig("vit_g").token_values == 1176
    assert ModelConfig("vit_b", frames=32, image_size=320, patch_size=8).grid == (16, 40, 40)


def test_giant_rounds_its_hidden_widths_as_published() -> None:
    assert ModelConfig("vit_g").encoder.hidden == 6144
    assert ModelConfig("vit_g").decoder.hidden == 2234


def test_overrides_change_the_preset_and_nothing_else() -> None:
    config = ModelConfig("vit_b", width=96, heads=4, decoder_depth=1, mlp_ratio=2.0)
    assert dataclasses.astuple(config.encoder) == (96, 12, 4, 2.0)
    assert dataclasses.astuple(config.decoder) == (384, 1, 6, 2.0)


def test_configuration_survives_json_and_is_hashable() -> None:
    config = ModelConfig("tiny", frames=8, image_size=48, drop_path=0.1)
    again = ModelConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"preset": "vit_xxl"},
            "model.preset='vit_xxl' is unknown; choose one of tiny, vit_s, vit_b, vit_l, vit_h, "
            "vit_l_v2, vit_h_v2, vit_g",
        ),
        (
            {"positions": "learned"},
            "model.positions='learned' is unknown; choose one of recomputed, interpolated",
        ),
        (
            {"frames": 15},
            "model.frames=15 is not divisible by model.tubelet_size=2; use 14 or 16, or another "
            "model.tubelet_size",
        ),
        (
            {"frames": 1},
            "model.frames=1 is not divisible by model.tubelet_size=2; use 2, or another "
            "model.tubelet_size",
        ),
        (
            {"image_size": 230},
            "model.image_size=230 is not divisible by model.patch_size=16; use 224 or 240, or "
            "another model.patch_size",
        ),
        (
            {"width": 100},
            "model.width=100 is not divisible by model.heads=12; use 96 or 108, or another "
            "model.heads",
        ),
        (
            {"decoder_heads": 5},
            "model.decoder_width=384 is not divisible by model.decoder_heads=5; use 380 or 385, "
            "or another model.decoder_heads",
        ),
        ({"depth": 0}, "model.depth=0 must be at least 1"),
        ({"patch_size": -1}, "model.patch_size=-1 must be at least 1"),
        ({"norm_eps": 0.0}, "model.norm_eps=0.0 must be a positive number"),
        ({"mlp_ratio": float("nan")}, "model.mlp_ratio=nan must be a positive number"),
        (
            {"mlp_ratio": 0.0001},
            "model.mlp_ratio=0.0001 of model.width=768 leaves no hidden feature; use a larger "
            "ratio",
        ),
        ({"drop_path": 1.0}, "model.drop_path=1.0 must be at least 0 and below 1"),
    ],
)
def test_impossible_models_are_refused_in_the_words_of_the_recipe(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole text is compared)
        ModelConfig(**fields)
    assert str(caught.value) == message
