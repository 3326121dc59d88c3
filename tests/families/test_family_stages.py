"""The three stages on every family: one pass over prompt and answer says what decoding says step by step."""

import numpy as np
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding.interventions.passes import TeacherForced
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
    logprobs = TeacherForced(vlm, whole, [one.queries[0] + np.arange(3) for one in asked]).read()
    for row, trace in enumerate(traces):
        assert np.allclose(logprobs[row, np.arange(3), trace.token_ids], trace.logprobs, rtol=1e-3, atol=1e-4)
        assert asked[row].answer == trace.tokens[: asked[row].step + 1]

    stages, n = three_stages(vlm, asked, width=1), vlm.n_layers
    assert stages.window.shape == (2, n, 2) and (stages.withdrawn[:, 0] > 0).any()  # the image matters
    assert np.allclose(stages.frozen[:, n - 1], 0, atol=1e-9)  # nothing reads the patches after the last layer
    assert np.isfinite(stages.sink_ratio).all() and (np.abs(stages.cosine) <= 1).all()


def test_interventions_do_in_one_pass_what_they_do_in_decoding(family, photos, monkeypatch):
    monkeypatch.setattr(family.vlm.model.generation_config, "eos_token_id", -1)
    vlm, rows = family.vlm, list(zip(photos[:2], QUESTIONS, strict=True))
    last = vlm.attention_layers[-1]
    acts = [vpa.HidePatches(layers=[last]), vpa.AblateHeads([1], layers=[vlm.attention_layers[0]])]
    said = vpa.intervene(vlm, rows, acts, max_new_tokens=3, layers=[last], states=[vlm.n_layers])
    answer = said.token.values[:, :-1].tolist()
    told = vpa.intervene(vlm, rows, acts, answer=answer, layers=[last], states=[vlm.n_layers])
    assert np.allclose(told.logprobs, said.logprobs, rtol=1e-3, atol=1e-4)
    assert np.allclose(told.states, said.states, rtol=1e-3, atol=1e-3, equal_nan=True)
    assert not np.nan_to_num(told.attention).any() and not np.nan_to_num(said.attention).any()
    for act in (*acts, ()):
        other = vpa.intervene(vlm, rows, act, answer=answer)
        assert np.abs(other.logprobs - told.logprobs).max() > 1e-5  # each does something
