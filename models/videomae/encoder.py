"""The encoder: sees only the tokens that are not hidden.

What: embeds the given tokens, adds their positions, runs the blocks and the last norm.
Why: with nine tokens of ten hidden, everything here costs a tenth of a full pass, the embedding
included.
Guarantees: the result for a token set equals embedding the whole clip and picking those tokens
(tested).

Shapes: B clips, V visible tokens, D features, C channels, X pixels of a token per channel.
"""

from torch import Tensor, nn

from videomae.layers import make_blocks
from videomae.patches import TubeletEmbedding
from videomae.positions import Positions
from videomae.presets import ModelConfig


class Encoder(nn.Module):
    """Vision transformer over the visible tokens of a clip."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the parameters; names are the authors'."""
        super().__init__()
        size = config.encoder
        self.patch_embed = TubeletEmbedding(config, size.width)
        self.positions = Positions(config, size.width)
        self.blocks = make_blocks(size, norm_eps=config.norm_eps, drop_path=config.drop_path)
        self.norm = nn.LayerNorm(size.width, eps=config.norm_eps)

    def forward(self, patches_BVCX: Tensor, token_BV: Tensor) -> Tensor:
        """Encode the visible tokens.

        Args:
            patches_BVCX: their pixels (`patchify`, `select_tokens`).
            token_BV: their indices in the clip.

        Returns:
            x_BVD.
        """
        x_BVD = self.patch_embed(patches_BVCX)
        # In the dtype of the parameters: under autocast the residual stream stays float32.
        x_BVD = (x_BVD + self.positions(token_BV)).to(self.patch_embed.proj.weight.dtype)
        for block in self.blocks:
            x_BVD = block(x_BVD)
        return self.norm(x_BVD)
