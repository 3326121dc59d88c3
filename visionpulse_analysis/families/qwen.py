"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and GLM-4V: the whole picture in one grid, squares of patches merged."""

from __future__ import annotations

import numpy as np
import torch

from visionpulse_analysis.families.base import Family, Shown
from visionpulse_analysis.families.cells import Cells


class QwenGrid(Family):
    """One grid per picture, of its own size; positions with a time, a row and a column."""

    mrope = True

    def show(self, picture: np.ndarray) -> Shown:
        features = self.image_processor(images=[picture], return_tensors="pt")
        merge = self.image_processor.merge_size
        rows, cols = (int(n) // merge for n in features["image_grid_thw"][0, 1:])
        cells = Cells.block(rows, cols, (0, 0, picture.shape[1], picture.shape[0]))
        inputs = {name: features[name] for name in ("pixel_values", "image_grid_thw")}
        return Shown(self.image_token * len(cells), cells, inputs)

    def token_inputs(self, kinds: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mm_token_type_ids": (kinds % 3).int()}
