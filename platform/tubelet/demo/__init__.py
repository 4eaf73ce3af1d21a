"""The whole path on a laptop: videos in; a pretrained, fine-tuned, registered model out, with pictures."""
