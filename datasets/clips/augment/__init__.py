"""Augmentations: chosen before decoding, so that only what is needed is decoded."""

from clips.augment.geometry import Box, centre_box, even_boxes, flip_draw, multi_scale_box

__all__ = ["Box", "centre_box", "even_boxes", "flip_draw", "multi_scale_box"]
