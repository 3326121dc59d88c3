"""The pages of the first notebook."""

from __future__ import annotations

import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.studies.quickstart import questions_page
from visionpulse_analysis.studies.samples import scene_samples
from visionpulse_analysis.studies.step_dependence import rows_of
from visionpulse_analysis.studies.step_figures import steps_to_show


def test_two_questions_share_one_scale(vlm):
    samples = scene_samples(2, seed=3, cells=4)
    traces = [
        vpa.decode(vlm, s.image, s.question, max_new_tokens=count) for s, count in zip(samples, (2, 8), strict=True)
    ]
    largest = [
        rows_of(trace, 4)[steps_to_show(trace, sample, 4)].max() for trace, sample in zip(traces, samples, strict=True)
    ]
    bars = [ax for ax in questions_page(traces, samples, 4).axes if "attention" in ax.get_xlabel()]
    assert len(bars) == 2 and largest[0] != largest[1]
    for bar in bars:
        assert bar.get_xlim() == (0, pytest.approx(max(largest)))
