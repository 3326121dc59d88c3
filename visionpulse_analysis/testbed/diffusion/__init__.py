"""A masked-diffusion twin of the bundled model: the canvases it is trained on, and its world."""
