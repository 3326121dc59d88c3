"""The three stages on every family: one pass over prompt and answer says what decoding says step by step."""

import numpy as np
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.experiments.interventions.teacher_forced import Passages
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.studies.three_stages.measure import ask, three_stages

pytestmark = pytest.mark.alike
QUESTIONS = ["where is the red circle ?", "how many ?"]


def test_one_pass_says_what_decoding_says(family, photos, monkeypatch):
    monkeypatch.setattr(family.vlm.model.generation_config, "eos_token_id", -1)  # no trace ends early
    vlm = family.vlm
    samples = [Sample(str(i), photos[i], question) for i, question in enumerate(QUESTIONS)]
    asked = ask(vlm, samples, max_new_tokens=3)
    traces = vpa.decode(vlm, photos[:2], QUESTIONS, max_new_tokens=3)
    whole = [
        vlm.prompt(sample.image, sample.question).answered(one.passage.ids.new_tensor(trace.token_ids[:2]))
        for sample, one, trace in zip(samples, asked, traces, strict=True)
    ]
    logprobs, _, _ = Passages(vlm, whole, [one.queries[0] + np.arange(3) for one in asked]).read()
    for row, trace in enumerate(traces):
        assert np.allclose(logprobs[row, np.arange(3), trace.token_ids], trace.logprobs, rtol=1e-3, atol=1e-4)
        assert asked[row].answer == trace.tokens[: asked[row].step + 1]

    stages, n = three_stages(vlm, asked, width=1), vlm.n_layers
    assert stages.window.shape == (2, n, 2) and (stages.withdrawn[:, 0] > 0).any()  # the image matters
    assert np.allclose(stages.frozen[:, n - 1], 0, atol=1e-9)  # nothing reads the patches after the last layer
    assert np.isfinite(stages.sink_ratio).all() and (np.abs(stages.cosine) <= 1).all()
