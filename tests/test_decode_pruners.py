"""Pruners that act at decode steps, against slow statements of their rules, on random logits and on a real cache."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import slow_prefill as slow
import torch
from slow_pruners import (
    LAYERS,
    as_sets,
    random_batch,
    random_logits,
    row_logits,
    run,
    slow_dycoke,
    slow_st3,
    slow_weights,
)
from slow_rules import SlowFastV

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding import Batch
from visionpulse_analysis.metrics.flops import ModelShape, costs_of, count_costs
from visionpulse_analysis.pruners import DivPrune, FastV
from visionpulse_analysis.pruners.dycoke import DyCoke
from visionpulse_analysis.pruners.look_m import LookM, merge_cut
from visionpulse_analysis.pruners.st3 import ST3
from visionpulse_analysis.pruners.view import View
from visionpulse_analysis.pruners.visipruner import VisiPruner
from visionpulse_analysis.pruners.vtw import MVW, VTW

QUESTION = "where is the red circle ?"


@pytest.fixture(params=range(4))
def random_run(request):
    """batch, layout, logits [step][layer] of seven steps; every other step nearly repeats the one before."""
    rng = np.random.default_rng(request.param)
    batch = random_batch(rng)
    logits = random_logits(rng, batch, 7, scale=3.0)
    for step in (2, 4, 5):
        for layer in range(LAYERS):
            now, before = logits[step][layer], logits[step - 1][layer]
            now[:, :, : before.shape[2]] = before + torch.from_numpy(rng.normal(size=before.shape) * 0.05).float()
    return batch, batch.layout(), logits


@pytest.mark.parametrize(
    "pruner",
    [DyCoke(), DyCoke(0.1, layer=1, threshold=0.99), DyCoke(0.5, unpruned_when_steady=False)],
    ids=repr,
)
def test_dycoke_follows_its_rule(pruner, random_run):
    batch, layout, logits = random_run
    made = run(pruner, layout, logits)
    steady = 0
    for row, places in enumerate(batch.places):
        rows = [row_logits(layers[pruner.layer - 1], batch, row) for layers in logits[1:]]
        read = slow_dycoke(pruner, [slow_weights(now, places) for now in rows])
        for step, expected in enumerate(read):
            seen = made[step]["seen"]
            assert seen[: pruner.layer] == [None] * pruner.layer
            assert all(as_sets(kept)[row] == expected for kept in seen[pruner.layer :])
        sizes = [len(kept) for kept in read]
        steady += sizes.count(len(places)) if pruner.unpruned_when_steady else read.count(read[0]) - 1
    assert steady  # steps at which the attention hardly moved were among them


@pytest.mark.parametrize(
    "pruner",
    [
        ST3(),
        ST3(0, stride=2, rate=0.5, horizon=4, floor=0.2),
        ST3(2, horizon=10, decay="linear", floor=0.05),
        ST3(1, horizon=3, decay="exponential"),
        ST3(1, decay="none"),
    ],
    ids=repr,
)
def test_st3_follows_its_rule(pruner, random_run):
    batch, layout, logits = random_run
    made = run(pruner, layout, logits)
    for row, places in enumerate(batch.places):
        rows = [[row_logits(layer, batch, row) for layer in layers] for layers in logits]
        for step, expected in enumerate(slow_st3(pruner, rows, places)[1:]):
            assert [as_sets(kept)[row] for kept in made[step]["seen"]] == expected


def test_st3_never_brings_back_what_it_deleted(random_run):
    _, layout, logits = random_run
    made = run(ST3(horizon=5), layout, logits)
    for earlier, later in pairwise(made):
        for before, after in zip(earlier["seen"], later["seen"], strict=True):
            assert not (after & ~before).any()


def test_fastv_per_step_is_a_prefill_of_its_own_at_every_step(vlm, pictures):
    """The authors' run without a cache: what FastV does with prompt and answer as one long prompt."""
    questions, pruner = [QUESTION, "how many ?"], FastV(3, 0.25, per_step=True)
    images = [pictures[0], [pictures[0], pictures[0]]]
    made = vpa.decode(vlm, images, questions, pruner=pruner, max_new_tokens=4)
    once = vpa.decode(vlm, images, questions, pruner=FastV(3, 0.25), max_new_tokens=4)
    assert any(not np.array_equal(a.kept.values, b.kept.values) for a, b in zip(made, once, strict=True))
    for trace, other, image, question in zip(made, once, images, questions, strict=True):
        assert trace.token_ids[0] == other.token_ids[0] and trace.logprobs[0] == other.logprobs[0]
        words = vlm.tokenizer(question, add_special_tokens=False).input_ids
        for step in range(len(trace)):
            inputs = slow.inputs_of(vlm, image, question, trace.token_ids[:step].tolist(), words)
            logprobs, ran, rows = slow.slow_forward(vlm, inputs, SlowFastV(FastV(3, 0.25), 0))
            assert np.flatnonzero(trace.kept.values[step]).tolist() == ran[-1]
            assert trace.k_per_layer.values[step].tolist() == [len(kept) for kept in ran]
            assert logprobs[trace.token_ids[step]].item() == pytest.approx(trace.logprobs[step], abs=1e-4)
            assert np.abs(trace.attention.values[step] - rows).max() < 1e-3
        alone = vpa.decode(vlm, image, question, pruner=pruner, max_new_tokens=4)
        assert alone.tokens == trace.tokens and np.allclose(alone.logprobs, trace.logprobs, atol=1e-4)


