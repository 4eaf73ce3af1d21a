"""The encoder with a classification head, for fine-tuning and prediction.

What: all tokens of a clip through the encoder's blocks, pooled, normalised, one linear layer.
Guarantees: names and shapes of the state dict are the authors' (`blocks.*`, `fc_norm.*`,
`head.*`); weights saved by their code load and give its logits (tested with a small model). With
mean pooling there is no norm before the pooling and a fresh one, `fc_norm`, after it; with token 0
(VideoMAE has no class token: it is the first patch) the norm before it is `norm`, and there is
none after. Built on the meta device: `reset_parameters()` after `to_empty`, or `reset_positions()`
if weights are loaded.
Cost: attention over all tokens, ten times the pretraining encoder's.

Shapes: B clips, N tokens, D features, K classes.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from videomae import positions
from videomae.initialise import truncated_normal, xavier, xavier_embedding
from videomae.layers import make_blocks
from videomae.patches import TubeletEmbedding, clip_patches
from videomae.positions import Positions
from videomae.presets import ModelConfig

Pooling = Literal["mean", "token0"]


class VideoClassifier(nn.Module):
    """Vision transformer over all tokens of a clip, with a linear head."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_classes: int,
        pooling: Pooling,
        head_dropout: float,
        init_scale: float,
    ) -> None:
        """Make the model with the authors' initialisation; see `build_classifier`."""
        super().__init__()
        size = config.encoder
        self.config = config
        self.pooling = pooling
        self.init_scale = init_scale
        self.patch_embed = TubeletEmbedding(config, size.width)
        self.positions = Positions(config, size.width)
        self.blocks = make_blocks(size, norm_eps=config.norm_eps, drop_path=config.drop_path)
        if pooling == "mean":
            last_eps = config.norm_eps if config.fc_norm_eps is None else config.fc_norm_eps
            self.fc_norm = nn.LayerNorm(size.width, eps=last_eps)
        else:
            self.norm = nn.LayerNorm(size.width, eps=config.norm_eps)
        self.fc_dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(size.width, num_classes)
        self.reset_parameters()

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        """Classify normalised clips: logits_BK.

        Raises:
            ValueError: clips of another size than the model's, or not normalised.
        """
        x_BND = self.patch_embed(clip_patches(clips_BCTHW, self.config))
        x_BND = (x_BND + self.positions()).to(self.patch_embed.proj.weight.dtype)
        for block in self.blocks:
            x_BND = block(x_BND)
        mean = self.pooling == "mean"
        pooled_BD = self.fc_norm(x_BND.mean(1)) if mean else self.norm(x_BND[:, 0])
        return self.head(self.fc_dropout(pooled_BD))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise every parameter and position table, drawing from torch's global generator.

        Linear layers normal with deviation 0.02, then the head times `init_scale`; the embedding
        keeps PyTorch's default. `config.init` "xavier" draws all but the head Xavier-uniform.
        """
        if self.config.init == "xavier":
            xavier(self)
            xavier_embedding(self.patch_embed.proj)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
        else:
            truncated_normal(self)
        self.head.weight.mul_(self.init_scale)
        self.head.bias.mul_(self.init_scale)
        self.reset_positions()

    def reset_positions(self) -> None:
        """Compute the position table, which no checkpoint holds; needed after `to_empty`."""
        positions.reset_positions(self)


def class_probabilities(logits_BK: Tensor, *, several: bool) -> Tensor:
    """What logits say of each class, float32 [B, K].

    Args:
        logits_BK: of a classifier.
        several: whether a clip may have several classes, as the model was trained: each is then a
            question of its own (sigmoid), else they share one (softmax, sum 1).
    """
    logits_BK = logits_BK.float()
    return logits_BK.sigmoid() if several else logits_BK.softmax(-1)


def build_classifier(
    config: ModelConfig,
    *,
    num_classes: int,
    pooling: Pooling = "mean",
    head_dropout: float = 0.0,
    init_scale: float = 0.001,
) -> VideoClassifier:
    """Build a classifier, on the current default device.

    Args:
        config: the encoder; decoder fields are not used.
        num_classes: number of classes.
        pooling: mean of the tokens (the authors' default) or the first token.
        head_dropout: dropout before the head.
        init_scale: factor on the fresh head, so that fine-tuning starts from nearly equal logits.

    Raises:
        ValueError: an argument out of range.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be at least 1")
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling={pooling!r} is unknown; choose mean or token0")
    if not 0.0 <= head_dropout < 1.0:
        raise ValueError(f"head_dropout={head_dropout} must be at least 0 and below 1")
    return VideoClassifier(
        config,
        num_classes=num_classes,
        pooling=pooling,
        head_dropout=head_dropout,
        init_scale=init_scale,
    )
