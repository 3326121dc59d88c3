"""Videos that a family does not read, or not together with others: one sentence, before anything is decoded."""

from __future__ import annotations

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


@pytest.mark.parametrize("family", ["glm4v", "llava_onevision", "qwen3_vl"], indirect=True)
def test_what_cannot_be_read_together_is_said_before_anything_is_decoded(family, film, photos):
    one, other = vpa.Video(film[0], fps=3), vpa.Video(film[1], fps=3)
    second = {"glm4v": photos[0], "llava_onevision": other}.get(family.name)
    if second is None:
        with pytest.raises(ValueError, match=r"qwen3_vl reads the times of frames.*Video\(frames, fps"):
            vpa.decode(family.vlm, vpa.Video(film[0]), QUESTION)
        return
    for media, question in (([one, second], QUESTION), ([[one], [second]], [QUESTION] * 2)):
        with pytest.raises(ValueError, match="batch_size=1"):
            vpa.decode(family.vlm, media, question, max_new_tokens=1)
    apart = vpa.decode(family.vlm, [one, second], [QUESTION] * 2, max_new_tokens=1, batch_size=1)
    assert [len(trace.images) for trace in apart] == [5, 1 if second is photos[0] else 3]
