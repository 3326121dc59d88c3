"""Pixtral and Mistral 3: the whole picture in one grid of its own size, with a break token after each row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from visionpulse_analysis.models.families.base import Family, Prompt, Shown, said
from visionpulse_analysis.models.families.cells import Cells


class Pixtral(Family):
    """Break tokens are tokens of their own, not those that features replace."""

    written_marks = r"\[IMG_(BREAK|END)\]"

    def show(self, picture: np.ndarray) -> Shown:
        height, width = picture.shape[:2]
        longest = self.image_processor.size.get("longest_edge")
        if longest and min(height, width) * longest < max(
            height, width
        ):  # shrunk to that, it would be less than a pixel wide
            raise ValueError(f"{said(picture)} is too narrow for {self.config.model_type}; pad it")
        size = self.config.vision_config.patch_size * getattr(self.config, "spatial_merge_size", 1)
        features = self.process(picture, patch_size={"height": size, "width": size})
        rows, cols = (int(n) // size for n in features["image_sizes"][0])
        line = self.image_token * cols
        text = "[IMG_BREAK]".join([line] * rows) + "[IMG_END]"
        cells = Cells.block(rows, cols, (0, 0, width, height))
        inputs = {name: torch.as_tensor(features[name]) for name in ("pixel_values", "image_sizes")}
        return Shown(text, cells, inputs)

    def check_together(self, prompts: Sequence[Prompt]) -> None:
        # transformers loses an axis where merging leaves one patch in all.
        if sum(len(prompt.grid) for prompt in prompts) == 1 and hasattr(self.config, "spatial_merge_size"):
            raise ValueError(
                f"{said(prompts[0].images[0])} is too small for {self.config.model_type}, which would see one patch of "
                "it; make it larger"
            )
