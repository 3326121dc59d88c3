"""Recorded quantities over several pictures, films, and both together: the same as slowly, patch by patch."""

from __future__ import annotations

import numpy as np
import pytest
from slow_quantities import slow_quantities

import visionpulse_analysis as vpa

QUESTION = "where is the red circle ?"


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"], indirect=True)
def test_several_pictures_and_a_film(family, photos, film):
    vlm, clip = family.vlm, vpa.Video(film[0], fps=3.0)
    record = ["head_entropy", "value_norm_attention"]
    for media in ([photos[0], photos[1]], [clip], [photos[1], clip]):
        for pruner in (None, vpa.make_pruner("static_random(budget=0.4, anchor_layer=0)")):
            trace = vpa.decode(vlm, media, QUESTION, heads="all", record=record, max_new_tokens=3, pruner=pruner)
            expected = slow_quantities(vlm, vlm.prompt(media, QUESTION), trace)
            for name in record:
                np.testing.assert_allclose(trace.data[name].values, expected[name], rtol=2e-4, atol=2e-5, err_msg=name)
