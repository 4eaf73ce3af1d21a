"""Probes: small heads that show what a frozen encoder's features hold.

What: `LinearProbe` takes one vector a video, standardised by the training videos' mean and
deviation, as the batch norm without parameters of MAE's linear probing does (He et al. 2022,
A.1); `AttentiveProbe` takes all tokens: a learned query attends to them, an MLP and a linear layer
follow (V-JEPA, Bardes et al. 2024, section 3.2); `neighbours` lets the nearest training videos
vote (DINO, Caron et al. 2021, section 4.1).
Guarantees: plain modules and functions; nothing is drawn but initial weights, from torch's global
generator.
Cost: of `neighbours` one matrix product of all training vectors.

Shapes: B videos, N tokens, D features, K classes, R training videos.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TEMPERATURE = 0.07  # of the votes, as DINO's


class LinearProbe(nn.Module):
    """One linear layer on standardised vectors."""

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, mean_D: Tensor, deviation_D: Tensor, *, num_classes: int) -> None:
        """Start from zero, where all classes are equally likely.

        Args:
            mean_D: of the training videos.
            deviation_D: of the training videos; a feature that does not vary is left out.
            num_classes: number of classes.
        """
        super().__init__()
        varies_D = deviation_D > 1e-6
        self.register_buffer("mean_D", mean_D)
        self.register_buffer("scale_D", torch.where(varies_D, 1 / deviation_D.clamp(min=1e-6), 0))
        self.head = nn.Linear(len(mean_D), num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Logits, [B, K]."""
        return self.head((x_BD - self.mean_D) * self.scale_D)


class AttentiveProbe(nn.Module):
    """A learned query over the tokens, an MLP, one linear layer."""

    def __init__(self, width: int, *, num_classes: int) -> None:
        """Make the probe.

        Args:
            width: features of a token; attention heads have 64 of them each.
            num_classes: number of classes.
        """
        super().__init__()
        # Here, since a registered model carries this package to where timm is not.
        from timm.layers import AttentionPoolLatent

        heads = max(1, width // 64)
        self.pool = AttentionPoolLatent(width, num_heads=heads if width % heads == 0 else 1)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        nn.init.zeros_(self.head.bias)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Logits, [B, K]."""
        return self.head(self.norm(self.pool(x_BND)))


@torch.no_grad()
def neighbours(
    query_BD: Tensor, bank_RD: Tensor, class_R: Tensor, *, k: list[int], num_classes: int
) -> list[Tensor]:
    """Let the nearest training videos vote, the nearer the more: exp(cosine / 0.07).

    Args:
        query_BD: vectors of the videos in question.
        bank_RD: of the training videos.
        class_R: their classes.
        k: how many of them vote; all there are, where that is more.
        num_classes: number of classes.

    Returns:
        For each of `k` the share of the votes of each class, [B, K].
    """
    cosine_BR = F.normalize(query_BD, dim=1) @ F.normalize(bank_RD, dim=1).T
    best = cosine_BR.topk(min(max(k), len(bank_RD)), dim=1)
    weight_BM = ((best.values - 1) / _TEMPERATURE).exp()  # at most 1: nothing overflows
    class_BM = class_R[best.indices]
    found: list[Tensor] = []
    for few in k:
        votes_BK = torch.zeros(len(query_BD), num_classes, device=query_BD.device)
        votes_BK.scatter_add_(1, class_BM[:, :few], weight_BM[:, :few])
        found.append(votes_BK / votes_BK.sum(1, keepdim=True).clamp(min=1e-30))
    return found
