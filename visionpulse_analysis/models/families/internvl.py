"""InternVL and Aya Vision: the picture cut into square tiles, and the whole of it once more as a small overview."""

from __future__ import annotations

import numpy as np
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from visionpulse_analysis.media.videos import Clip
from visionpulse_analysis.models.families.base import Family, Shown
from visionpulse_analysis.models.families.cells import Cells
from visionpulse_analysis.models.families.frames import CLIP, SQUARE, pixels, settings_of


class InternVL(Family):
    """InternVL 2.5, 3 and 3.5. Frame 0 of a still is the grid of all tiles, frame 1 the overview."""

    written_marks = r"</?img>"

    def show(self, picture: np.ndarray) -> Shown:
        processor = self.image_processor
        pixels = self.process(picture, crop_to_patches=True)["pixel_values"]
        height, width = picture.shape[:2]
        size = (processor.size["height"], processor.size["width"])
        limits = (processor.min_patches, processor.max_patches)
        across, down = get_optimal_tiled_canvas((height, width), size, *limits) if limits[1] > 1 else (1, 1)
        side = self.side
        tiles = [
            Cells.block(
                side,
                side,
                (col * width / across, row * height / down, (col + 1) * width / across, (row + 1) * height / down),
                at=(row * side, col * side),
            )
            for row in range(down)
            for col in range(across)
        ]
        if len(tiles) > 1:
            tiles.append(Cells.block(side, side, (0, 0, width, height), frame=1))
        return Shown(self.written(tiles), Cells.join(*tiles), {"pixel_values": pixels})

    def written(self, tiles: list[Cells]) -> str:
        """What stands for the tiles in the prompt."""
        start, end = self.tokenizer.start_image_token, self.tokenizer.end_image_token
        return f"{start}{self.image_token * sum(map(len, tiles))}{end}"

    @property
    def video_placeholder(self) -> str:
        return self.tokenizer.video_token

    def show_video(self, clip: Clip) -> Shown:
        """Every frame is one tile, behind its number."""
        settings = settings_of(self.video_settings, **CLIP, **SQUARE)
        height, width = clip.frames[0].shape[:2]
        values = pixels(clip, settings["size"]["height"], settings["size"]["width"], settings)
        start, end, side = self.tokenizer.start_image_token, self.tokenizer.end_image_token, self.side
        one = f"{start}{self.image_token * side**2}{end}"
        text = "\n".join(f"Frame{number + 1}: {one}" for number in range(len(values)))
        return Shown(text, Cells.blocks(len(values), side, side, (0, 0, width, height)), {"pixel_values": values})

    @property
    def side(self) -> int:
        """Patches along one side of a tile, after merging."""
        vision = self.config.vision_config
        image, patch = (
            value if isinstance(value, int) else value[0] for value in (vision.image_size, vision.patch_size)
        )
        return int(image // patch * self.config.downsample_ratio)


class AyaVision(InternVL):
    """Aya Vision, stills only: every tile behind its number, the overview behind a mark of its own."""

    show_video, video_placeholder = Family.show_video, Family.video_placeholder
    written_marks = r"<\|(START|END)_OF_IMG\|>|TILE_(\d+|GLOBAL)"

    @property
    def placeholder(self) -> str:
        return "<image>"

    def written(self, tiles: list[Cells]) -> str:
        *parts, whole = (self.image_token * len(tile) for tile in tiles)
        numbered = "".join(f"TILE_{number}{part}" for number, part in enumerate(parts, start=1))
        return f"<|START_OF_IMG|>{numbered}TILE_GLOBAL{whole}<|END_OF_IMG|>"

    @property
    def side(self) -> int:
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size // self.config.downsample_factor
