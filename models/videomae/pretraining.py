"""Masked autoencoding: the model VideoMAE pretrains, with its loss.

What: hide tokens, encode the rest, reconstruct; the loss of every clip is the mean squared error
of the normalised pixels over its tokens that were hidden AND reconstructed.
Guarantees:
  * Names and shapes of the state dict are the authors'. Weights saved by their code load and give
    its predictions and loss (tested with small models).
  * The loss is per clip. Where all clips score equally many tokens (VideoMAE) its mean is the
    authors' loss. With decoder masks (V2) the authors divide by the batch's count of scored
    tokens; here every clip counts the same, so that the gradient does not depend on how a batch is
    split over workers.
  * Targets and loss are float32, also under autocast or with bfloat16 parameters: pass the clips
    in float32. (A sharding policy that casts the inputs of the root module would spoil the
    targets: switch `cast_forward_inputs` off there.)
  * Drop path uses torch's global generator; nothing else here is random.
  * Built on the meta device: after `to_empty`, `reset_parameters()` initialises everything,
    `reset_positions()` only what a checkpoint does not hold.
Cost: masks on the CPU cost the GPU no wait; masks on the GPU cost one synchronisation, to count
them.

Shapes: B clips, N tokens, V visible, M reconstructed, P numbers of a token, C channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomae import positions
from videomae.decoder import Decoder
from videomae.encoder import Encoder
from videomae.initialise import xavier, xavier_embedding
from videomae.patches import check_clips, patchify, pixel_targets, select_tokens
from videomae.presets import ModelConfig


class Reconstruction(NamedTuple):
    """What a forward pass returns."""

    loss_B: Tensor
    """Loss of every clip, float32."""
    predictions_BMP: Tensor
    """Predicted normalised pixels, float32, in the order of `tokens_BM`."""
    targets_BMP: Tensor
    """What they should be."""
    means_BMC: Tensor
    """Mean of each true token and channel (pixels between 0 and 1): `restore_pixels` needs it."""
    deviations_BMC: Tensor
    """Standard deviation of the same."""
    tokens_BM: Tensor
    """Indices of the reconstructed tokens in the clip."""
    scored_BM: Tensor
    """True for tokens that count in the loss: hidden from the encoder, not only reconstructed."""


class VideoMAE(nn.Module):
    """Asymmetric masked autoencoder of video (VideoMAE, section 3.3)."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the model with the authors' initialisation."""
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.encoder_to_decoder = nn.Linear(config.encoder.width, config.decoder.width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.decoder.width))
        self.reset_parameters()

    def forward(
        self, clips_BCTHW: Tensor, mask_BN: Tensor, decoder_mask_BN: Tensor | None = None
    ) -> Reconstruction:
        """Reconstruct hidden tokens.

        Args:
            clips_BCTHW: normalised clips, float32.
            mask_BN: bool, True where a token is hidden from the encoder; equally many per clip.
            decoder_mask_BN: bool, True where a token is reconstructed; equally many per clip.
                None: all hidden ones.

        Raises:
            ValueError: clips of another size, masks of another shape, unequal counts, nothing to
                encode or to score.
        """
        config, device = self.config, clips_BCTHW.device
        check_clips(clips_BCTHW, config)
        chosen = _choose_tokens(mask_BN, decoder_mask_BN, (len(clips_BCTHW), config.tokens))
        visible_BV, wanted_BM, scored_BM = (each.to(device, non_blocking=True) for each in chosen)
        patches_BNCX = patchify(
            clips_BCTHW, tubelet_size=config.tubelet_size, patch_size=config.patch
        )
        target = pixel_targets(select_tokens(patches_BNCX, wanted_BM))
        encoded = self.encoder(select_tokens(patches_BNCX, visible_BV), visible_BV)
        predictions_BMP = self.decoder(
            self.encoder_to_decoder(encoded), self.mask_token, visible_BV, wanted_BM
        ).float()
        error_BM = F.mse_loss(predictions_BMP, target.targets_BMP, reduction="none").mean(-1)
        loss_B = (error_BM * scored_BM).sum(1) / scored_BM.sum(1)
        return Reconstruction(
            loss_B=loss_B,
            predictions_BMP=predictions_BMP,
            targets_BMP=target.targets_BMP,
            means_BMC=target.means_BMC,
            deviations_BMC=target.deviations_BMC,
            tokens_BM=wanted_BM,
            scored_BM=scored_BM,
        )

    def blocks(self) -> list[nn.Module]:
        """Return what to shard, compile or checkpoint one by one: encoder's, then decoder's."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise every parameter and position table, drawing from torch's global generator.

        Linear layers Xavier uniform; the embedding (unless `config.init` says otherwise) and the
        bridge to the decoder keep PyTorch's defaults, as in the authors' code; the mask token
        normal with deviation 0.02, cut off at one deviation.
        """
        xavier(self.encoder)
        xavier(self.decoder)
        if self.config.init == "xavier":
            xavier_embedding(self.encoder.patch_embed.proj)
        self.encoder_to_decoder.reset_parameters()
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.reset_positions()

    def reset_positions(self) -> None:
        """Compute the position tables, which no checkpoint holds; needed after `to_empty`."""
        positions.reset_positions(self)


def build_pretraining(config: ModelConfig) -> VideoMAE:
    """Build the model to pretrain, on the current default device."""
    return VideoMAE(config)


def _choose_tokens(
    mask_BN: Tensor, decoder_mask_BN: Tensor | None, shape: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn masks into indices of visible and wanted tokens, and mark the scored ones.

    Everything stays on the masks' device; results are in ascending order within a clip.
    """
    visible_BV = _indices(~mask_BN, shape, "mask", "leaves visible")
    if decoder_mask_BN is None:
        wanted_BM = _indices(mask_BN, shape, "mask", "hides")
        return visible_BV, wanted_BM, torch.ones_like(wanted_BM, dtype=torch.bool)
    wanted_BM = _indices(decoder_mask_BN, shape, "decoder mask", "selects")
    scored_BM = mask_BN.to(wanted_BM.device).gather(1, wanted_BM)
    unscored = [clip for clip, any_scored in enumerate(scored_BM.any(1).tolist()) if not any_scored]
    if unscored:
        raise ValueError(
            f"clip {unscored[0]} of the batch has no loss: the decoder mask selects none of its "
            "hidden tokens; raise mask.ratio or lower mask.decoder_ratio"
        )
    return visible_BV, wanted_BM, scored_BM


def _indices(chosen_BN: Tensor, shape: tuple[int, int], name: str, verb: str) -> Tensor:
    """Return the indices of the True entries of every row: equally many, at least one."""
    if chosen_BN.dtype != torch.bool or tuple(chosen_BN.shape) != shape:
        raise ValueError(
            f"the {name} must be bool, one row per clip and one column per token, {list(shape)}; "
            f"got {chosen_BN.dtype} {list(chosen_BN.shape)}"
        )
    counts = chosen_BN.sum(1).tolist()
    if len(set(counts)) > 1:
        raise ValueError(
            f"the {name} {verb} {counts} tokens in the clips of one batch; every clip must have "
            "the same number: make the masks of a batch with one kind and ratio"
        )
    if counts[0] == 0:
        raise ValueError(f"the {name} {verb} no token; change mask.ratio")
    return chosen_BN.nonzero()[:, 1].view(len(counts), -1)
