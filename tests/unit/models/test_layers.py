"""The transformer block against a slow reference, and stochastic depth."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from videomae.layers import MLP, Attention, Block, drop_path, make_blocks
from videomae.presets import TransformerSize

SIZE = TransformerSize(width=12, depth=4, heads=3, mlp_ratio=2.5)


def randomise(module: torch.nn.Module) -> None:
    """Fill all parameters: zero biases would hide a swap of q and v."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()


def slow_attention(attention: Attention, x: Tensor) -> Tensor:
    """Explicit softmax, head by head; q has a bias, v has one, k none."""
    width = x.shape[-1]
    q = x @ attention.qkv.weight[:width].T + attention.q_bias
    k = x @ attention.qkv.weight[width : 2 * width].T
    v = x @ attention.qkv.weight[2 * width :].T + attention.v_bias
    d = width // attention.heads
    mixed = [
        torch.softmax(q[..., s] @ k[..., s].transpose(-1, -2) / math.sqrt(d), dim=-1) @ v[..., s]
        for s in (slice(h * d, h * d + d) for h in range(attention.heads))
    ]
    return F.linear(torch.cat(mixed, -1), attention.proj.weight, attention.proj.bias)


def test_attention_equals_an_explicit_softmax_with_query_and_value_biases() -> None:
    torch.manual_seed(0)
    attention = Attention(12, 3).double()
    randomise(attention)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(attention(x), slow_attention(attention, x))


def test_block_adds_attention_and_mlp_of_normalised_tokens() -> None:
    torch.manual_seed(0)
    block = Block(SIZE, norm_eps=0.5, drop_path_rate=0.3).double().eval()
    randomise(block)
    x = torch.randn(2, 7, 12, dtype=torch.float64)

    def norm(layer: torch.nn.LayerNorm, y: Tensor) -> Tensor:
        centred = y - y.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 0.5).sqrt()
        return centred / scale * layer.weight + layer.bias

    def gelu(y: Tensor) -> Tensor:
        return y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))

    y = x + slow_attention(block.attn, norm(block.norm1, x))
    z = norm(block.norm2, y) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    wanted = y + gelu(z) @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    torch.testing.assert_close(block(x), wanted)


def test_parameters_have_the_authors_names() -> None:
    names = set(Block(SIZE, norm_eps=1e-6, drop_path_rate=0.0).state_dict())
    assert names == {
        *("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"),
        *("attn.q_bias", "attn.v_bias", "attn.qkv.weight", "attn.proj.weight", "attn.proj.bias"),
        *("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
    }


def test_mlp_has_the_given_hidden_width() -> None:
    assert MLP(12, 30).fc1.weight.shape == (30, 12)


def test_drop_path_zeroes_whole_clips_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(4000, 2, 3), rate=0.25)
    values = dropped.flatten(1)
    assert (values == values[:, :1]).all()
    torch.testing.assert_close(values.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert values[:, 0].mean().item() == pytest.approx(1.0, abs=0.03)


def test_drop_path_repeats_with_the_seed_of_torch() -> None:
    block = Block(SIZE, norm_eps=1e-6, drop_path_rate=0.5)
    x = torch.randn(16, 3, 12)
    torch.manual_seed(5)
    first = block(x)
    torch.manual_seed(5)
    assert torch.equal(block(x), first)
    assert not torch.equal(block(x), first)


def test_drop_path_is_off_in_evaluation_and_grows_evenly_with_depth() -> None:
    blocks = make_blocks(SIZE, norm_eps=1e-6, drop_path=0.3)
    rates = [block.drop_path_rate for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    x = torch.randn(8, 3, 12)
    last = blocks[-1].eval()
    assert torch.equal(last(x), last(x))
    single = make_blocks(TransformerSize(12, 1, 3, 2.0), norm_eps=1e-6, drop_path=0.3)
    assert [block.drop_path_rate for block in single] == [0.0]


def test_blocks_compile_whole() -> None:
    """No graph break: the platform compiles block by block."""
    block = Block(SIZE, norm_eps=1e-6, drop_path_rate=0.1)
    x = torch.randn(2, 5, 12)
    block.eval()
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), block(x))
