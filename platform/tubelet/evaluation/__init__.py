"""How good a classifier is on videos it has not seen: views of each video, one prediction, sums before ratios."""
