"""Selections that add a bias to the logits of the patches, and what they see of a step, against slow statements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from slow_pruners import SlowWeighing, slow_adaptvis

import visionpulse_analysis as vpa
from visionpulse_analysis.attention.gathered import Gathered
from visionpulse_analysis.decoding import Batch, run
from visionpulse_analysis.pruners import Pruner
from visionpulse_analysis.pruners.adaptvis import AdaptVis
from visionpulse_analysis.pruners.base import KNOWN

QUESTIONS = ["where is the red circle ?", "how many blue shapes ?"]
STEPS = 5


@pytest.fixture
def giving():
    """A pruner that is written as a function of the view."""

    def make(choose=lambda view: None, in_prefill=None) -> Pruner:
        @dataclass(frozen=True)
        class Giving(Pruner):
            name: ClassVar[str] = "giving"

            def visible(self, view, run):
                return choose(view)

            def visible_prefill(self, view, run):
                return None if in_prefill is None else in_prefill(view)

        return Giving()

    yield make
    KNOWN.pop("giving", None)


def waves(layer: int, head: int | torch.Tensor, patch: torch.Tensor) -> torch.Tensor:
    """A bias that differs from layer to layer, head to head and patch to patch; some heads see some patches not."""
    wave = 2 * torch.sin(1.0 + layer + 2 * head + patch)
    return wave.masked_fill((patch + head + layer) % 5 == 0, -torch.inf)


def per_head(view):
    layer, (rows, patches) = view.layer, view.layout.patches.shape
    return waves(layer, torch.arange(view.query.shape[1])[:, None], torch.arange(patches)).expand(rows, -1, -1)


def asked(pictures):
    """Two rows of different lengths; the second prompt shows a larger picture."""
    return [pictures[0], pictures[2]], QUESTIONS


def check(trace, slow) -> None:
    steps = len(trace)  # the slow one goes on behind an end token
    assert trace.token_ids.tolist() == slow.tokens[:steps]
    assert np.abs(trace.logprobs - slow.logprobs[:steps]).max() < 1e-4
    rows = trace.attention.values.astype(float)
    expected = (slow.rows if rows.ndim == 4 else slow.rows.mean(axis=2))[:steps]
    assert np.abs(rows - expected).max() <= np.spacing(np.float16(expected.max())) / 2 + 1e-5
    assert trace.kept.values.all() and (trace.k.values == len(trace.grid)).all()


class TestAgainstAttentionWrittenOut:
    @pytest.fixture
    def slow(self, vlm, pictures, monkeypatch):
        prompts = [vlm.prompt(image, question) for image, question in zip(*asked(pictures), strict=True)]
        return lambda weigh: [SlowWeighing(vlm, prompt, weigh, STEPS, monkeypatch) for prompt in prompts]

    def test_adaptvis_in_decode_in_a_batch_gathered_and_inside_generate(self, vlm, pictures, slow):
        images, questions = asked(pictures)
        dense = vpa.decode(vlm, images, questions, max_new_tokens=STEPS)
        middle = float(np.exp(np.median(np.concatenate([trace.logprobs for trace in dense]))))
        pruner = AdaptVis(sharp=2.0, smooth=0.25, threshold=middle)
        expected = slow(slow_adaptvis(pruner))
        sure = np.exp([one.logprobs[:-1] for one in expected]) >= middle
        assert sure.any() and not sure.all()  # both factors were in use
        for execution in ("masked", "gathered"):
            made = vpa.decode(vlm, images, questions, pruner=pruner, execution=execution, max_new_tokens=STEPS)
            for trace, one in zip(made, expected, strict=True):
                check(trace, one)
        check(vpa.decode(vlm, images[0], questions[0], pruner=pruner, max_new_tokens=STEPS, heads="all"), expected[0])
        inputs = vlm.family.batch([vlm.prompt(*one) for one in zip(images, questions, strict=True)], padding=0)
        with vpa.watch(vlm.model, vlm.tokenizer, pruner=pruner) as w:
            vlm.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
        for trace, one in zip(w.traces, expected, strict=True):
            check(trace, one)
        assert not np.array_equal(made[0].logprobs, dense[0].logprobs) and made[0].logprobs[0] == dense[0].logprobs[0]

    def test_a_bias_of_each_head(self, vlm, pictures, slow, giving):
        def weigh(layer, head, logits, logprobs):
            return logits + waves(layer, head, torch.arange(len(logits))).double().numpy()

        pruner, expected = giving(per_head), slow(weigh)
        for trace, one in zip(
            vpa.decode(vlm, *asked(pictures), pruner=pruner, max_new_tokens=STEPS), expected, strict=True
        ):
            check(trace, one)
        vlm.model.set_attn_implementation({"text_config": "eager"})
        try:
            check(vpa.decode(vlm, pictures[0], QUESTIONS[0], pruner=pruner, max_new_tokens=STEPS), expected[0])
        finally:
            vlm.model.set_attn_implementation({"text_config": "sdpa"})


def test_a_hidden_set_is_a_bias_of_minus_infinity(vlm, pictures, giving):
    def every_third(view):
        numbers = torch.arange(view.layout.patches.shape[1])
        return view.layout.patches & (numbers % 3 == 0)

    def as_bias(view):
        return torch.zeros(view.layout.patches.shape).masked_fill(~every_third(view), -torch.inf)

    for execution in ("masked", "gathered"):
        hidden, biased = (
            vpa.decode(vlm, *asked(pictures), pruner=giving(rule), execution=execution, max_new_tokens=STEPS)
            for rule in (every_third, as_bias)
        )
        for one, other in zip(hidden, biased, strict=True):
            assert one.tokens == other.tokens and np.array_equal(one.kept.values, other.kept.values)
            assert np.array_equal(one.k_per_layer.values, other.k_per_layer.values)
            assert np.abs(one.logprobs - other.logprobs).max() < 1e-4
            assert one.meta["costs"] == other.meta["costs"]


def test_hiding_and_weighing_together_gathered_as_masked(vlm, pictures, monkeypatch):
    """Combined both ways round: the second sees the logits that the first one has left, and -inf hides for both."""
    given = []

    def attend(self, *values, original=Gathered.attend):
        given.append(values[-1])
        return original(self, *values)

    monkeypatch.setattr(Gathered, "attend", attend)
    for text in ("visionpulse(budget=0.2) | adaptvis(sharp=2.0)", "adaptvis(sharp=2.0) | visionpulse(budget=0.2)"):
        pruner = vpa.make_pruner(text)
        masked, gathered = (
            vpa.decode(vlm, *asked(pictures), pruner=pruner, execution=way, max_new_tokens=STEPS)
            for way in ("masked", "gathered")
        )
        assert any(bias is not None and bias.any() for bias in given)
        for one, other in zip(masked, gathered, strict=True):
            assert one.tokens == other.tokens and np.array_equal(one.kept.values, other.kept.values)
            assert np.abs(one.logprobs - other.logprobs).max() < 1e-4
            assert np.abs(one.mass.values - other.mass.values).max() < 1e-4
            assert (one.k.values[1:] == int(0.2 * len(one.grid))).all()
            hidden = ~one.kept.values[1:, None] & np.ones((1, 3, 1), bool)
            assert not one.attention.values[1:, -3:][hidden].any()


def test_the_second_of_two_chooses_by_what_the_first_adds(vlm, pictures, giving):
    def first_fifth(view):
        return 1e3 * (torch.arange(view.layout.patches.shape[1]) < (0.2 * view.layout.counts[:, None]).floor()).float()

    pruner = giving(first_fifth) | vpa.VisionPulse(budget=0.2)
    for trace in vpa.decode(vlm, *asked(pictures), pruner=pruner, max_new_tokens=3):
        k = int(0.2 * len(trace.grid))
        assert trace.kept.values[1:, :k].all() and (trace.k.values[1:] == k).all()


def test_what_a_selection_sees_of_a_step(vlm, pictures, giving, monkeypatch):
    """States, values of patches and log probabilities, in rows that share a batch, are those of each row alone."""
    seen: dict[tuple[int, int, int], tuple[torch.Tensor, ...]] = {}

    def look(view):
        for number in range(len(view.query)):
            patches = view.layout.patches[number]
            seen[view.layout.seeds[number], view.step, view.layer] = (
                view.newest_state()[number], view.logprobs()[number], view.patch_values()[number][:, patches]
            )  # fmt: skip
            assert view.patch_values()[number][:, ~patches].abs().sum() == 0

    images = [pictures[0], pictures[2], pictures[0], pictures[1]]
    questions = [QUESTIONS[number % 2] for number in range(4)]
    monkeypatch.setattr(run, "end_ids", lambda vlm: set())
    free = vpa.decode(vlm, images[:3], questions[:3], max_new_tokens=4, layers="none")
    ends, joined = {int(free[1].token_ids[1])}, []  # rows end at different steps, and the last question takes a place

    def put(self, rows, other, original=Batch.put):
        joined.append(rows)
        original(self, rows, other)

    monkeypatch.setattr(run, "end_ids", lambda vlm: ends)
    monkeypatch.setattr(Batch, "put", put)
    made = vpa.decode(vlm, images, questions, pruner=giving(look), max_new_tokens=4, batch_size=3)
    assert joined and len(made[3]) > 1
    for number, trace in enumerate(made):
        prompt = vlm.prompt(images[number], questions[number])
        whole = vlm.family.batch([prompt.answered(torch.from_numpy(trace.token_ids[:-1].copy()))], padding=0)
        with torch.inference_mode():
            out = vlm.model(**whole, output_hidden_states=True, use_cache=True)
        logprobs = torch.log_softmax(out.logits[0], dim=1)
        for step in range(1, len(trace)):
            at = len(prompt.ids) - 1 + step
            for layer in range(vlm.n_layers):
                state, before, values = seen[number, step, layer]
                assert torch.allclose(state, out.hidden_states[layer][0, at], atol=1e-3)
                assert torch.allclose(before, logprobs[at - 1], atol=1e-3)
                cached = out.past_key_values.layers[layer].values[0][:, torch.from_numpy(prompt.grid.position.copy())]
                assert torch.allclose(values, cached, atol=1e-3)
    assert len(seen) >= vlm.n_layers * sum(len(trace) - 1 for trace in made)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (lambda view: torch.full(view.layout.patches.shape, torch.nan), "NaN or .inf"),
        (lambda view: torch.full(view.layout.patches.shape, torch.inf), "NaN or .inf"),
        (lambda view: torch.zeros(len(view.query), 1), "expected the patches visible"),
        (lambda view: torch.zeros(len(view.query), 3, view.layout.patches.shape[1]), "expected the patches visible"),
        (lambda view: view.layout.places, "torch.int64"),
        (lambda view: view.patch_states(), "in prefill only"),
    ],
    ids=["nan", "infinity", "shape", "heads", "numbers", "states"],
)
def test_what_is_no_bias_is_refused_by_name(vlm, pictures, giving, choice, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        vpa.decode(vlm, pictures[0], QUESTIONS[0], pruner=giving(choice), max_new_tokens=2)


def test_a_bias_in_prefill_and_its_log_probabilities_are_refused(vlm, pictures, giving):
    for act, message in (
        (lambda view: torch.zeros(view.layout.patches.shape), "decode steps only"),
        (lambda view: view.logprobs(), "not known"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=message):
            vpa.decode(vlm, pictures[0], QUESTIONS[0], pruner=giving(in_prefill=act), max_new_tokens=2)
