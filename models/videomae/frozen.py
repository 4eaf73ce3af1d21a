"""The encoder as it is, for features: all tokens of a clip through its blocks and its last norm.

What: tokens of whole clips from pretrained or fine-tuned weights under the authors' names.
Guarantees: nothing of the encoder starts fresh: what is missing or of another shape is an error.
The last norm is the pretrained one (`encoder.norm`); of a classifier with mean pooling, which has
none there, it is the norm after the pooling (`fc_norm`), applied to each token.
Cost: attention over all tokens, no gradients.

Shapes: B clips, N tokens, D features.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from videomae.encoder import Encoder
from videomae.patches import clip_patches
from videomae.presets import ModelConfig
from videomae.pretraining import build_pretraining
from videomae.weights import differences, list_problems


def encoder_state(config: ModelConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pick the encoder's weights out of a model's, under the names of an `Encoder`.

    Args:
        config: its sizes.
        state_dict: weights of a `VideoMAE` or a `VideoClassifier`, or of the encoder alone.

    Raises:
        ValueError: they are not those of the sizes; the message lists names and shapes.
    """
    given = {name.removeprefix("encoder."): value for name, value in state_dict.items()}
    if "norm.weight" not in given:
        for name in ("norm.weight", "norm.bias"):
            if f"fc_{name}" in given:
                given[name] = given[f"fc_{name}"]
    with torch.device("meta"):
        wanted = Encoder(config).state_dict()
    own = {n: value for n, value in given.items() if n in wanted or n.startswith("blocks.")}
    problems = differences(own, wanted)
    if problems:
        raise ValueError(
            f"the weights do not fit an encoder of preset {config.preset}:"
            + list_problems(problems)
        )
    return own


class FrozenEncoder(nn.Module):
    """An encoder that is only asked."""

    def __init__(self, config: ModelConfig, state_dict: Mapping[str, Tensor]) -> None:
        """Build the encoder and load it; arguments and errors are those of `encoder_state`."""
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.encoder.load_state_dict(encoder_state(config, state_dict))
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        """Encode normalised clips: x_BND, the tokens in order of time, row and column.

        Raises:
            ValueError: clips of another size than the model's, or not normalised.
        """
        patches_BNCX = clip_patches(clips_BCTHW, self.config)
        token_N = torch.arange(self.config.tokens, device=clips_BCTHW.device)
        return self.encoder(patches_BNCX, token_N.expand(len(clips_BCTHW), -1))


def random_encoder(config: ModelConfig, *, seed: int) -> dict[str, Tensor]:
    """Weights as pretraining begins with, the same for a seed: what pretrained ones must beat."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_pretraining(config).state_dict()
