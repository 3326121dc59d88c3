"""SmolVLM: stills as in Idefics3; every frame of a video is an overview alone, behind its time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
from transformers.models.smolvlm.processing_smolvlm import (
    DEFAULT_CHAT_TEMPLATE,
    DEFAULT_MEDIA_OUTTRO,
    DEFAULT_VIDEO_INTRO,
    FRAME_TIMESTAMP_MESSAGE,
)

from visionpulse_analysis.media.videos import Clip
from visionpulse_analysis.models.asking import Medium
from visionpulse_analysis.models.families.base import Shown
from visionpulse_analysis.models.families.cells import Cells
from visionpulse_analysis.models.families.frames import HALVES, LANCZOS, normalised, resized, settings_of, tensor
from visionpulse_analysis.models.families.idefics3 import Idefics3

LARGEST = 4096  # pixels along the longer side


class SmolVLM(Idefics3):
    """Frames are scaled twice, as the library does: to the longer side of its files, then to the tower's square."""

    @property
    def video_placeholder(self) -> str:
        return getattr(self.tokenizer, "video_token", "<video>")

    def template(self, media: Sequence[Medium]) -> str | None:
        """For videos the library's own, also where the model brings one."""
        return DEFAULT_CHAT_TEMPLATE if any(isinstance(one, Clip) for one in media) else None

    def show_video(self, clip: Clip) -> Shown:
        sampling = self.video_settings.get("video_sampling") or {}
        defaults = {"size": sampling.get("video_size", {"longest_edge": 4 * 364}), "resample": LANCZOS, **HALVES}
        settings = settings_of(self.video_settings, max_image_size={"longest_edge": 364}, **defaults)
        height, width = clip.frames[0].shape[:2]
        size = _within(height, width, settings["size"]["longest_edge"])
        edge = settings["max_image_size"]["longest_edge"]
        frames = resized(resized(tensor(clip), size[0], size[1], settings), edge, edge, settings)
        values = normalised(frames, settings)[:, None]
        inputs = {"pixel_values": values, "pixel_attention_mask": torch.ones_like(values[:, :, 0], dtype=torch.int64)}
        cells = Cells.blocks(len(values), self.side, self.side, (0, 0, width, height))
        return Shown(self._text(clip), cells, inputs)

    def _text(self, clip: Clip) -> str:
        seconds = [int(second) for second in clip.seconds(self.config.model_type)]
        one = f"<fake_token_around_image><global-img>{self.image_token * self.side**2}<fake_token_around_image>"
        length = str(timedelta(seconds=seconds[-1]))
        return (
            DEFAULT_VIDEO_INTRO.format(frame_count=in_words(len(seconds)), video_duration=length)
            + "".join(FRAME_TIMESTAMP_MESSAGE.format(timestamp=f"{s // 60:02d}:{s % 60:02d}") + one for s in seconds)
            + DEFAULT_MEDIA_OUTTRO
        )


def _within(height: int, width: int, longest: int) -> tuple[int, int]:
    """Height and width with the longer of them as long as that, the shorter one even."""
    longest, ratio = min(LARGEST, longest), width / height
    shorter = int(longest / ratio) if width >= height else int(longest * ratio)
    shorter = max(shorter + shorter % 2, 1)
    return (shorter, longest) if width >= height else (longest, shorter)


ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int) -> str:
    """A number from 0 to 999 in English, which the library takes from the package num2words.

    Examples
    --------
    >>> in_words(16), in_words(64), in_words(768)
    ('sixteen', 'sixty-four', 'seven hundred and sixty-eight')
    """
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f"-{ONES[number % 10]}" if number % 10 else "")
    return f"{ONES[number // 100]} hundred" + (f" and {in_words(number % 100)}" if number % 100 else "")
