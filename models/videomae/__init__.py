"""VideoMAE in plain single-device PyTorch.

    presets       model sizes; the recipe section `model`
    masking       which tokens are hidden, from one seed per sample; the recipe section `mask`
    patches       frames to network input, clips to tokens, reconstruction targets, and back
    pretraining   VideoMAE: encoder, decoder, loss
    classifier    the encoder with a classification head
    frozen        the encoder alone, for features
    probes        small heads on features: linear, attentive, nearest neighbours
    weights       files: the authors' checkpoints, and our exports

Nothing here knows the cluster: no Ray, no MLflow, no object storage, no video decoder.
"""

from videomae.classifier import (
    Pooling,
    VideoClassifier,
    build_classifier,
    class_probabilities,
)
from videomae.frozen import FrozenEncoder, encoder_state, random_encoder
from videomae.masking import MaskConfig, make_decoder_masks, make_masks
from videomae.patches import (
    denormalise,
    normalise,
    patchify,
    restore_pixels,
    to_frames,
    unpatchify,
)
from videomae.presets import PRESETS, ModelConfig
from videomae.pretraining import Reconstruction, VideoMAE, build_pretraining
from videomae.probes import AttentiveProbe, LinearProbe, neighbours
from videomae.weights import LoadReport, Match, load_pretrained, read_state_dict
from videomae.weights.export import Export, load_export, save_export

__all__ = [
    "PRESETS",
    "AttentiveProbe",
    "Export",
    "FrozenEncoder",
    "LinearProbe",
    "LoadReport",
    "MaskConfig",
    "Match",
    "ModelConfig",
    "Pooling",
    "Reconstruction",
    "VideoClassifier",
    "VideoMAE",
    "build_classifier",
    "build_pretraining",
    "class_probabilities",
    "denormalise",
    "encoder_state",
    "load_export",
    "load_pretrained",
    "make_decoder_masks",
    "make_masks",
    "neighbours",
    "normalise",
    "patchify",
    "random_encoder",
    "read_state_dict",
    "restore_pixels",
    "save_export",
    "to_frames",
    "unpatchify",
]
