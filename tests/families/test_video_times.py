"""When the frames of a video were: in the text between them, and in numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import visionpulse_analysis as vpa

QUESTION = "where is the red circle ?"
FPS = 3.0


@pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=True)
def test_video_times_stay_exact_in_half_precision(family, film):
    half = replace(family.vlm, model=SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16))
    inputs = half.to_device(family.vlm.prompt(vpa.Video(film[0], fps=29.97), QUESTION).inputs)
    assert inputs["pixel_values_videos"].dtype == torch.bfloat16
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([2 / 29.97], rel=1e-6)


WRITTEN = {  # five frames at three a second, as the library's own processors write them
    "glm4v": "~0~0~1",
    "glm46v": "~0.0 seconds~0.7 seconds~1.3 seconds",
    "internvl": "Frame1: ~\nFrame2: ~\nFrame3: ~\nFrame4: ~\nFrame5: ~",
    "qwen2_vl": "~",
    "qwen3_vl": "<0.2 seconds>~<0.8 seconds>~<1.3 seconds>~",
    "smolvlm": "You are provided the following series of five frames from a 0:00:01 [H:MM:SS] video.\n"
    "\nFrame from 00:00:~\nFrame from 00:00:~\nFrame from 00:00:~\nFrame from 00:01:~\nFrame from 00:01:~\n\n",
}


@pytest.mark.parametrize("family", WRITTEN, indirect=True)
def test_video_times_are_written_between_the_frames(family, film):
    text = family.vlm.tokenizer.decode(family.vlm.prompt(vpa.Video(film[0], fps=FPS), QUESTION).ids)
    patch = r"(<\|(video_pad|image)\|>|<IMG_CONTEXT>|<image>)+"
    marks = r"(<\|(vision_start|begin_of_image)\|>|<img>|<fake_token_around_image><global-img>)"
    ends = r"(<\|(vision_end|end_of_image)\|>|</img>|<fake_token_around_image>)"
    assert WRITTEN[family.name] in re.sub(rf"{marks}{patch}{ends}", "~", text)
