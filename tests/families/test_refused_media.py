"""Videos that a family does not read, or not together with others: one sentence, before anything is decoded."""

from __future__ import annotations

import sys

import pytest
from test_recording import SAME_TYPE
from test_video import QUESTION, VIDEO
from tiny_models import BUILDERS

import visionpulse_analysis as vpa

NONE = sorted(set(BUILDERS) - set(VIDEO))


@pytest.mark.parametrize("family", NONE, indirect=True)
def test_families_that_read_none_say_so(family, film):
    with pytest.raises(ValueError, match=rf"{SAME_TYPE.get(family.name, family.name)}' read no video here"):
        vpa.decode(family.vlm, vpa.Video(film[0]), QUESTION, max_new_tokens=1)


@pytest.mark.parametrize("family", ["glm4v", "llava_onevision"], indirect=True)
def test_what_cannot_be_read_together_is_said_before_anything_is_decoded(family, film, photos):
    one, other = vpa.Video(film[0], fps=3), vpa.Video(film[1], fps=3)
    second = {"glm4v": photos[0], "llava_onevision": other}[family.name]
    for media, question in (([one, second], QUESTION), ([[one], [second]], [QUESTION] * 2)):
        with pytest.raises(ValueError, match="batch_size=1"):
            vpa.decode(family.vlm, media, question, max_new_tokens=1)
    apart = vpa.decode(family.vlm, [one, second], [QUESTION] * 2, max_new_tokens=1, batch_size=1)
    assert [len(trace.images) for trace in apart] == [5, 1 if second is photos[0] else 3]


@pytest.mark.parametrize("family", VIDEO, indirect=True)
def test_a_video_without_a_rate_is_refused_where_the_model_reads_times(family, film):
    if family.name in ("qwen2_vl", "internvl", "internvl2_5", "internvl3_5", "internvl3_5_moe", "llava_onevision"):
        assert family.vlm.prompt(vpa.Video(film[0]), QUESTION).grid.frames[-1, 1] > 0
        return
    with pytest.raises(ValueError, match=r"reads the times of frames.*Video\(frames, fps"):
        family.vlm.prompt(vpa.Video(film[0]), QUESTION)


@pytest.mark.parametrize("family", ["internvl"], indirect=True)
def test_frames_cut_to_their_middle_are_refused_and_torchvision_stays_as_it_was(family, film, monkeypatch):
    before = {name: module for name, module in sys.modules.items() if name.startswith("torchvision")}
    monkeypatch.setitem(family.vlm.settings, "video_processor", {"do_center_crop": True, "crop_size": 24})
    if getattr(family.vlm.processor, "video_processor", None) is not None:
        monkeypatch.setattr(family.vlm.processor.video_processor, "do_center_crop", True)
    with pytest.raises(ValueError, match="do_center_crop=True, which is not supported"):
        family.vlm.prompt(vpa.Video(film[0]), QUESTION)
    assert {name: module for name, module in sys.modules.items() if name.startswith("torchvision")} == before
