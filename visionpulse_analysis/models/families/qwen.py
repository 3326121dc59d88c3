"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, GLM-4V and GLM-4.6V: the whole picture in one grid, squares of patches merged.

In a video, frames next to each other are merged as well: one frame of the grid is as many frames as the model's
temporal patch is long, two in all published models; the last frame is repeated to fill it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from visionpulse_analysis.media.videos import Clip
from visionpulse_analysis.models.asking import PromptOptions
from visionpulse_analysis.models.families.base import VIDEO, Family, Prompt, Shown
from visionpulse_analysis.models.families.cells import Cells
from visionpulse_analysis.models.families.frames import CLIP, HALVES, PATCHES, patches, pixels, settings_of
from visionpulse_analysis.models.families.limits import edges, refused, within_pixels


class QwenGrid(Family):
    """Qwen2-VL. One grid per picture, of its own size; positions with a time, a row and a column."""

    mrope = True
    video_defaults: ClassVar[dict[str, Any]] = {
        **CLIP, **PATCHES, "patch_size": 14, "size": {"shortest_edge": 128 * 28**2, "longest_edge": 768 * 28**2},
    }  # fmt: skip

    def limited(self, image_processor: Any) -> Any:
        self._check_limits(image_processor)
        return within_pixels(image_processor, self.options)

    def _check_limits(self, image_processor: Any) -> None:
        """Raise ValueError for tiles, which pictures are not cut into, and for less than a token."""
        if self.options.max_tiles is not None:
            raise refused(self.config.model_type, image_processor, "max_tiles", "a picture is read as one",
                          "give max_pixels")  # fmt: skip
        token = (image_processor.patch_size * image_processor.merge_size) ** 2
        if (self.options.max_pixels or token) < token:
            raise ValueError(f"max_pixels={self.options.max_pixels} is less than the {token} pixels that one token of "
                             f"{self.config.model_type} reads; give at least that")  # fmt: skip

    def show(self, picture: np.ndarray) -> Shown:
        features = self.process(picture)
        merge = self.image_processor.merge_size
        rows, cols = (int(n) // merge for n in features["image_grid_thw"][0, 1:])
        cells = Cells.block(rows, cols, (0, 0, picture.shape[1], picture.shape[0]))
        inputs = {name: features[name] for name in ("pixel_values", "image_grid_thw")}
        return Shown(self.image_token * len(cells), cells, inputs)

    def show_video(self, clip: Clip) -> Shown:
        settings = settings_of(self.video_settings, **self.video_defaults)
        height, width = clip.frames[0].shape[:2]
        size = self.video_size(clip, settings)
        values, grid = patches(pixels(clip, size[0], size[1], settings), settings)
        times, rows, cols = grid[0], *(n // settings["merge_size"] for n in grid[1:])
        inputs = {"pixel_values_videos": values, "video_grid_thw": torch.tensor([grid])}
        inputs |= self.time_inputs(clip, settings)
        text = self.video_text(clip, times, rows * cols, settings)
        return Shown(
            text, Cells.blocks(times, rows, cols, (0, 0, width, height)), inputs, settings["temporal_patch_size"]
        )

    def video_size(self, clip: Clip, settings: dict[str, Any]) -> tuple[int, int]:
        """Height and width in pixels at which the model reads the frames: here each frame may have so many pixels."""
        height, width = clip.frames[0].shape[:2]
        factor, size = settings["patch_size"] * settings["merge_size"], edges(settings["size"], self.options)
        return smart_resize(height, width, factor, size["shortest_edge"], size["longest_edge"])

    def video_text(self, clip: Clip, times: int, tokens: int, settings: dict[str, Any]) -> str:
        """What stands for a video in the prompt: ``tokens`` for each of so many frames of the grid."""
        return self.tokenizer.convert_ids_to_tokens(self.video_id) * (times * tokens)

    def time_inputs(self, clip: Clip, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
        """What the model takes to know the times of frames."""
        return {}

    def token_inputs(self, kinds: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mm_token_type_ids": (kinds % 3).int()}


class Qwen25(QwenGrid):
    """Qwen2.5-VL: positions in time count seconds."""

    def time_inputs(self, clip: Clip, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
        shown = len(clip.numbers) / clip.total * clip.rate(self.config.model_type)
        return {"second_per_grid_ts": torch.tensor([settings["temporal_patch_size"] / shown])}

    def positions(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        try:
            return super().positions(model, inputs)
        except StopIteration:  # transformers 5.4 wants a time for every picture as well
            raise ValueError(
                f"this transformers cannot place pictures beside videos in {self.config.model_type}: take a newer one, "
                "or give either"
            ) from None


class Qwen3(QwenGrid):
    """Qwen3-VL: the time of every frame of the grid is written before it."""

    video_defaults: ClassVar[dict[str, Any]] = {
        **HALVES, **PATCHES, "patch_size": 16, "size": {"shortest_edge": 128 * 32**2, "longest_edge": 768 * 32**2},
    }  # fmt: skip

    @property
    def video_placeholder(self) -> str:
        """The marks that the template writes around a video stay since the library replaces the token alone."""
        mark = self.tokenizer.convert_ids_to_tokens(self.video_id)
        return mark if hasattr(Qwen3VLProcessor, "replace_video_token") else self._framed(mark)

    def _framed(self, marks: str) -> str:
        start, end = (
            self.tokenizer.convert_ids_to_tokens(getattr(self.config, f"vision_{name}_token_id"))
            for name in ("start", "end")
        )
        return f"{start}{marks}{end}"

    def video_size(self, clip: Clip, settings: dict[str, Any]) -> tuple[int, int]:
        # Imported late: with a torchvision that does not fit torch this fails, and stills need none of it.
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

        return _whole_size(smart_resize, clip, settings, self.options)

    def video_text(self, clip: Clip, times: int, tokens: int, settings: dict[str, Any]) -> str:
        group = settings["temporal_patch_size"]
        seconds = clip.seconds(self.config.model_type)
        seconds += seconds[-1:] * (times * group - len(seconds))
        mark = self.tokenizer.convert_ids_to_tokens(self.video_id)
        means = [(seconds[first] + seconds[first + group - 1]) / 2 for first in range(0, times * group, group)]
        return "".join(f"<{mean:.1f} seconds>{self._framed(mark * tokens)}" for mean in means)


class Glm4v(QwenGrid):
    """GLM-4V: frames are image tokens between marks, and the second of each is written behind it."""

    video_defaults: ClassVar[dict[str, Any]] = {
        **CLIP, **PATCHES, "patch_size": 14, "size": {"shortest_edge": 112**2, "longest_edge": 28**2 * 2 * 30000},
    }  # fmt: skip

    def limited(self, image_processor: Any) -> Any:
        self._check_limits(image_processor)
        # A picture counts as often as frames become one.
        return within_pixels(image_processor, self.options, image_processor.temporal_patch_size)

    def kinds(self, ids: torch.Tensor) -> torch.Tensor:
        kinds = super().kinds(ids)
        begin, end = (
            (ids == self.tokenizer.convert_tokens_to_ids(f"<|{name}_of_video|>")).cumsum(0) for name in ("begin", "end")
        )
        kinds[(ids == self.image_id) & (begin > end)] = VIDEO
        return kinds

    def check_together(self, prompts: Sequence[Prompt]) -> None:
        names = {name for prompt in prompts for name in prompt.inputs}
        if {"pixel_values", "pixel_values_videos"} <= names:
            raise ValueError(
                f"{self.config.model_type} marks pictures and frames of videos by one token, and transformers cannot "
                "read both in one batch: give either, or say batch_size=1"
            )

    def video_size(self, clip: Clip, settings: dict[str, Any]) -> tuple[int, int]:
        from transformers.models.glm4v.video_processing_glm4v import smart_resize

        return _whole_size(smart_resize, clip, settings, self.options)

    def video_text(self, clip: Clip, times: int, tokens: int, settings: dict[str, Any]) -> str:
        seconds = clip.seconds(self.config.model_type)[::2]
        seconds += seconds[-1:] * (times - len(seconds))
        line = f"<|begin_of_image|>{self.image_token * tokens}<|end_of_image|>"
        return "".join(line + self.written(second) for second in seconds[:times])

    def written(self, second: float) -> str:
        """The time of a frame as the prompt says it."""
        return str(int(second))


class Glm46v(Glm4v):
    """GLM-4.6V: the same, with tenths of a second."""

    def written(self, second: float) -> str:
        return f"{second:.1f} seconds"


def _whole_size(smart_resize: Any, clip: Clip, settings: dict[str, Any], options: PromptOptions) -> tuple[int, int]:
    """Height and width where all frames together may have so many pixels."""
    height, width = clip.frames[0].shape[:2]
    own = settings["size"]
    size = edges(own, options, len(clip.frames))
    if options.max_pixels is not None:  # a long video stays within what the model takes in all
        size["longest_edge"] = min(size["longest_edge"], own["longest_edge"])
        size["shortest_edge"] = min(size["shortest_edge"], size["longest_edge"])
    return smart_resize(
        num_frames=len(clip.frames),
        height=height,
        width=width,
        temporal_factor=settings["temporal_patch_size"],
        factor=settings["patch_size"] * settings["merge_size"],
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
    )
