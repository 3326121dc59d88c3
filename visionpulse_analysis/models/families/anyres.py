"""LLaVA-NeXT and LLaVA-OneVision: an overview, then tiles as one grid without its padding, a break after each row."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from visionpulse_analysis.media.videos import Clip
from visionpulse_analysis.models.asking import Medium
from visionpulse_analysis.models.families.base import Family, Prompt, Shown, said
from visionpulse_analysis.models.families.cells import Cells, Region
from visionpulse_analysis.models.families.frames import CLIP, SQUARE, pixels, settings_of
from visionpulse_analysis.models.families.limits import refused


class LlavaNext(Family):
    """Frame 0 is the grid of all tiles, frame 1 the overview, which comes first in the prompt."""

    def limited(self, image_processor: Any) -> Any:
        raise refused(
            self.config.model_type, image_processor, " and ".join(self.options.limits),
            "pictures are cut as the image_grid_pinpoints say, which the model reads in its own configuration too",
            "give fewer of these in both, vlm.model.config and vlm.image_processor",
        )  # fmt: skip

    @property
    def tile_px(self) -> int:
        return self.config.vision_config.image_size

    @property
    def side(self) -> int:
        """Patches along one side of a tile. Where they do not fill it, the pixels at its right and bottom go unread."""
        return self.tile_px // self.config.vision_config.patch_size

    def show(self, picture: np.ndarray) -> Shown:
        features = self.process(picture)
        height, width = picture.shape[:2]
        covered = self.side * self.config.vision_config.patch_size / self.tile_px
        overview = Cells.block(self.side, self.side, (0, 0, covered * width, covered * height), frame=1)
        cells = Cells.join(overview, self._tiles(picture).with_line_breaks())
        inputs = {name: torch.as_tensor(features[name]) for name in ("pixel_values", "image_sizes")}
        return Shown(self.image_token * len(cells), cells, inputs)

    def _tiles(self, picture: np.ndarray) -> Cells:
        """The cells of all tiles row by row, without the rows or columns that show padding alone."""
        height, width = picture.shape[:2]
        canvas = select_best_resolution((height, width), self.config.image_grid_pinpoints)
        inner = get_patch_output_size(picture, canvas, input_data_format="channels_last")
        top, left = ((outer - part) // 2 for outer, part in zip(canvas, inner, strict=True))
        down, across = height / inner[0], width / inner[1]  # pixels of the picture per pixel of the canvas
        side, tile = self.side, self.tile_px
        read = side * self.config.vision_config.patch_size
        tiles = [
            Cells.block(
                side, side, _region(x - left, y - top, read, across, down), at=(y // tile * side, x // tile * side)
            )
            for y in range(0, canvas[0], tile)
            for x in range(0, canvas[1], tile)
        ]
        rows, cols = (n // tile * side for n in canvas)
        kept = unpad_image(torch.arange(rows * cols).view(1, rows, cols), (height, width))[0]
        if not kept.numel():  # the tiles would show less than one row or column of it
            raise ValueError(f"{said(picture)} is too narrow for {self.config.model_type}; pad it")
        return Cells.join(*tiles).in_reading_order().take(kept.flatten().numpy()).from_zero()


def _region(x: float, y: float, size: float, across: float, down: float) -> Region:
    return x * across, y * down, (x + size) * across, (y + size) * down


class LlavaOneVision(LlavaNext):
    """As LLaVA-NeXT; large grids are shrunk, and several pictures are read as overviews alone, padded to squares.

    Frames of a video are squeezed into the overview's square, and four patches of the tower become one token.
    """

    def shows(self, media: Sequence[Medium]) -> list[Shown]:
        stills = sum(not isinstance(one, Clip) for one in media)
        still = self.show if stills == 1 else self._overview
        shown = [self.show_video(one) if isinstance(one, Clip) else still(one) for one in media]
        if stills:
            shown[0].inputs["batch_num_images"] = torch.tensor([stills])  # one number per prompt
        return shown

    def show_video(self, clip: Clip) -> Shown:
        settings = settings_of(self.video_settings, **CLIP, **SQUARE)
        height, width = clip.frames[0].shape[:2]
        values = pixels(clip, settings["size"]["height"], settings["size"]["width"], settings)
        side, covered = -(-self.side // 2), self.side * self.config.vision_config.patch_size / self.tile_px
        cells = Cells.blocks(len(values), side, side, (0, 0, covered * width, covered * height))
        cells = Cells.join(cells, Cells.breaks())  # one break after the whole video
        token = self.tokenizer.convert_ids_to_tokens(self.video_id)
        return Shown(token * len(cells), cells, {"pixel_values_videos": values[None]})

    def check_together(self, prompts: Sequence[Prompt]) -> None:
        lengths = sorted({len(video["frames"]) for prompt in prompts for video in prompt.videos})
        if len(lengths) > 1:
            raise ValueError(
                f"{self.config.model_type} reads videos of one length together, these show {lengths} frames: "
                "give each as many, or in questions of their own with batch_size=1"
            )

    def _overview(self, picture: np.ndarray) -> Shown:
        # The processor pads only where it is told of several pictures.
        features = self.process(picture, twice=True)
        height, width = picture.shape[:2]
        square = max(height, width)
        left, top = -((square - width) // 2), -((square - height) // 2)
        read = self.side * self.config.vision_config.patch_size / self.tile_px * square
        cells = Cells.join(Cells.block(self.side, self.side, (left, top, left + read, top + read)), Cells.breaks())
        inputs: dict[str, Any] = {name: torch.as_tensor(features[name])[:1] for name in ("pixel_values", "image_sizes")}
        return Shown(self.image_token * len(cells), cells, inputs)

    def _tiles(self, picture: np.ndarray) -> Cells:
        cells = super()._tiles(picture)
        rows, cols = cells.row.max() + 1, cells.col.max() + 1
        most = int(self.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = sqrt(rows * cols / (most * self.side**2))
        if ratio <= 1.1:
            return cells
        left, top, right, bottom = *cells.box[:, :2].min(axis=0), *cells.box[:, 2:].max(axis=0)
        return Cells.block(int(rows // ratio), int(cols // ratio), (left, top, right, bottom))
