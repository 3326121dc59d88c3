"""LLaVA-1.5, DeepSeek-VL, PaliGemma and Gemma 3: every picture in one square grid of a fixed size."""

from __future__ import annotations

import copy
from math import isqrt
from typing import Any

import numpy as np
import torch
from transformers.image_transforms import get_resize_output_image_size

from visionpulse_analysis.models.asking import Turns
from visionpulse_analysis.models.families.base import ANSWER, IMAGE, Family, Shown
from visionpulse_analysis.models.families.cells import Cells, Region
from visionpulse_analysis.models.families.limits import limited, refused

CROPS = {"min_crop_size": 256, "max_num_crops": 4, "min_ratio_to_activate": 1.2}  # of pan and scan, where not stated


class Llava(Family):
    """LLaVA-1.5: the shorter side is scaled to the tower's size and the middle square is read; or it is padded."""

    def show(self, picture: np.ndarray) -> Shown:
        pixels = self.process(picture)["pixel_values"]
        patch = self.config.vision_config.patch_size
        rows, cols = (size // patch for size in pixels.shape[2:])
        left, top, right, bottom = self._region(picture, *pixels.shape[2:])
        # Where patches do not fill the tower's pixels, those at its right and bottom go unread.
        right = left + (right - left) * cols * patch / pixels.shape[3]
        bottom = top + (bottom - top) * rows * patch / pixels.shape[2]
        cells = Cells.block(rows, cols, (left, top, right, bottom))
        if class_token_is_read(self.config):
            cells = Cells.join(Cells.breaks(), cells)
        return Shown(self.image_token * len(cells), cells, {"pixel_values": pixels})

    def _region(self, picture: np.ndarray, rows_px: int, cols_px: int) -> Region:
        """The part of the picture that the tower's rows_px x cols_px pixels show; beyond its edges where padded."""
        processor = self.image_processor
        height, width = picture.shape[:2]
        left, top = 0.0, 0.0
        if getattr(processor, "do_pad", False):  # to a square, around the middle
            side = max(height, width)
            left, top = -((side - width) // 2), -((side - height) // 2)
            height, width = side, side
        if not processor.do_resize:
            scaled = (height, width)
        elif processor.size.get("shortest_edge"):
            blank = np.broadcast_to(np.uint8(0), (height, width, 3))
            scaled = get_resize_output_image_size(
                blank, processor.size["shortest_edge"], default_to_square=False, input_data_format="channels_last"
            )
        else:
            scaled = (processor.size["height"], processor.size["width"])
        down, across = height / scaled[0], width / scaled[1]  # pixels of the picture per pixel of the tower
        top += (scaled[0] - rows_px) // 2 * down
        left += (scaled[1] - cols_px) // 2 * across
        return left, top, left + cols_px * across, top + rows_px * down


class DeepseekVL(Family):
    """DeepSeek-VL: the longer side is scaled to the tower's size, and the picture padded to a square around it."""

    def show(self, picture: np.ndarray) -> Shown:
        processor = self.image_processor
        pixels = self.process(picture)["pixel_values"]
        height, width = picture.shape[:2]
        square, patch = pixels.shape[2], self.config.vision_config.patch_size
        scale = processor.size["height"] / max(height, width)
        scaled = [max(round(side * scale), processor.min_size) for side in (height, width)]
        down, across = height / scaled[0], width / scaled[1]  # pixels of the picture per pixel of the tower
        top, left = (-((square - side) // 2) for side in scaled)
        read = square // patch * patch
        box = (left * across, top * down, (left + read) * across, (top + read) * down)
        cells = Cells.block(square // patch, square // patch, box)
        return Shown(self.image_token * len(cells), cells, {"pixel_values": pixels})


class PaliGemma(Family):
    """PaliGemma: the picture squeezed into a square; no conversation, the question follows the pictures at once."""

    def show(self, picture: np.ndarray) -> Shown:
        pixels = self.process(picture)["pixel_values"]
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        read = side * vision.patch_size / vision.image_size
        cells = Cells.block(side, side, (0, 0, read * picture.shape[1], read * picture.shape[0]))
        return Shown(self.image_token * len(cells), cells, {"pixel_values": pixels})

    def text(self, turns: Turns) -> str:
        for name in ("system", "prefix", "template"):
            if getattr(self.options, name):
                raise ValueError(f"{self.config.model_type} has no conversation, and so no {name}; leave {name} out")
        if turns.several:
            raise ValueError(f"{self.config.model_type} has no conversation, and so no turns; give a question as text")
        return f"{self.placeholder * len(turns.media)}{self.tokenizer.bos_token}{turns.question}\n"

    def asked(self, turns: Turns) -> str:
        return f"{self.placeholder * len(turns.media)}{turns.question}"  # its processor writes the rest

    def begun(self, text: str) -> bool:
        return True

    def token_inputs(self, kinds: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"token_type_ids": (kinds == ANSWER).long()}

    def positions(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return super().positions(model, inputs) + 1


class Gemma3(Family):
    """Gemma 3: the picture squeezed into a square; with pan and scan, crops of it follow the whole."""

    written_marks = r"<(start|end)_of_image>"

    @property
    def placeholder(self) -> str:
        return self.tokenizer.boi_token

    def limited(self, image_processor: Any) -> Any:
        most = self.options.max_tiles
        if most is None or not image_processor.do_pan_and_scan:
            return limited(image_processor, self.options, self.config.model_type)
        if self.options.min_pixels or self.options.max_pixels:
            raise refused(self.config.model_type, image_processor, "min_pixels and max_pixels",
                          "every picture is read at one size")  # fmt: skip
        changed = copy.copy(image_processor)
        changed.do_pan_and_scan, changed.pan_and_scan_max_num_crops = most > 1, most
        return changed

    def show(self, picture: np.ndarray) -> Shown:
        options = {}
        if self.image_processor.do_pan_and_scan:
            given = {f"pan_and_scan_{name}": value for name, value in CROPS.items()}
            options = {name: getattr(self.image_processor, name, None) or value for name, value in given.items()}
        features = self.process(picture, do_pan_and_scan=bool(options), **options)
        side = isqrt(self.config.mm_tokens_per_image)
        height, width = picture.shape[:2]
        one = f"\n\n{self.tokenizer.boi_token}{self.image_token * side**2}{self.tokenizer.eoi_token}\n\n"
        crops = int(features["num_crops"][0])
        inputs = {"pixel_values": features["pixel_values"]}
        if not crops:
            return Shown(one, Cells.block(side, side, (0, 0, width, height)), inputs)
        text = (
            f"Here is the original image {one} and here are some crops to help you see better {' '.join([one] * crops)}"
        )
        whole = Cells.block(side, side, (0, 0, width, height), frame=1)
        return Shown(text, Cells.join(whole, *_strip(crops, side, width, height)), inputs)

    def token_inputs(self, kinds: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"token_type_ids": (kinds == IMAGE).int()}


def class_token_is_read(config) -> bool:
    """Whether the vision tower's class token is among the image tokens."""
    strategy = getattr(config, "vision_feature_select_strategy", "default")
    return strategy == "full" and config.vision_config.model_type == "clip_vision_model"


def _strip(crops: int, side: int, width: int, height: int) -> list[Cells]:
    """Crops side by side along the longer edge, as one frame; each but the last of the same whole number of pixels."""
    across = width >= height
    size = -(-(width if across else height) // crops)
    parts = []
    for i in range(crops):
        start, end = i * size, min((i + 1) * size, width if across else height)
        region = (start, 0, end, height) if across else (0, start, width, end)
        parts.append(Cells.block(side, side, region, at=(0, i * side) if across else (i * side, 0)))
    return parts
