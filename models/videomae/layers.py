"""Transformer layers: attention, MLP, pre-norm block, stochastic depth.

What: the ViT block of VideoMAE, under the authors' parameter names.
Guarantees: queries and values have a bias, keys have none (it would cancel in the softmax).
LayerNorm epsilon is given. GELU is the exact one. Parameters are only read, so blocks may be
sharded, compiled and checkpointed from outside. Stochastic depth draws from torch's global
generator: whoever needs repeatable runs seeds it before the forward pass.
Cost: attention through torch's fused kernels, memory linear in the number of tokens where the
device has one.

Shapes: B clips, N tokens, D features, h heads, d = D / h features per head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomae.presets import TransformerSize


class Attention(nn.Module):
    """Multi-head self-attention without a key bias."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the parameters: `qkv.weight`, `q_bias`, `v_bias` (zero), `proj`."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Mix the tokens of every clip: x_BND."""
        # One product for the three, as the weight is stored; building the bias costs 3 * D floats.
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv_BN3hd = F.linear(x_BND, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        q_BhNd, k_BhNd, v_BhNd = qkv_BN3hd.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BhNd = F.scaled_dot_product_attention(q_BhNd, k_BhNd, v_BhNd)
        return self.proj(mixed_BhNd.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        """Make `fc1` and `fc2`."""
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Transform every token on its own: x_BND."""
        return self.fc2(F.gelu(self.fc1(x_BND)))


def drop_path(x_BND: Tensor, *, rate: float) -> Tensor:
    """Zero a clip's branch with probability `rate`; scale the others to keep the mean."""
    kept_B11 = x_BND.new_empty(x_BND.shape[0], 1, 1).bernoulli_(1.0 - rate)
    return x_BND * (kept_B11 / (1.0 - rate))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, size: TransformerSize, *, norm_eps: float, drop_path_rate: float) -> None:
        """Make the parameters of one block of a stack of the given size."""
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width, eps=norm_eps)
        self.attn = Attention(size.width, size.heads)
        self.norm2 = nn.LayerNorm(size.width, eps=norm_eps)
        self.mlp = MLP(size.width, size.hidden)
        self.drop_path_rate = drop_path_rate

    def forward(self, x_BND: Tensor) -> Tensor:
        """Add what attention and MLP make of the tokens: x_BND."""
        x_BND = x_BND + self._branch(self.attn(self.norm1(x_BND)))
        return x_BND + self._branch(self.mlp(self.norm2(x_BND)))

    def _branch(self, x_BND: Tensor) -> Tensor:
        if self.training and self.drop_path_rate > 0.0:
            return drop_path(x_BND, rate=self.drop_path_rate)
        return x_BND


def make_blocks(size: TransformerSize, *, norm_eps: float, drop_path: float) -> nn.ModuleList:
    """Stack blocks whose stochastic depth grows evenly from 0 to `drop_path`."""
    last = max(size.depth - 1, 1)
    rates = [drop_path * index / last for index in range(size.depth)]
    return nn.ModuleList(Block(size, norm_eps=norm_eps, drop_path_rate=rate) for rate in rates)
