"""The pages of the first notebook."""

from __future__ import annotations

import numpy as np
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.experiments.samples import scene_samples
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.studies.explorer.report import finding as found_in_a_page
from visionpulse_analysis.studies.quickstart.figures import questions_page, quickstart_page
from visionpulse_analysis.studies.quickstart.report import trace_numbers, trace_sentence
from visionpulse_analysis.studies.shared.sentences import cut_off_told
from visionpulse_analysis.studies.step_dependence.figures import steps_to_show
from visionpulse_analysis.studies.step_dependence.measure import rows_of
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
    one = looking([(0, 0.1)])
    assert "at 0 of 0 steps" in trace_sentence(trace_numbers(one, 0))
    for finished, told in ((False, "1 steps, cut off at the limit of tokens, the image"), (True, "1 steps the image")):
        assert told in trace_sentence(trace_numbers(one.with_meta({**one.meta, "finished": finished}), 0))
    cut, whole = one.with_meta({**one.meta, "finished": False}), one.with_meta({**one.meta, "finished": True})
    assert cut_off_told([cut, whole, cut]).startswith("Cut off at the limit of tokens: 2 of 3 traces.")
    assert cut_off_told([whole]) == "None of the 1 traces was cut off at the limit of tokens."
    explored = {"page_bytes": 1000, "dense_steps": 3, "pruned_steps": 9, "cut_off": ["pruned"]}
    assert found_in_a_page(explored).long.endswith("Cut off at the limit of tokens: pruned.")
    assert "Cut off" not in found_in_a_page({**explored, "cut_off": []}).long


@pytest.mark.parametrize(("finished", "says"), [(True, "answer: none"), (False, "none within the limit of tokens")])
def test_a_trace_that_ended_without_an_answer_is_not_called_cut_off(finished, says):
    trace = looking([(0, 0.1), (1, 0.9)], finished=finished, text="<think>see")
    page = quickstart_page(trace, scene_samples(1, cells=4)[0], 0)
    titles = [ax.get_title() for ax in page.axes]
    assert any(title.endswith(says) for title in titles), titles
