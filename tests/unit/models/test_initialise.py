"""Fresh weights: the authors' by default, Xavier everywhere for narrow models."""

import math

import pytest
import torch

from videomae import ModelConfig, VideoClassifier, VideoMAE, build_classifier, build_pretraining

TINY = {"preset": "tiny", "frames": 4, "image_size": 32}


def _spread(weight: torch.Tensor) -> float:
    return float(weight.detach().std())


def _xavier(fan_in: int, fan_out: int) -> float:
    return math.sqrt(2 / (fan_in + fan_out))


def _built(init: str) -> list[VideoMAE | VideoClassifier]:
    torch.manual_seed(0)
    config = ModelConfig(**TINY, init=init)  # pyright: ignore[reportArgumentType]
    return [build_pretraining(config), build_classifier(config, num_classes=8, init_scale=1.0)]


def test_the_authors_embedding_keeps_a_convolutions_default() -> None:
    pretraining, classifier = _built("authors")
    assert isinstance(pretraining, VideoMAE)
    assert isinstance(classifier, VideoClassifier)
    values = 3 * 2 * 8 * 8
    for embedding in (pretraining.encoder.patch_embed, classifier.patch_embed):
        assert _spread(embedding.proj.weight) == pytest.approx(
            math.sqrt(1 / (3 * values)), rel=0.02
        )


def test_xavier_takes_the_embedding_for_the_linear_map_it_is() -> None:
    pretraining, classifier = _built("xavier")
    assert isinstance(pretraining, VideoMAE)
    assert isinstance(classifier, VideoClassifier)
    for embedding in (pretraining.encoder.patch_embed, classifier.patch_embed):
        width, *kernel = embedding.proj.weight.shape
        assert _spread(embedding.proj.weight) == pytest.approx(
            _xavier(math.prod(kernel), width), rel=0.02
        )
        assert embedding.proj.bias is not None
        assert not embedding.proj.bias.any()


def test_a_classifiers_layers_are_the_authors_or_xaviers_and_its_head_always_small() -> None:
    for init, expected in (("authors", 0.02), ("xavier", _xavier(96, 4 * 96))):
        _, classifier = _built(init)
        assert isinstance(classifier, VideoClassifier)
        weight = classifier.state_dict()["blocks.0.mlp.fc1.weight"]
        assert _spread(weight) == pytest.approx(expected, rel=0.03)
        assert _spread(classifier.head.weight) == pytest.approx(0.02, rel=0.1)


def test_an_unknown_initialisation_is_refused_with_those_allowed() -> None:
    with pytest.raises(
        ValueError, match=r"model\.init='ones' is unknown; choose one of authors, xavier"
    ):
        ModelConfig(**TINY, init="ones")  # pyright: ignore[reportArgumentType]
