"""The fixed sin-cos position table.

What: `sinusoid_table` is the authors' table; `Positions` holds it for a model. A token's position
is its index in (time, row, column) order, one number, not three: the table is the 1-D one of the
original Transformer. At another clip size the table is either recomputed for the new length
("recomputed", what VideoMAE does) or the published table is interpolated on its 8 x 14 x 14 grid
("interpolated"), so that a token keeps the code of the place it had.
Guarantees: computed in float64 on the CPU, then rounded to float32, so it is the same on every
device. It is not in the state dict. A model built on the meta device, or moved with `to_empty`,
calls `reset` to have it computed.
Cost: N x D floats per stack of blocks; some 0.1 s for ViT-B.

Shapes: N tokens, D features, V chosen tokens, B clips.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomae.presets import ModelConfig

Grid = tuple[int, int, int]


def sinusoid_table(tokens: int, width: int) -> Tensor:
    """Return the table of `tokens` positions in float64, shape (tokens, width).

    Entry (i, j) is the sine (j even) or cosine (j odd) of i / 10000^(2 floor(j / 2) / width).
    """
    feature_D = np.arange(width)
    angle_ND = np.arange(tokens)[:, None] / np.power(10000.0, 2 * (feature_D // 2) / width)
    return torch.from_numpy(np.where(feature_D % 2 == 0, np.sin(angle_ND), np.cos(angle_ND)))


def interpolate_table(table_ND: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resample a table from one token grid to another: bicubic in space, linear in time.

    Args:
        table_ND: one row per token of `source`, in (time, row, column) order.
        source: tokens along time, height and width of the table.
        target: the same of the result.

    Returns:
        The table of `target`; the given one, unchanged, if the grids are equal.
    """
    assert table_ND.shape[0] == math.prod(source), "the table must have one row per source token"
    if source == target:
        return table_ND
    x_TDHW = table_ND.unflatten(0, source).permute(0, 3, 1, 2)
    if source[1:] != target[1:]:
        x_TDHW = F.interpolate(x_TDHW, size=target[1:], mode="bicubic", align_corners=False)
    x_NDT = x_TDHW.permute(2, 3, 1, 0).flatten(0, 1)
    if source[0] != target[0]:
        x_NDT = F.interpolate(x_NDT, size=target[0], mode="linear", align_corners=False)
    return x_NDT.permute(2, 0, 1).reshape(math.prod(target), -1)


class Positions(nn.Module):
    """The position table of one stack of blocks, as a buffer that is not saved."""

    table_ND: Tensor

    def __init__(self, config: ModelConfig, width: int) -> None:
        """Make the table for clips of `config` and features of `width`.

        On the meta device only its shape is made.
        """
        super().__init__()
        self._config = config
        table_ND = torch.empty(config.tokens, width, dtype=torch.float32)
        self.register_buffer("table_ND", table_ND, persistent=False)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Compute the table in place; needed after `to_empty`, does nothing on the meta device."""
        if self.table_ND.is_meta:
            return
        config, width = self._config, self.table_ND.shape[1]
        with torch.device("cpu"):
            if config.positions == "recomputed":
                table_ND = sinusoid_table(config.tokens, width)
            else:
                published_ND = sinusoid_table(math.prod(config.preset_grid), width)
                table_ND = interpolate_table(published_ND, config.preset_grid, config.grid)
        self.table_ND.copy_(table_ND)

    def forward(self, token_BV: Tensor | None = None) -> Tensor:
        """Return the rows of the given tokens, shape (B, V, D), or the whole table, (1, N, D)."""
        if token_BV is None:
            return self.table_ND[None]
        return F.embedding(token_BV, self.table_ND)


def reset_positions(model: nn.Module) -> None:
    """Compute the position tables of a model that came from the meta device through `to_empty`."""
    for module in model.modules():
        if isinstance(module, Positions):
            module.reset()
