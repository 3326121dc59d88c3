"""Positions counted anew: against layers run by hand on tokens that are really taken out of the sequence.

A tiny LLaVA over a Llama, whose positions have one dimension; the rules are those of slow_rules.py and
slow_sparsevlm.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import slow_rules as rules
import torch
from slow_prefill import Inputs, Layer
from slow_sparsevlm import SlowSparseVLM
from tiny_models import build
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import visionpulse_analysis as vpa
from visionpulse_analysis.attention.routing import watch_layers
from visionpulse_analysis.decoding import Batch
from visionpulse_analysis.pruners import DivPrune, FastV, PyramidDrop
from visionpulse_analysis.pruners.sparsevlm import SparseVLM
from visionpulse_analysis.pruners.zspaprune_cdpruner import CDPruner

pytestmark = pytest.mark.alike
QUESTION, LONGER = "how many ?", "what is on the left ?"


class Closed(Layer):
    """A layer of a Llama on the tokens alive, in their order, which stand at 0, 1, 2 .."""

    def __init__(self, number, block, inputs, tokens, states):
        self.number, self.block, self.inputs, self.tokens, self.states = number, block, inputs, tokens, states
        self.place = {token: at for at, token in enumerate(tokens.tolist())}
        attention, entering = block.self_attn, block.input_layernorm(states)[None]
        shape = (1, len(states), -1, attention.head_dim)
        self.query, self.key, self.value = (
            getattr(attention, f"{letter}_proj")(entering).view(shape).transpose(1, 2) for letter in "qkv"
        )
        self.group = self.query.shape[1] // self.key.shape[1]

    def weights(self, rope=True):
        n, attention = len(self.tokens), self.block.self_attn
        cos, sin = self.inputs.cos[None, :n], self.inputs.sin[None, :n]
        query, key = apply_rotary_pos_emb(self.query, self.key, cos, sin)
        logits = query[0] @ key[0].repeat_interleave(self.group, 0).transpose(1, 2) * attention.scaling
        return logits.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


class BehindTheImage(SlowSparseVLM):
    """As the code has it: what is merged follows the patches that are kept, cluster by cluster."""

    def prune(self, layer, after):
        before = list(self.left) if self.left is not None else layer.patches
        super().prune(layer, after)
        new = list(self.merged.get(layer.number, {}))
        self.left = [patch for patch in before if patch in self.left and patch not in new] + new


def inputs_of(vlm, picture, question, answer) -> Inputs:
    prompt, entered = vlm.prompt(picture, question), []

    class Entered:
        def enter(self, layer, block, states):
            entered.append(states)

        def leave(self, layer, states):
            return None

    whole = prompt.answered(torch.tensor(answer, dtype=torch.int64))
    with torch.inference_mode(), watch_layers(vlm.model, Entered()):
        vlm.model(**vlm.family.batch([whole], 0))
        n = len(whole.ids)
        cos, sin = vlm.model.get_decoder().rotary_emb(entered[0], torch.arange(n)[None])
    places, text = torch.tensor(prompt.grid.position), vlm.tokenizer.decode(prompt.ids)
    spoken = [at for at in range(len(prompt.ids)) if at > places.max()][: len(question)]  # one token a letter
    assert text.endswith(vlm.tokenizer.decode(prompt.ids[spoken[0] :])) and question in vlm.tokenizer.decode(
        prompt.ids[spoken]
    )
    pictures = torch.tensor(prompt.grid.image)
    return Inputs(entered[0][0], cos[0], sin[0], [], places, len(prompt.ids), pictures, torch.tensor(spoken))


@torch.inference_mode()
def closed_forward(vlm, inputs, rule, ran=None):
    """As `slow_forward`, with positions counted anew and the patches in the order in which the rule lists them."""
    decoder = vlm.model.get_decoder()
    tokens, states, chosen = torch.arange(len(inputs.states)), inputs.states, []
    first, last = int(inputs.places.min()), int(inputs.places.max())
    for number, block in enumerate(decoder.layers):
        chosen.append(rule.before(Closed(number, block, inputs, tokens, states)) if ran is None else ran[number])
        order = [*range(first), *inputs.places[chosen[-1]].tolist(), *range(last + 1, len(inputs.states))]
        at = [tokens.tolist().index(token) for token in order]
        tokens, states = tokens[at], states[at]
        states = rule.run(Closed(number, block, inputs, tokens, states)).clone()
    return torch.log_softmax(vlm.model.lm_head(decoder.norm(states[-1])), -1), chosen


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    build("llava").save(folder)
    model = vpa.load(str(folder))
    model.model.generation_config.eos_token_id = 10_000
    return model


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(5).integers(0, 256, size=(32, 32, 3), dtype=np.uint8)


CASES = [
    (PyramidDrop((1, 2, 3), 0.6, renumber=True), rules.SlowPyramid),
    (SparseVLM((1, 2), shares=(0.5, 0.25), renumber=True), BehindTheImage),
    (SparseVLM((0, 2), shares=(0.6, 0.3), recycled=0.0, renumber=True), BehindTheImage),
    (DivPrune(0.3, renumber=True), rules.SlowDivPrune),
    (CDPruner(0.3, renumber=True), rules.SlowCDPruner),
]


@pytest.mark.parametrize(("pruner", "rule"), CASES, ids=lambda value: "" if isinstance(value, type) else value.name)
@pytest.mark.parametrize("execution", ["masked", "gathered"])
def test_what_is_left_closes_up(llava, picture, monkeypatch, pruner, rule, execution):
    """Prefill and steps of a padded batch; without the option the numbers are others."""
    left = []

    def prefill(self, original=Batch.prefill):
        logits = original(self)
        left.append(self.groups[0].prefill.kept)
        return logits

    monkeypatch.setattr(Batch, "prefill", prefill)
    questions, steps = [QUESTION, LONGER], 4
    traces = vpa.decode(llava, [picture] * 2, questions, pruner=pruner, max_new_tokens=steps, execution=execution)
    for row, (question, trace) in enumerate(zip(questions, traces, strict=True)):
        stated, n = rule(pruner, row), len(trace.grid)
        logprobs, ran = closed_forward(llava, inputs_of(llava, picture, question, []), stated)
        for layer, kept in enumerate(left[0]):
            assert np.flatnonzero(np.ones(n) if kept is None else kept[row, :n]).tolist() == sorted(ran[layer]), layer
        for step in range(steps):
            if step:
                answer = trace.token_ids[:step].tolist()
                logprobs, _ = closed_forward(llava, inputs_of(llava, picture, question, answer), stated, ran)
            assert logprobs[trace.token_ids[step]].item() == pytest.approx(trace.logprobs[step], abs=1e-4)
    values = {**pruner.to_dict(), "renumber": False}
    plain = vpa.decode(llava, picture, QUESTION, pruner=vpa.make_pruner(**values), max_new_tokens=1)
    assert abs(plain.logprobs[0] - traces[0].logprobs[0]) > 4e-4  # four times what may differ above


def test_rows_that_join_and_leave_keep_their_positions(llava, picture):
    questions = [QUESTION, LONGER, "?", "where is it ?"]
    options = {"pruner": PyramidDrop((1, 2), 0.5, renumber=True), "max_new_tokens": 5}
    together = vpa.decode(llava, [picture] * 4, questions, batch_size=2, **options)
    for question, trace in zip(questions, together, strict=True):
        alone = vpa.decode(llava, picture, question, **options)
        assert alone.tokens == trace.tokens and np.allclose(alone.logprobs, trace.logprobs, atol=1e-4)


def test_with_another_pruner_and_without_a_cache(llava, picture):
    first = DivPrune(0.5, renumber=True)
    for both in (first | vpa.VisionPulse(budget=0.1), first | FastV(2, 0.2, per_step=True)):
        trace = vpa.decode(llava, picture, QUESTION, pruner=both, max_new_tokens=3)
        assert trace.k_per_layer.values[0, 0] == round(0.5 * len(trace.grid))
    alone = vpa.decode(llava, picture, QUESTION, pruner=first, max_new_tokens=1)
    whole = vpa.decode(llava, picture, QUESTION, pruner=first | FastV(2, 1.0, per_step=True), max_new_tokens=3)
    cached = vpa.decode(llava, picture, QUESTION, pruner=first, max_new_tokens=3)
    assert alone.logprobs[0] == pytest.approx(whole.logprobs[0], abs=1e-5)
    assert np.allclose(whole.logprobs, cached.logprobs, atol=1e-4)


def test_models_whose_positions_are_no_line_are_refused_before_anything_is_decoded(vlm, pictures, llava, monkeypatch):
    with pytest.raises(ValueError, match=r"a time, a row and a column.*renumber=False"):
        vpa.decode(vlm, pictures[0], QUESTION, pruner=vpa.VisionPulse() | DivPrune(renumber=True))
    monkeypatch.setattr(type(llava), "windowed_layers", property(lambda self: {1}))
    with pytest.raises(ValueError, match="sliding window"):
        vpa.decode(llava, pictures[0], QUESTION, pruner=PyramidDrop(renumber=True))
