"""Interventions against slow statements: plain torch hooks on an eager forward of the whole sequence."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding.interventions import SkipImage
from visionpulse_analysis.pruners.vtw import VTW

QUESTION = "where is the red circle ?"
STEPS, LAYER = 5, 3
CLOSE = {"rtol": 1e-3, "atol": 1e-4}  # log probabilities of float32 models, computed in another order


@pytest.fixture(scope="module")
def traces(vlm, pictures):
    """Of two pictures and two questions: one row of a batch is padded."""
    return vpa.decode(vlm, pictures[:2], [QUESTION, "how many ?"], max_new_tokens=STEPS, sample=None)


@pytest.fixture(scope="module")
def dense(vlm, traces):
    return vpa.intervene(vlm, traces, layers="all", heads="all", states=[0, LAYER, vlm.n_layers])


@contextmanager
def hooks(*handles):
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Slow:
    """The whole sequence of a trace in one eager forward, with plain hooks of torch."""

    def __init__(self, vlm, trace):
        prompt = vlm.prompt(trace.images[0], trace.question)
        self.vlm, self.n, self.places = vlm, len(prompt.ids), torch.from_numpy(prompt.grid.position.copy())
        self.inputs = vlm.family.batch([prompt.answered(torch.from_numpy(trace.token_ids[:-1].astype(np.int64)))], 0)
        self.length = self.inputs["input_ids"].shape[1]
        self.blocks = vlm.model.model.language_model.layers

    def query(self, step):
        return self.n - 1 + step

    def run(self, *handles):
        """Log probabilities float32 [step, word], and weights [layer, head, step, key]."""
        self.vlm.model.set_attn_implementation({"text_config": "eager"})
        try:
            with hooks(*handles), torch.inference_mode():
                out = self.vlm.model(**self.inputs, use_cache=False, output_attentions=True)
        finally:
            self.vlm.model.set_attn_implementation({"text_config": "sdpa"})
        weights = torch.stack(out.attentions)[:, 0, :, self.n - 1 :]
        return torch.log_softmax(out.logits[0, self.n - 1 :].float(), -1).numpy(), weights

    def hiding(self, layers, hidden):
        """Hooks that take keys away by an explicit mask: bool [query, key], True where hidden."""

        def hook(module, args, options):
            mask = options["attention_mask"].masked_fill(hidden, torch.finfo(torch.float32).min)
            return args, {**options, "attention_mask": mask}

        return [self.blocks[i].self_attn.register_forward_pre_hook(hook, with_kwargs=True) for i in layers]

    def hidden(self, queries, patches):
        hidden = torch.zeros(self.length, self.length, dtype=torch.bool)
        for query in queries:
            hidden[query, self.places[patches]] = True
            hidden[query, query] = False
        return hidden


@pytest.mark.parametrize("steps", [None, [0, 2]], ids=["all", "two steps"])
def test_hidden_patches_are_taken_away_by_an_explicit_mask(vlm, traces, dense, steps):
    layers = range(LAYER, vlm.n_layers)
    found = vpa.intervene(vlm, traces, vpa.HidePatches(layers=layers, steps=steps), layers="all", heads="all")
    for row, trace in enumerate(traces):
        slow = Slow(vlm, trace)
        queries = range(slow.length) if steps is None else [slow.query(step) for step in steps if step < len(trace)]
        said, weights = slow.run(*slow.hiding(layers, slow.hidden(queries, slice(None))))
        assert np.allclose(found.logprobs[row, : len(trace)], said, **CLOSE)
        at = weights[..., slow.places].permute(2, 0, 1, 3)
        assert np.allclose(found.attention[row, : len(trace), ..., : len(trace.grid)], at, atol=2e-3)
    moved = np.abs(found.logprobs - dense.logprobs).max(("row", "word"))
    assert (moved > 1e-3).values[[0, 2]].all()


def test_patches_kept_by_row_and_step_are_those(vlm, traces, rng):
    widest = max(len(trace.grid) for trace in traces)
    keep = rng.random((2, STEPS, widest)) < 0.3
    found = vpa.intervene(vlm, traces, vpa.HidePatches(keep, steps=range(STEPS)), batch_size=1)
    for row, trace in enumerate(traces):
        slow, count = Slow(vlm, trace), len(trace.grid)
        hidden = torch.zeros(slow.length, slow.length, dtype=torch.bool)
        for step in range(len(trace)):
            hidden |= slow.hidden([slow.query(step)], np.flatnonzero(~keep[row, step, :count]))
        said, _ = slow.run(*slow.hiding(range(vlm.n_layers), hidden))
        assert np.allclose(found.logprobs[row, : len(trace)], said, **CLOSE)


def test_ablated_heads_are_those_whose_input_to_the_projection_is_zero(vlm, traces):
    heads, layers, dim = [1, 2], [LAYER, 5], vlm.model.model.language_model.layers[0].self_attn.head_dim
    columns = [head * dim + i for head in heads for i in range(dim)]
    found = vpa.intervene(vlm, traces, vpa.AblateHeads(heads, layers=layers))
    some = vpa.intervene(vlm, traces, vpa.AblateHeads(heads, scale=0.5, layers=layers, steps=[1]))
    weights = [vlm.model.model.language_model.layers[i].self_attn.o_proj.weight for i in layers]
    before = [weight.data.clone() for weight in weights]
    for row, trace in enumerate(traces):
        slow = Slow(vlm, trace)
        try:
            for weight in weights:
                weight.data[:, columns] = 0
            said, _ = slow.run()
        finally:
            for weight, was in zip(weights, before, strict=True):
                weight.data.copy_(was)
        assert np.allclose(found.logprobs[row, : len(trace)], said, **CLOSE)

        def halved(module, args, slow=slow):
            given = args[0].clone()
            given[:, slow.query(1), columns] *= 0.5
            return (given,)

        said, _ = slow.run(*[slow.blocks[i].self_attn.o_proj.register_forward_pre_hook(halved) for i in layers])
        assert np.allclose(some.logprobs[row, : len(trace)], said, **CLOSE)
    assert np.abs(found.logprobs - some.logprobs).max() > 1e-3


@pytest.mark.parametrize("how", ["replace", "add"])
@pytest.mark.parametrize("layer", [0, LAYER, 8])
def test_patched_activations_are_those_that_a_forward_hook_puts_there(vlm, traces, dense, rng, how, layer):
    trace, slow = traces[0], Slow(vlm, traces[0])
    tokens = [int(slow.places[3]), int(slow.places[20]), slow.query(1), slow.query(3)]
    states = rng.normal(size=(len(tokens), vlm.model.config.get_text_config().hidden_size)).astype(np.float32)
    act = vpa.PatchActivations(states, layer, tokens=tokens, how=how)
    found = vpa.intervene(vlm, trace, act, states=[layer])

    def put(given):
        given = given.clone()
        given[0, tokens] = torch.from_numpy(states) + (given[0, tokens] if how == "add" else 0)
        return given

    if layer < vlm.n_layers:
        hook = slow.blocks[layer].register_forward_pre_hook(
            lambda module, args, options: ((put(args[0]), *args[1:]), options), with_kwargs=True
        )
    else:
        hook = slow.blocks[-1].register_forward_hook(lambda module, args, out: put(out))
    said, _ = slow.run(hook)
    assert np.allclose(found.logprobs[0], said, **CLOSE)
    assert np.abs(found.logprobs[0] - dense.logprobs[0]).max() > 1e-3
    if how == "replace":
        assert np.array_equal(found.states[0, 0, tokens], states)


def test_all_patches_of_another_picture_give_what_it_gives(vlm, pictures):
    """Patched at layer 0, the embeddings of the patches; deeper layers of Qwen3-VL add theirs of the picture shown."""
    one, other = (pictures[0], QUESTION), (255 - pictures[0], QUESTION)
    last = vlm.n_layers - 1
    source = vpa.intervene(vlm, other, states=[last])
    grid = vlm.prompt(*one).grid
    states = source.states.sel(state_layer=last).isel(token_position=grid.position)
    patched = vpa.intervene(vlm, [one, one], vpa.PatchActivations(states, last, tokens="patches"), states=[last])
    assert np.array_equal(patched.states[1, 0, grid.position], states[0])
    text = np.setdiff1d(np.arange(patched.sizes["token_position"]), grid.position)
    plain = vpa.intervene(vlm, one, states=[last])
    assert np.allclose(patched.states[0, 0, text], plain.states[0, 0, text], rtol=1e-4, atol=1e-4)
    assert np.abs(patched.logprobs[0] - plain.logprobs[0]).max() > 1e-4


def test_a_step_alone_is_the_pass_in_which_only_it_is_changed(vlm, traces, dense):
    acts = [vpa.HidePatches(layers=range(2, 8)), vpa.AblateHeads([0], layers=[4])]
    alone = vpa.intervene(vlm, traces, acts, alone=True, layers=[5], states=[6])
    assert alone.step.values.tolist() == list(range(1, STEPS))
    for step in alone.step.values:
        only = [
            vpa.HidePatches(layers=range(2, 8), steps=[step]),
            vpa.AblateHeads([0], layers=[4], steps=[step]),
        ]
        whole = vpa.intervene(vlm, traces, only, layers=[5])
        for name in ("logprobs", "attention"):
            one, other = alone[name].sel(step=step), whole[name].sel(step=step)
            assert np.allclose(one, other, rtol=1e-3, atol=1e-3 if name == "attention" else 1e-4, equal_nan=True)
    assert np.abs(alone.logprobs - dense.logprobs.sel(step=alone.step)).max() > 1e-3
    with pytest.raises(ValueError, match="alone"):
        vpa.intervene(vlm, (traces[0].images[0], QUESTION), alone=True)


def test_what_decodes_under_an_intervention_says_the_same_when_it_is_told_its_answer(vlm, traces):
    rows = [(trace.images[0], trace.question) for trace in traces]
    acts = [SkipImage(layers=[6]), vpa.HidePatches(layers=range(4, 8)), vpa.AblateHeads([0, 3], layers=range(3))]
    said = vpa.intervene(vlm, rows, acts, max_new_tokens=STEPS, layers="all", states=[0, 8])
    answers = [[int(token) for token in line if token >= 0][:-1] for line in said.token.values]
    told = vpa.intervene(vlm, rows, acts, answer=answers, layers="all", states=[0, 8])
    for name in ("logprobs", "attention", "states"):
        close = {"rtol": 1e-3, "atol": 2e-3 if name == "attention" else 1e-4}
        assert np.allclose(told[name], said[name], **close, equal_nan=True)
    assert np.array_equal(said.token[:, 0], said.logprobs[:, 0].argmax("word"))
    assert said.token[0].values[: len(traces[0])].tolist() != traces[0].token_ids.tolist()


def test_dense_it_is_decoding(vlm, traces, dense):
    """And a pruner in the list is the pruner of decode, beside what else acts."""
    for row, trace in enumerate(traces):
        steps = np.arange(len(trace))
        assert np.abs(dense.logprobs[row].values[steps, trace.token_ids] - trace.logprobs).max() < 1e-4
        mean = dense.attention[row, steps].mean("head").values[..., : len(trace.grid)]
        assert np.allclose(mean, trace.attention.values.astype(np.float32), atol=2e-3)
    rows = [(trace.images[0], trace.question) for trace in traces]
    pruned = vpa.decode(vlm, *zip(*rows, strict=True), pruner=VTW(3), max_new_tokens=3, sample=None)
    found = vpa.intervene(vlm, rows, VTW(3), max_new_tokens=3)
    hidden = vpa.intervene(vlm, rows, vpa.HidePatches(layers=range(3, 8)), max_new_tokens=3)
    for row, trace in enumerate(pruned):
        assert [token for token in found.token[row].values if token >= 0] == trace.token_ids.tolist()
    assert np.allclose(found.logprobs, hidden.logprobs, **CLOSE, equal_nan=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interventions": vpa.HidePatches(layers=[8])}, "layers 0 to 7"),
        ({"interventions": vpa.AblateHeads([99])}, "heads 0 to"),
        ({"interventions": vpa.HidePatches(np.ones(5, bool))}, "for 5 patches"),
        ({"interventions": vpa.PatchActivations(np.ones((2, 3), np.float32), 0, tokens=[1, 2])}, "width 3"),
        ({"interventions": vpa.PatchActivations(np.ones(3, np.float32), 9)}, "stands for what leaves the last"),
        ({"interventions": ["hide"]}, "expected interventions"),
        ({"interventions": [VTW(1), VTW(2)]}, "one pruner at most"),
        ({"answer": "r1"}, "not two"),
        ({"states": [9]}, "states"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(vlm, traces, options, message):
    with pytest.raises(ValueError, match=message):
        vpa.intervene(vlm, traces[0], **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vpa.HidePatches(np.ones(5)), "keep must be bool"),
        (lambda: vpa.HidePatches(steps=[-2]), "at least -1"),
        (lambda: vpa.AblateHeads([]), "a head or more"),
        (lambda: vpa.PatchActivations(np.ones((3, 4)), 0), "every token"),
        (lambda: vpa.PatchActivations(np.ones((3, 4)), 0, tokens=[1, 2]), "one entry for each"),
        (lambda: vpa.PatchActivations(np.full(4, np.nan), 0), "NaN"),
        (lambda: vpa.PatchActivations(np.ones(4), 0, tokens=[1], steps=[1]), "not both"),
    ],
)
def test_bad_interventions_are_refused_when_they_are_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()
