"""Models saved and run by the authors' code: ours must give the same numbers.

Every parameter in those files is random, so that a swapped or dropped tensor shows.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from videomae import (
    ModelConfig,
    build_classifier,
    build_pretraining,
    load_pretrained,
    read_state_dict,
)

CONFIG = ModelConfig(
    "vit_b",
    image_size=32,
    width=48,
    depth=2,
    heads=3,
    decoder_width=24,
    decoder_depth=2,
    decoder_heads=1,
)


@pytest.fixture
def official(shared: Path) -> Path:
    folder = shared / "peers" / "official"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/peers/official, which is not beside this checkout")
    return folder


def arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_pretraining_gives_the_authors_predictions_and_loss(official: Path) -> None:
    theirs = arrays(official / "pretrain_io.npz")
    model = build_pretraining(CONFIG).eval()
    model.load_state_dict(read_state_dict(official / "pretrain.pth"))  # strict: names and shapes
    with torch.no_grad():
        ours = model(theirs["x_bcthw"], theirs["mask"])
    torch.testing.assert_close(ours.predictions_BMP, theirs["pred_masked"], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.loss_B.mean(), theirs["loss"], atol=1e-5, rtol=0)


def test_classifier_gives_the_authors_logits(official: Path) -> None:
    theirs = arrays(official / "finetune_io.npz")
    model = build_classifier(CONFIG, num_classes=7).eval()
    report = load_pretrained(model, read_state_dict(official / "finetune.pth"))
    assert (report.missing, report.unexpected) == ((), ())
    with torch.no_grad():
        logits = model(theirs["x_bcthw"])
    torch.testing.assert_close(logits, theirs["logits"], atol=1e-5, rtol=0)


def test_fine_tuning_starts_from_the_authors_pretraining_file(official: Path) -> None:
    state = read_state_dict(official / "pretrain.pth")
    model = build_classifier(CONFIG, num_classes=7)
    report = load_pretrained(model, state)
    assert len(report.matched) == 2 + 2 * 13
    assert report.missing == ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")
    assert "encoder.norm.weight" in report.unexpected
    for name in report.matched:
        assert torch.equal(model.state_dict()[name], state["encoder." + name])
    assert (model.fc_norm.weight == 1).all()
