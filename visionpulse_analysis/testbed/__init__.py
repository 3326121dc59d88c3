"""The bundled test bed: generated scenes with ground truth, and the small reasoner trained on them."""
