"""The decoder: predicts the pixels of tokens from what the encoder made of the visible ones.

What: a small transformer over the visible tokens followed by one mask token per token to
reconstruct, each with its position; the last norm and the linear head are applied to the
reconstructed ones only.
Guarantees: the order is visible first, as in the authors' code: with positions added beforehand,
attention does not care.
Cost: attention over V + M tokens. In VideoMAE M is all hidden tokens (1408 + 160 of ViT-B: half of
the step); the decoder masks of V2 halve M.

Shapes: B clips, V visible tokens, M tokens to reconstruct, D decoder features, P numbers of a
token.
"""

import torch
from torch import Tensor, nn

from videomae.layers import make_blocks
from videomae.positions import Positions
from videomae.presets import ModelConfig


class Decoder(nn.Module):
    """Light transformer that reconstructs tokens."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the parameters; names are the authors'."""
        super().__init__()
        size = config.decoder
        last_eps = config.norm_eps if config.decoder_norm_eps is None else config.decoder_norm_eps
        self.positions = Positions(config, size.width)
        self.blocks = make_blocks(size, norm_eps=config.norm_eps, drop_path=config.drop_path)
        self.norm = nn.LayerNorm(size.width, eps=last_eps)
        self.head = nn.Linear(size.width, config.token_values)

    def forward(
        self, x_BVD: Tensor, mask_token_11D: Tensor, visible_BV: Tensor, wanted_BM: Tensor
    ) -> Tensor:
        """Predict the normalised pixels of the wanted tokens.

        Args:
            x_BVD: encoded visible tokens, already of the decoder's width.
            mask_token_11D: the learned feature of a token nothing is known of.
            visible_BV: indices of the visible tokens.
            wanted_BM: indices of the tokens to reconstruct.

        Returns:
            predictions_BMP.
        """
        visible_BVD = x_BVD + self.positions(visible_BV)
        wanted_BMD = mask_token_11D + self.positions(wanted_BM)
        x_BND = torch.cat((visible_BVD, wanted_BMD), dim=1).to(mask_token_11D.dtype)
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.head(self.norm(x_BND[:, visible_BV.shape[1] :]))
