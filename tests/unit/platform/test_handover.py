"""The hand-over between jobs: what one job exports, another reads, wherever it lies."""

import dataclasses
import io
from pathlib import Path

import fsspec
import pytest
import torch

from clips import storage
from tubelet import handover
from videomae import ModelConfig, build_classifier, build_pretraining

CONFIG = ModelConfig(preset="tiny", frames=4, image_size=16, depth=1, decoder_depth=1)
NAMES = ("left", "right", "up")


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_classifier(CONFIG, num_classes=3).state_dict()


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "runs" / "one" / "export")
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/runs/one/export"


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_what_was_written_is_read_back(place: str, weights: dict[str, torch.Tensor]) -> None:
    handover.write(place, weights, CONFIG, extra={"stride": 4}, class_names=NAMES)
    found = handover.read(place)
    assert (found.kind, found.config, found.class_names) == ("classifier", CONFIG, NAMES)
    assert found.extra == {"stride": 4}
    assert equal(found.state_dict, weights)


def test_weights_are_found_by_the_export_and_by_the_runs_folder(
    place: str, weights: dict[str, torch.Tensor]
) -> None:
    handover.write(place, weights, CONFIG, extra={})
    assert equal(handover.read_weights(place), weights)
    assert equal(handover.read_weights(place.removesuffix("/export")), weights)
    assert equal(handover.read_weights(f"{place}/model.safetensors"), weights)


def test_weights_are_read_from_an_authors_file(place: str) -> None:
    state = build_pretraining(CONFIG).state_dict()
    uri = f"{place}/checkpoint.pth"
    file = io.BytesIO()
    torch.save({"model": state, "epoch": 799}, file)
    storage.write_bytes(uri, file.getvalue())
    assert equal(handover.read_weights(uri), state)


def test_an_interrupted_export_does_not_exist_for_readers(
    place: str, weights: dict[str, torch.Tensor]
) -> None:
    handover.write(place, weights, CONFIG, extra={})
    storage.remove(f"{place}/config.json")
    message = r"^neither an export folder \(model.safetensors and config.json\), nor a finished run"
    with pytest.raises(ValueError, match=message):
        handover.read_weights(place)


def test_writing_again_replaces_the_export(place: str, weights: dict[str, torch.Tensor]) -> None:
    handover.write(place, weights, CONFIG, extra={"step": 1}, class_names=NAMES)
    other = {name: value + 1 for name, value in weights.items()}
    handover.write(place, other, CONFIG, extra={"step": 2}, class_names=NAMES)
    found = handover.read(place)
    assert found.extra == {"step": 2}
    assert equal(found.state_dict, other)


def test_a_local_export_is_used_in_place_and_a_remote_one_copied(
    place: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    handover.write(place, weights, CONFIG, extra={})
    fetched = handover.fetch(place, tmp_path / "copy")
    if storage.is_local(place):
        assert fetched == Path(place)
        assert not (tmp_path / "copy").exists()
    else:
        assert fetched == tmp_path / "copy"
        assert sorted(p.name for p in fetched.iterdir()) == ["config.json", "model.safetensors"]


def test_weights_that_are_not_the_configurations_are_not_written(
    place: str, weights: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ValueError, match="cannot export"):
        handover.write(place, weights, dataclasses.replace(CONFIG, width=48), extra={})
    assert not storage.exists(f"{place}/model.safetensors")
