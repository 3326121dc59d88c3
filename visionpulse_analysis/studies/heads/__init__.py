"""Which heads look at the image, when, and which would do for pruning (notebook 12)."""