def test_fastv_per_step_costs_a_prefill_a_step_and_no_cache(vlm, pictures):
    trace = vpa.decode(vlm, pictures[0], QUESTION, pruner=FastV(3, 0.25, per_step=True), max_new_tokens=3)
    found, shape = costs_of(trace), ModelShape(**trace.meta["costs"]["shape"])
    text, patches = trace.meta["costs"]["text"], len(trace.grid)
    for step in range(3):
        k = trace.k_per_layer.values[step : step + 1]
        assert found.flops[step] == count_costs(shape, k, text=text + step, patches=patches).flops[0]
    assert not found.kv_bytes_read.any() and not found.kv_bytes_held.any()


def test_fastv_per_step_with_everything_is_dense(vlm, pictures):
    whole, plain = (
        vpa.decode(vlm, pictures[:2], [QUESTION] * 2, pruner=pruner, max_new_tokens=5)
        for pruner in (FastV(budget=1.0, per_step=True), None)
    )
    for a, b in zip(whole, plain, strict=True):
        assert a.tokens == b.tokens and np.allclose(a.logprobs, b.logprobs, atol=1e-4)


def test_a_run_without_a_cache_takes_no_pruner_of_decode_steps(vlm, pictures):
    both = DivPrune(0.5) | FastV(3, 0.25, per_step=True)
    trace = vpa.decode(vlm, pictures[0], QUESTION, pruner=both, max_new_tokens=2)
    assert trace.k_per_layer.values[:, 0].tolist() == [round(0.5 * len(trace.grid))] * 2
    with pytest.raises(ValueError, match="mvw acts at decode steps"):
        vpa.decode(vlm, pictures[0], QUESTION, pruner=FastV(per_step=True) | MVW(1), max_new_tokens=2)


def test_mvw_lets_go_after_its_tokens(vlm, pictures):
    dense = vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=6)
    for tokens in (1, 3):
        trace = vpa.decode(vlm, pictures[0], QUESTION, pruner=MVW(tokens), max_new_tokens=6)
        steps = len(trace)
        assert trace.k.values.tolist() == [64] * min(tokens, steps) + [0] * (steps - tokens)
        # The step that reads generated token number `tokens` is the first without the image.
        assert trace.tokens[:tokens] == dense.tokens[:tokens]
        assert np.array_equal(trace.attention.values[:tokens], dense.attention.values[:tokens])
        assert not trace.attention.values[tokens:].any()


LOOKM = [LookM(0.5, 0.1), LookM(0.3, 0.4), LookM(0.1, 0.1), LookM(0.1, 0.2, budget=0.3), LookM(0.9, 0.9, budget=0.1)]


@pytest.mark.parametrize("pruner", LOOKM, ids=repr)
def test_lookm_cuts_by_the_attention_of_the_whole_prompt(vlm, pictures, monkeypatch, pruner):
    opened = []
    start = LookM.start
    monkeypatch.setattr(LookM, "start", lambda self, layout: opened.append(start(self, layout)) or opened[-1])
    images = [pictures[1], [pictures[0], pictures[0]]]
    traces = vpa.decode(vlm, images, [QUESTION] * 2, pruner=pruner, max_new_tokens=2)
    for row, (image, trace) in enumerate(zip(images, traces, strict=True)):
        prompt = vlm.prompt(image, QUESTION)
        attention, places, length = eager_prompt(vlm, prompt), prompt.grid.position, len(prompt.ids)
        window = length - int(pruner.recent * length)
        text = [at for at in range(window) if at not in places]
        room = max(0, int(pruner.heavy * length) - len(text))
        if pruner.budget is not None:
            room = max(0, round(pruner.budget * len(places)) - sum(place >= window for place in places))
        for layer, weights in enumerate(attention):
            scores = weights.sum(axis=(0, 1))[places]
            late = {patch for patch, place in enumerate(places) if place >= window}
            early = [patch for patch in range(len(places)) if patch not in late]
            best = sorted(early, key=lambda patch: -scores[patch])[:room]
            kept = opened[0].per_layer[layer][row, : len(places)]
            assert set(np.flatnonzero(kept)) == late | set(best)
            assert trace.k_per_layer.values[:, layer].tolist() == [len(places), len(late) + min(room, len(early))]


