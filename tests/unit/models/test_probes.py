"""Probes and the frozen encoder, against what they are defined by."""

import pytest
import torch

from videomae import (
    AttentiveProbe,
    FrozenEncoder,
    LinearProbe,
    ModelConfig,
    build_classifier,
    build_pretraining,
    neighbours,
    patchify,
    random_encoder,
)

CONFIG = ModelConfig(preset="tiny", frames=4, image_size=32, patch_size=8, depth=2)


def clips_of(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, CONFIG.frames, 32, 32, generator=generator)


def test_a_frozen_pretraining_model_gives_its_encoders_tokens_with_nothing_hidden() -> None:
    model = build_pretraining(CONFIG).eval()
    clips = clips_of(2)
    tokens = torch.arange(CONFIG.tokens).expand(2, -1)
    patches = patchify(clips, tubelet_size=CONFIG.tubelet_size, patch_size=CONFIG.patch)
    with torch.no_grad():
        expected = model.encoder(patches, tokens)
    frozen = FrozenEncoder(CONFIG, model.state_dict())
    found = frozen(clips)
    assert found.shape == (2, CONFIG.tokens, CONFIG.encoder.width)
    assert torch.equal(found, expected)
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("pooling", ["mean", "token0"])
def test_a_frozen_classifier_has_its_own_last_norm(pooling: str) -> None:
    model = build_classifier(CONFIG, num_classes=3, pooling=pooling, init_scale=1.0).eval()  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in ("fc_norm.weight", "norm.weight"):
                parameter.uniform_(0.5, 2.0)
    seen: list[torch.Tensor] = []

    def see(_block: object, _given: object, out: torch.Tensor) -> None:
        seen.append(out)

    list(model.blocks)[-1].register_forward_hook(see)
    clips = clips_of(1)
    with torch.no_grad():
        model(clips)
        expected = model.get_submodule("fc_norm" if pooling == "mean" else "norm")(seen[0])
    assert torch.allclose(FrozenEncoder(CONFIG, model.state_dict())(clips), expected, atol=1e-6)


def test_weights_of_another_size_are_told_by_name_and_shape() -> None:
    state = build_pretraining(CONFIG).state_dict()
    del state["encoder.blocks.1.mlp.fc1.weight"]
    state["encoder.norm.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"do not fit an encoder of preset tiny") as caught:
        FrozenEncoder(CONFIG, state)
    assert "missing blocks.1.mlp.fc1.weight" in str(caught.value)
    assert "norm.bias is [3], the model has [" in str(caught.value)
    deeper = build_pretraining(ModelConfig(preset="tiny", frames=4, image_size=32, patch_size=8))
    with pytest.raises(ValueError, match=r"unknown blocks\.2\."):
        FrozenEncoder(CONFIG, deeper.state_dict())


def test_a_random_encoder_is_its_seeds_and_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (random_encoder(CONFIG, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "encoder.blocks.0.mlp.fc1.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_a_linear_probe_standardises_and_leaves_out_what_does_not_vary() -> None:
    x_RD = torch.randn(50, 4) * torch.tensor([1.0, 100.0, 0.0, 1e-3]) + 5
    deviation, mean = torch.std_mean(x_RD, dim=0, correction=0)
    probe = LinearProbe(mean, deviation, num_classes=2)
    assert torch.equal(probe(x_RD), torch.zeros(50, 2))  # at the start all classes are alike
    torch.nn.init.eye_(probe.head.weight)
    with torch.no_grad():
        probe.head.weight = torch.nn.Parameter(torch.eye(4))
        probe.head.bias = torch.nn.Parameter(torch.zeros(4))
        seen = probe(x_RD)
    assert torch.allclose(seen.mean(0), torch.zeros(4), atol=1e-3)
    assert torch.allclose(seen.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0, 1.0]), atol=1e-2)


def test_an_attentive_probe_finds_one_token_among_many_wherever_it_is() -> None:
    """A mean of 64 tokens dilutes the one that tells; attention need not."""
    torch.manual_seed(0)
    marks = torch.randn(2, 16) * 4

    def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        classes = torch.randint(2, (count,))
        x_BND = torch.randn(count, 64, 16)
        x_BND[torch.arange(count), torch.randint(64, (count,))] = marks[classes]
        return x_BND, classes

    probe = AttentiveProbe(16, num_classes=2)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=3e-3)
    for _ in range(300):
        x_BND, classes = batch(64)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(probe(x_BND), classes).backward()
        optimizer.step()
    x_BND, classes = batch(500)
    assert (probe(x_BND).argmax(1) == classes).float().mean() > 0.95


def test_neighbours_vote_by_cosine() -> None:
    bank = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.0, 3.0], [-1.0, 0.2]])
    classes = torch.tensor([0, 0, 1, 1, 2])
    query = torch.tensor([[5.0, 0.2], [0.1, 9.0]])
    one, three, more = neighbours(query, bank, classes, k=[1, 3, 100], num_classes=3)
    assert one.argmax(1).tolist() == three.argmax(1).tolist() == [0, 1]
    assert torch.equal(one[0], torch.tensor([1.0, 0.0, 0.0]))
    cosine = torch.nn.functional.cosine_similarity(query[0][None], bank)
    weight = (cosine / 0.07).exp()
    best = weight.topk(3).indices
    expected = torch.stack(
        [sum((weight[i] for i in best if classes[i] == k), torch.tensor(0.0)) for k in range(3)]
    )
    assert torch.allclose(three[0], expected / expected.sum(), atol=1e-6)
    assert torch.allclose(more.sum(1), torch.ones(2))  # more than there are: all vote
