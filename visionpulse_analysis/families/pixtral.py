"""Pixtral and Mistral 3: the whole picture in one grid of its own size, with a break token after each row."""

from __future__ import annotations

import numpy as np
import torch

from visionpulse_analysis.families.base import Family, Shown
from visionpulse_analysis.families.cells import Cells


class Pixtral(Family):
    """Break tokens are words of their own, not image tokens."""

    def show(self, picture: np.ndarray) -> Shown:
        size = self.config.vision_config.patch_size * getattr(self.config, "spatial_merge_size", 1)
        features = self.image_processor(
            images=[picture], patch_size={"height": size, "width": size}, return_tensors="pt"
        )
        rows, cols = (int(n) // size for n in features["image_sizes"][0])
        line = self.image_token * cols
        text = "[IMG_BREAK]".join([line] * rows) + "[IMG_END]"
        cells = Cells.block(rows, cols, (0, 0, picture.shape[1], picture.shape[0]))
        inputs = {name: torch.as_tensor(features[name]) for name in ("pixel_values", "image_sizes")}
        return Shown(text, cells, inputs)