def test_lookm_merges_what_it_cuts_into_its_most_similar_kept_key():
    rng = np.random.default_rng(1)
    batch = random_batch(rng)
    layout = batch.layout()
    keys, values = (torch.from_numpy(rng.normal(size=(3, 2, batch.width, 8))).float() for _ in range(2))
    chance = torch.from_numpy(rng.random(layout.patches.shape))
    cut, gone = layout.patches & (chance < 0.6), layout.patches & (chance > 0.9)
    away_keys, cut_keys = layout.keys_of(cut | gone, batch.width), layout.keys_of(cut, batch.width)
    new = merge_cut(keys, values, layout.real(batch.width) & ~away_keys, cut_keys)
    for row, head in product(range(3), range(2)):
        away = set(layout.places[row][(cut | gone)[row]].tolist())
        stay = [at for at in range(int(layout.starts[row]), batch.width) if at not in away]
        own, means = keys[row, head].double(), {at: [at] for at in stay}
        for at in layout.places[row][cut[row]].tolist():
            means[max(stay, key=lambda k: float(own[at] @ own[k] / own[at].norm() / own[k].norm()))].append(at)
        assert any(len(members) > 1 for members in means.values())
        for at, members in means.items():
            for old, found in zip((keys, values), new, strict=True):
                here, now = old[row, head].double(), found[row, head, at]
                pairs = [here[at], *((here[at] + here[one]) / 2 for one in members[1:])]
                assert torch.allclose(now.double(), sum(pairs) / len(pairs), atol=1e-6)
                assert len(members) > 1 or torch.equal(now, old[row, head, at])


def test_lookm_merges_the_cache_that_its_steps_read(vlm, pictures, monkeypatch):
    def prefill(self, original=Batch.prefill):
        logits = original(self)
        cached.append(([(layer.keys.clone(), layer.values.clone()) for layer in self.cache.layers], self.groups))
        return logits

    cached: list = []
    monkeypatch.setattr(Batch, "prefill", prefill)
    images, kinds = [pictures[1], pictures[0]], (LookM(merge="none"), LookM(), VTW(3), VTW(3) | LookM())
    traces = [vpa.decode(vlm, images, [QUESTION] * 2, pruner=kind, max_new_tokens=3) for kind in kinds]
    (before, _), (after, [group]), (alone, _), (both, _) = cached
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        stay = group.selection.per_layer[number]
        keys, values = old
        cut = group.layout.keys_of(~stay, keys.shape[2])
        expected = merge_cut(keys, values, group.layout.real(keys.shape[2]) & ~cut, cut)
        assert all(torch.equal(a, b) for a, b in zip(expected, new, strict=True))
        assert not torch.equal(old[0], new[0])
    assert not np.array_equal(traces[0][0].logprobs[1:], traces[1][0].logprobs[1:])
    assert np.array_equal(traces[0][0].logprobs[:1], traces[1][0].logprobs[:1])
    # What another pruner has dropped in prefill is gone, and merged into nothing.
    assert torch.equal(both[2][0], after[2][0]) and torch.equal(both[4][0], alone[4][0])


def eager_prompt(vlm, prompt) -> list[np.ndarray]:
    """Attention of the prompt by the library's eager implementation: float64 [head, query, key] per layer."""
    vlm.model.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.inference_mode():
            inputs = vlm.family.batch([prompt], 0)
            out = vlm.model(**inputs, output_attentions=True)
    finally:
        vlm.model.set_attn_implementation({"text_config": "sdpa"})
    return [weights[0].double().numpy() for weights in out.attentions]


class Given(View):
    """A view in which each patch adds a given vector to the output: parts [row, patch, width]."""

    def __init__(self, layer, layout, parts, output):
        nothing = torch.zeros(1)
        super().__init__(0, layer, layout, nothing, nothing, nothing, None, 1.0)
        self.parts, self.output = parts, output

    def only(self, kept):
        return Given(self.layer, self.layout, self.parts * kept[..., None], self.output)

    def contributions(self):
        return self.parts, self.output


@pytest.mark.parametrize(
    ("rule", "after", "gone_from"),
    [("cumulative", 1, 3), ("cumulative", 2, 5), ("consecutive", 2, 6), ("consecutive", 3, 7)],
)
def test_visipruner_counts_the_layers_at_rest(rule, after, gone_from):
    layout = random_batch(np.random.default_rng(0), rows=2).layout()
    pruner = VisiPruner(("middle", "deep"), 0, relative_threshold=0.05, exit_after=after, exit_rule=rule)
    selection, output, seen = pruner.start(layout), torch.tensor([[1.0, 0.0]]).expand(2, -1), []
    # Layer 1 filters, layer 2 is at rest, layer 3 is not, layers 4 to 6 are.
    for layer, turn in enumerate([0.0, 0.5, 0.001, 0.2, 0.001, 0.001, 0.001, 0.001]):
        parts = torch.zeros(2, layout.patches.shape[1], 2)
        parts[0, 0, 1] = turn  # the first patch of row 0 turns the output; nothing ever does in row 1
        seen.append(selection.visible_prefill(Given(layer, layout, parts, output)))
    n = int(layout.counts[0])
    # What a layer says holds from the next one on.
    assert [int(kept[0].sum()) for kept in seen] == [n if layer < 2 else int(layer < gone_from) for layer in range(8)]
    assert all(torch.equal(kept[1], layout.patches[1]) for kept in seen)
