"""VideoMAE in plain single-device PyTorch."""
