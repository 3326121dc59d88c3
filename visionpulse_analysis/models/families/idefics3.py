"""Idefics3 and SmolVLM: the picture cut into square tiles with marks of row and column, then the whole of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from visionpulse_analysis.models.families.base import Family, Shown
from visionpulse_analysis.models.families.cells import Cells
from visionpulse_analysis.models.families.limits import refused


class Idefics3(Family):
    """Frame 0 is the grid of all tiles, frame 1 the overview; a small picture is an overview alone, frame 0."""

    written_marks = r"<fake_token_around_image>|<row_\d+_col_\d+>|<global-img>"

    @property
    def side(self) -> int:
        """Patches along one side of a tile, after merging."""
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size // self.config.scale_factor

    def limited(self, image_processor: Any) -> Any:
        if self.options.min_pixels or self.options.max_pixels:
            raise refused(self.config.model_type, image_processor, "min_pixels and max_pixels",
                          "pictures are cut into tiles of one size", "give max_tiles")  # fmt: skip
        return image_processor  # how far a picture is shrunk to have fewer tiles depends on its shape

    def show(self, picture: np.ndarray) -> Shown:
        features = self.process(picture, return_row_col_info=True, **self.for_size(*picture.shape[:2]))
        down, across = int(features["rows"][0][0]), int(features["cols"][0][0])
        height, width = picture.shape[:2]
        side = self.side
        one = self.image_token * side**2
        text, tiles = "", []
        for row in range(down):
            for col in range(across):
                box = (col * width / across, row * height / down, (col + 1) * width / across, (row + 1) * height / down)
                tiles.append(Cells.block(side, side, box, at=(row * side, col * side)))
                text += f"<fake_token_around_image><row_{row + 1}_col_{col + 1}>{one}"
            text += "\n"
        tiles.append(Cells.block(side, side, (0, 0, width, height), frame=1 if tiles else 0))
        text += "\n" if down else ""
        text += f"<fake_token_around_image><global-img>{one}<fake_token_around_image>"
        # One tile per line of the batch: the model flattens pictures and tiles anyway.
        inputs = {name: features[name][0][:, None] for name in ("pixel_values", "pixel_attention_mask")}
        return Shown(text, Cells.join(*tiles), inputs)

    def for_size(self, height: int, width: int) -> dict[str, Any]:
        """To how many pixels along the longer edge a picture is scaled, in whole tiles, to have no more than asked."""
        most, processor = self.options.max_tiles, self.image_processor
        if most is None or not processor.do_image_splitting:
            return {}
        tile = processor.max_image_size["longest_edge"]
        own = processor.size["longest_edge"]
        for longest in (own, *range((own - 1) // tile * tile, tile, -tile)):
            _, rows, cols = processor.get_number_of_image_patches(height, width, {"size": {"longest_edge": longest}})
            if rows * cols <= most:
                return {"size": {"longest_edge": longest}}
        return {"size": {"longest_edge": tile}}  # an overview alone
