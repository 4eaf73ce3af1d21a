"""Weight files: what is read, what is refused, and how a classifier starts from pretraining."""

import argparse
import io
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from videomae import (
    ModelConfig,
    VideoClassifier,
    VideoMAE,
    build_classifier,
    build_pretraining,
    load_pretrained,
    read_state_dict,
)

CONFIG = ModelConfig("tiny", frames=4, image_size=32, depth=2, decoder_depth=1)


@pytest.fixture
def pretrained() -> VideoMAE:
    torch.manual_seed(0)
    model = build_pretraining(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@pytest.fixture
def classifier() -> VideoClassifier:
    return build_classifier(CONFIG, num_classes=5)


WEIGHTS = {"encoder.norm.weight": torch.arange(3.0), "mask_token": torch.ones(1, 1, 2)}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor] = WEIGHTS) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".pyth"])
@pytest.mark.parametrize("key", ["model", "module", None])
def test_torch_files_are_read_wherever_the_weights_are(
    tmp_path: Path, suffix: str, key: str | None
) -> None:
    path = tmp_path / f"checkpoint{suffix}"
    torch.save({key: OrderedDict(WEIGHTS), "epoch": 3} if key else WEIGHTS, path)
    assert same(read_state_dict(path))


def test_safetensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(WEIGHTS, path)
    assert same(read_state_dict(str(path)))


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "backbone.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_of_wrappers_are_removed_and_the_encoders_is_kept(
    tmp_path: Path, prefix: str
) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": {prefix + name: value for name, value in WEIGHTS.items()}}, path)
    assert same(read_state_dict(path))


