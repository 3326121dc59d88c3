"""The pages of the first notebook."""

from __future__ import annotations

import numpy as np
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.patches import PatchGrid
from visionpulse_analysis.studies.quickstart import questions_page, quickstart_page, trace_numbers, trace_sentence
from visionpulse_analysis.studies.samples import scene_samples
from visionpulse_analysis.studies.step_dependence import rows_of
from visionpulse_analysis.studies.step_figures import steps_to_show
from visionpulse_analysis.traces import create_trace


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


def looking(steps, **meta):
    """A trace of one layer whose step attends to one patch of four: (patch, mass) per step."""
    attention = np.zeros((len(steps), 1, 4), np.float32)
    for step, (patch, mass) in enumerate(steps):
        attention[step, 0, patch] = mass
    return create_trace(
        attention=attention,
        mass=attention.sum(-1),
        tokens=["see"] * len(steps),
        token_ids=np.zeros(len(steps), np.int64),
        logprobs=np.zeros(len(steps), np.float32),
        grid=PatchGrid.from_grid(np.arange(4), [2], [2], [(16, 16)]),
        layers=[0],
        images=[np.zeros((16, 16, 3), np.uint8)],
        meta={"id": "made", **meta},
    )


def test_the_sentence_says_what_the_trace_does():
    """A gaze that rests and one that moves at every step are told apart."""
    still = trace_sentence(trace_numbers(looking([(2, 0.5)] * 5), 0))
    assert "between 50 and 50 % of a step's attention, 50 % on average" in still and "at 0 of 4 steps" in still
    restless = trace_sentence(trace_numbers(looking([(0, 0.1), (1, 0.9), (0, 0.2), (3, 0.8)]), 0))
    assert "between 10 and 90 %" in restless and "at 3 of 3 steps" in restless
    assert "at 0 of 0 steps" in trace_sentence(trace_numbers(looking([(0, 0.1)]), 0))


@pytest.mark.parametrize(("finished", "says"), [(True, "answer: none"), (False, "none within the limit of tokens")])
def test_a_trace_that_ended_without_an_answer_is_not_called_cut_off(finished, says):
    trace = looking([(0, 0.1), (1, 0.9)], finished=finished, text="<think>see")
    page = quickstart_page(trace, scene_samples(1, cells=4)[0], 0)
    titles = [ax.get_title() for ax in page.axes]
    assert any(title.endswith(says) for title in titles), titles
