"""The hand-over folder: what is written comes back, and what does not fit is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from videomae import (
    ModelConfig,
    build_classifier,
    build_pretraining,
    load_export,
    read_state_dict,
    save_export,
)

CONFIG = ModelConfig("tiny", frames=4, image_size=32, depth=1, decoder_depth=1, norm_eps=1e-5)


def test_pretraining_model_comes_back(tmp_path: Path) -> None:
    model = build_pretraining(CONFIG)
    save_export(tmp_path / "new" / "export", model.state_dict(), CONFIG, {"step": 1200})
    export = load_export(str(tmp_path / "new" / "export"))
    assert export.config == CONFIG
    assert (export.kind, export.pooling, export.num_classes) == ("pretrain", None, None)
    assert export.class_names is None
    assert export.mean == pytest.approx((0.485, 0.456, 0.406))
    assert export.std == pytest.approx((0.229, 0.224, 0.225))
    assert export.extra == {"step": 1200}
    again = build_pretraining(export.config)
    again.load_state_dict(export.state_dict)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("pooling", ["mean", "token0"])
def test_classifier_comes_back(tmp_path: Path, pooling: Any) -> None:
    model = build_classifier(CONFIG, num_classes=3, pooling=pooling, init_scale=1.0).eval()
    save_export(tmp_path, model.state_dict(), CONFIG, class_names=["run", "sit", "fly"])
    export = load_export(tmp_path)
    assert (export.kind, export.pooling, export.num_classes) == ("classifier", pooling, 3)
    assert export.class_names == ("run", "sit", "fly")
    again = build_classifier(CONFIG, num_classes=3, pooling=pooling).eval()
    again.load_state_dict(export.state_dict)
    clips = torch.randn(2, 3, 4, 32, 32)
    assert torch.equal(again(clips), model(clips))


def test_weights_file_is_plain_safetensors_under_the_authors_names(tmp_path: Path) -> None:
    model = build_pretraining(CONFIG)
    save_export(tmp_path, model.state_dict(), CONFIG)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json"}
    assert read_state_dict(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


def test_tensors_that_are_not_contiguous_or_share_memory_are_written(tmp_path: Path) -> None:
    state = build_pretraining(CONFIG).state_dict()
    weight = torch.randn(64, 96).T
    state["encoder_to_decoder.weight"] = weight.T
    whole = torch.randn(2 * 96)
    state["encoder.norm.weight"], state["encoder.norm.bias"] = whole[:96], whole[96:]
    state["encoder.blocks.0.norm1.bias"] = whole[:96]
    save_export(tmp_path, state, CONFIG)
    found = load_export(tmp_path).state_dict
    for name, value in state.items():
        assert torch.equal(found[name], value), name


def test_exports_of_other_sizes_keep_their_dtype(tmp_path: Path) -> None:
    save_export(tmp_path, build_pretraining(CONFIG).bfloat16().state_dict(), CONFIG)
    assert {value.dtype for value in load_export(tmp_path).state_dict.values()} == {torch.bfloat16}


def test_saving_weights_of_another_configuration_is_refused(tmp_path: Path) -> None:
    state = build_pretraining(CONFIG).state_dict()
    state.pop("decoder.head.bias")
    state["extra"] = torch.zeros(2)
    state["encoder.norm.bias"] = torch.zeros(3)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole text is compared)
        save_export(tmp_path, state, CONFIG)
    assert str(caught.value) == (
        "cannot export: the weights are not those of the configuration:"
        "\n  missing decoder.head.bias, [384]"
        "\n  unknown extra, [2]"
        "\n  encoder.norm.bias is [3], the model has [96]"
    )
    assert not list(tmp_path.iterdir())


def test_saving_anything_else_is_refused(tmp_path: Path) -> None:
    message = (
        "cannot export: these weights are neither a VideoMAE's (mask_token) nor a "
        "VideoClassifier's (head.weight)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        save_export(tmp_path, {"x": torch.zeros(1)}, CONFIG)
    state = build_classifier(CONFIG, num_classes=3).state_dict()
    with pytest.raises(ValueError, match=r"^cannot export: 2 class names for 3 classes$"):
        save_export(tmp_path, state, CONFIG, class_names=["a", "b"])
    state = build_pretraining(CONFIG).state_dict()
    with pytest.raises(ValueError, match=r"^cannot export: 1 class names for no classes$"):
        save_export(tmp_path, state, CONFIG, class_names=["a"])


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_incomplete_and_foreign_exports_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError, match=r"no such file, so .* is no complete export$"):
        load_export(tmp_path)
    save_export(tmp_path, build_pretraining(CONFIG).state_dict(), CONFIG)
    saved = config.read_text()

    def refusal() -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (texts are compared below)
            load_export(tmp_path)
        config.write_text(saved)
        return str(caught.value)

    edit(tmp_path, format=2)
    assert refusal() == f"{config}: format 2, but this version reads format 1"
    edit(tmp_path, model={"preset": "tiny", "window": 7})
    assert refusal() == (
        f"{config}: unknown model fields ['window']; the export comes from a newer version"
    )
    edit(tmp_path, model={"preset": "tiny", "frames": 3})
    assert refusal().startswith(
        f"{config}: model.frames=3 is not divisible by model.tubelet_size=2"
    )
    config.write_text('{"architectures": ["VideoMAEForPreTraining"]}')
    assert refusal() == f"{config}: not a tubelet export (KeyError('format'))"
    config.write_text("{")
    assert refusal().startswith(f"{config}: ")
    edit(tmp_path, model={"preset": "tiny", "frames": 4, "image_size": 32})
    assert refusal().startswith(
        f"{tmp_path}: the weights are not those of the configuration:\n  missing encoder.blocks.1."
    )
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: no such file$"):
        load_export(tmp_path)


def test_an_interrupted_save_leaves_no_folder_that_looks_complete(tmp_path: Path) -> None:
    state = build_pretraining(CONFIG).state_dict()
    save_export(tmp_path, state, CONFIG)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()  # writing the weights fails
    with pytest.raises(Exception, match=r"(?i)directory|I/O|os error"):
        save_export(tmp_path, state, CONFIG)
    assert not (tmp_path / "config.json").exists()