@pytest.mark.parametrize("zipped", [True, False])
def test_what_the_authors_store_beside_the_weights_is_no_obstacle(
    tmp_path: Path, zipped: bool
) -> None:
    """Command line, paths, an optimizer whose rates are numpy numbers; also in the old format."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = np.float64(1.5e-4)
    arguments = argparse.Namespace(
        lr=np.float64(1e-3),
        seed=np.int64(1),
        flag=np.bool_(True),
        half=np.float32(0.5),
        output_dir=Path("/tmp/out"),
        opt_betas=[0.9, 0.95],
        device="cuda",
    )
    path = tmp_path / "checkpoint-799.pth"
    torch.save(
        {
            "model": WEIGHTS,
            "optimizer": optimizer.state_dict(),
            "epoch": 799,
            "scaler": {"scale": 65536.0},
            "args": arguments,
        },
        path,
        _use_new_zipfile_serialization=zipped,
    )
    assert same(read_state_dict(path))


def test_scalars_pickled_by_numpy_1_are_read(tmp_path: Path) -> None:
    """numpy 2 moved the constructor; old files name the old place."""
    buffer = io.BytesIO()
    torch.save(
        {"model": WEIGHTS, "lr": np.float64(2.0)}, buffer, _use_new_zipfile_serialization=False
    )
    old = buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert b"cnumpy.core.multiarray\n" in old
    path = tmp_path / "old.pth"
    path.write_bytes(old)
    assert same(read_state_dict(path))


class Bomb:
    """Pickles as a call that leaves a trace when the file is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    torch.save({"model": WEIGHTS, "args": Bomb(trace)}, path, _use_new_zipfile_serialization=zipped)
    message = (
        f"{path}: refused, because it holds more than weights and plain values, and loading it "
        "could run code ("
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        read_state_dict(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the bomb is live: this is what must not happen
    assert trace.exists()


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.bin", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Bomb(trace), protocol=2))
    with pytest.raises(ValueError, match=r"evil\.bin: "):
        read_state_dict(path)
    assert not trace.exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    for name, content in (
        ("cut.pth", whole[: len(whole) // 2]),
        ("empty.pth", b""),
        ("text.pth", b"not weights at all"),
        ("cut.safetensors", b"\x10\x00"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: "):
            read_state_dict(path)


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"x\.pth: holds no weights, but list$"):
        read_state_dict(path)
    torch.save({"epoch": 1, "lr": 2.0}, path)
    message = (
        "x.pth: expected tensors by name, at the top or under 'model' or 'module', but epoch, lr "
        "are something else"
    )
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        read_state_dict(path)
    torch.save({"module.a": torch.ones(1), "a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"tensors are there twice, with and without a prefix$"):
        read_state_dict(path)


def test_unknown_suffix_and_missing_file_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(str(path))}: no such file$"):
        read_state_dict(path)
    path.touch()
    message = (
        f"{path}: unknown kind of weight file; expected one of .safetensors, .pth, .pt, .bin, "
        ".ckpt, .pyth"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_state_dict(path)


def test_mean_pooling_throws_the_pretrained_last_norm_away(
    pretrained: VideoMAE, classifier: VideoClassifier
) -> None:
    head = classifier.head.weight.clone()
    report = load_pretrained(classifier, pretrained.state_dict())
    assert report.missing == ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")
    assert (classifier.fc_norm.weight == 1).all()
    assert not classifier.fc_norm.bias.any()
    assert torch.equal(classifier.head.weight, head)
    assert len(report.matched) == 2 + 2 * 13
    for name in report.matched:
        assert torch.equal(classifier.state_dict()[name], pretrained.encoder.state_dict()[name])
    used = {f"encoder.{name}" for name in report.matched}
    assert set(report.unexpected) == pretrained.state_dict().keys() - used
    assert {"encoder.norm.weight", "encoder.norm.bias"} <= set(report.unexpected)


def test_token_0_pooling_keeps_the_pretrained_last_norm(pretrained: VideoMAE) -> None:
    classifier = build_classifier(CONFIG, num_classes=5, pooling="token0")
    report = load_pretrained(classifier, pretrained.state_dict())
    assert report.missing == ("head.weight", "head.bias")
    assert torch.equal(classifier.norm.weight, pretrained.encoder.norm.weight)


def test_a_head_of_other_classes_stays_out_only_when_that_is_said(
    classifier: VideoClassifier,
) -> None:
    other = build_classifier(CONFIG, num_classes=5, init_scale=1.0)
    report = load_pretrained(classifier, other.state_dict())
    assert (report.missing, report.skipped, report.unexpected) == ((), (), ())
    assert torch.equal(classifier.head.weight, other.head.weight)
    six = build_classifier(CONFIG, num_classes=6)
    with pytest.raises(ValueError, match=r"head\.weight is \[5, 96\], the model has \[6, 96\]"):
        load_pretrained(six, other.state_dict())
    for match in ("body", "any"):
        report = load_pretrained(six, other.state_dict(), match=match)
        assert report.missing == report.skipped == report.unexpected == ("head.weight", "head.bias")
        assert str(report).startswith("loaded 30 of 32 tensors that can match, 94%; fresh: head.w")


@pytest.mark.parametrize(
    ("theirs", "ours", "norm"), [("mean", "token0", "norm"), ("token0", "mean", "fc_norm")]
)
def test_a_fine_tuned_file_of_another_pooling_has_no_norm_for_ours(
    theirs: Any, ours: Any, norm: str
) -> None:
    state = build_classifier(CONFIG, num_classes=5, pooling=theirs).state_dict()
    model = build_classifier(CONFIG, num_classes=5, pooling=ours)
    for match in ("all", "body"):
        with pytest.raises(ValueError, match=rf"\n  missing {norm}\.weight, \[96\]"):
            load_pretrained(model, state, match=match)  # type: ignore[arg-type]
    report = load_pretrained(model, state, match="any")
    assert report.skipped == (f"{norm}.weight", f"{norm}.bias")


def test_anything_loads_what_fits_but_not_nothing(
    pretrained: VideoMAE, classifier: VideoClassifier
) -> None:
    state = pretrained.state_dict()
    state["encoder.blocks.1.mlp.fc1.bias"] = torch.zeros(7)
    state["encoder.blocks.9.norm1.weight"] = torch.zeros(96)
    report = load_pretrained(classifier, state, match="any")
    assert report.skipped == ("blocks.1.mlp.fc1.bias",)
    assert "loaded 27 of 28 tensors that can match, 96%" in str(report)
    assert "encoder.blocks.9.norm1.weight" in report.unexpected
    with pytest.raises(ValueError, match="the weights do not fit"):
        load_pretrained(classifier, {"videomae.layernorm.weight": torch.zeros(96)}, match="any")


def test_report_is_one_line(pretrained: VideoMAE, classifier: VideoClassifier) -> None:
    report = load_pretrained(classifier, pretrained.state_dict())
    assert str(report) == (
        "loaded 28 of 28 tensors that can match, 100%; fresh: fc_norm.weight, fc_norm.bias, head.weight, head.bias; "
        "not used: mask_token, encoder.norm.weight, encoder.norm.bias, decoder.blocks.0.norm1.weight and 17 more"
    )


def test_weights_of_another_model_are_refused_with_names_and_shapes(
    pretrained: VideoMAE, classifier: VideoClassifier
) -> None:
    state = pretrained.state_dict()
    state.pop("encoder.blocks.0.attn.q_bias")
    state["encoder.blocks.1.mlp.fc1.bias"] = torch.zeros(7)
    state["encoder.blocks.2.norm1.weight"] = torch.zeros(96)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole text is compared)
        load_pretrained(classifier, state)
    assert str(caught.value) == (
        "the weights do not fit the model of preset tiny:"
        "\n  missing blocks.0.attn.q_bias, [96]"
        "\n  encoder.blocks.1.mlp.fc1.bias is [7], the model has [384]"
        "\n  unknown encoder.blocks.2.norm1.weight, [96]"
    )
    assert same(dict(classifier.state_dict()), before)


def test_long_lists_of_problems_are_cut(classifier: VideoClassifier) -> None:
    with pytest.raises(ValueError, match=r"\n  and 9 more$") as caught:
        load_pretrained(classifier, {"videomae.layernorm.weight": torch.zeros(96)})
    assert len(str(caught.value).splitlines()) == 1 + 20 + 1


def test_weights_there_twice_are_refused(classifier: VideoClassifier) -> None:
    state = classifier.state_dict()
    state["encoder.head.bias"] = torch.zeros(5)
    message = r"^some weights are there twice, with and without the prefix 'encoder\.'$"
    with pytest.raises(ValueError, match=message):
        load_pretrained(classifier, state)
