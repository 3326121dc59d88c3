"""Replayed steps are what a pruner does at decode time, and the smallest K is where passing begins."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding import batch
from visionpulse_analysis.decoding.interventions import single_steps
from visionpulse_analysis.decoding.interventions.single_steps import SingleSteps, keep_exactly, keep_top
from visionpulse_analysis.decoding.sampling import Chooser
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.top_k import top_k
from visionpulse_analysis.studies.mass_and_usage import causal_usage as module
from visionpulse_analysis.studies.mass_and_usage.causal_usage import ANCHOR, LATER, TRUTH, causal_usage, smallest_k
from visionpulse_analysis.testbed.scenes.scene import generate
from visionpulse_analysis.testbed.scenes.truth import object_patches

QUESTION = "where is the red circle ?"
STEPS = 8


@dataclass(frozen=True)
class TopOnce(Pruner):
    """Keeps the top ``k`` of the head-mean logits from ``anchor`` on, at one decode step only."""

    name = "top_once"
    at: int = 1
    k: int = 5
    anchor: int = 3

    def start(self, layout):
        return _TopOnce(self, layout)


class _TopOnce(Selection):
    def __init__(self, pruner, layout):
        super().__init__(layout)
        self.pruner = pruner

    def visible(self, view):
        if view.step != self.pruner.at or view.layer < self.pruner.anchor:
            return None
        if view.layer == self.pruner.anchor:
            scores = view.patch_logits().mean(dim=1)
            self.kept = top_k(scores, torch.full((len(scores),), self.pruner.k))
        return self.kept


@pytest.fixture(scope="module")
def trace(vlm):
    return vpa.decode(vlm, generate(3, 6).render(), QUESTION, max_new_tokens=STEPS)


@pytest.fixture(scope="module")
def replay(vlm, trace):
    return SingleSteps.of(vlm, trace)


def logits_of(vlm, function):
    """Everything that the head of the model computes while ``function`` runs: list of float32 [row, word]."""
    seen = []
    hook = vlm.model.lm_head.register_forward_hook(lambda module, given, out: seen.append(out[0].float()))
    try:
        function()
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize("anchor", [0, 3, 7])
def test_replay_equals_the_pruner_switched_on_for_one_step(vlm, trace, replay, anchor):
    replayed = logits_of(vlm, lambda: replay.run(replay.steps, anchor, keep_top(5)))[0]
    dense = logits_of(vlm, lambda: replay.run(replay.steps, anchor, keep_top(replay.n_patches)))[0]
    for at in replay.steps:
        pruner = TopOnce(int(at), 5, anchor)
        decoded = logits_of(
            vlm,
            lambda p=pruner: vpa.decode(vlm, trace.images[0], QUESTION, pruner=p, max_new_tokens=STEPS),
        )
        assert torch.allclose(replayed[at - 1], decoded[at][-1], atol=1e-4)
    assert (replayed - dense).abs().max() > 1e-2  # hiding does something here, so the comparison can fail


def test_nothing_hidden_is_the_dense_run(trace, replay):
    chosen = replay.dense.gather(1, torch.from_numpy(trace.token_ids.copy())[:, None])[:, 0].numpy()
    assert np.abs(chosen - trace.logprobs).max() < 1e-4
    effect = replay.run(replay.steps, 0, keep_top(replay.n_patches))
    assert effect.kl.max() < 1e-8 and not effect.changed.any() and effect.kept.all()


def test_an_image_token_that_the_model_wrote_itself_is_replayed_as_a_word(vlm, monkeypatch, pictures):
    class Says(Chooser):
        steps = 0

        def __call__(self, logits):
            self.steps += 1
            chosen = super().__call__(logits)
            return torch.full_like(chosen, vlm.model.config.image_token_id) if self.steps == 3 else chosen

    monkeypatch.setattr(batch, "Chooser", Says)
    trace = vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=STEPS)
    assert trace.token_ids[2] == vlm.model.config.image_token_id
    dense = SingleSteps.of(vlm, trace).dense.gather(1, torch.from_numpy(trace.token_ids.copy())[:, None])[:, 0].numpy()
    assert np.abs(dense - trace.logprobs).max() < 1e-4


def test_rows_do_not_see_one_another(replay, monkeypatch):
    steps = np.array([5, 2, 2, 7])
    kept = np.random.default_rng(0).random((4, replay.n_patches)) < 0.1
    together = replay.run(steps, 2, keep_exactly(kept))
    assert np.array_equal(together.kept, kept)
    for row, step in enumerate(steps):
        alone = replay.run(np.array([step]), 2, keep_exactly(kept[row : row + 1]))
        assert np.isclose(alone.kl[0], together.kl[row], rtol=1e-3, atol=1e-7)
    monkeypatch.setattr(single_steps, "ROWS", 3)  # in several forwards
    in_parts = replay.run(steps, 2, keep_exactly(kept))
    assert np.array_equal(in_parts.kept, kept)
    assert np.allclose(in_parts.kl, together.kl, rtol=1e-3, atol=1e-7)
    sizes = np.array([1, 2, 3, 4])
    assert replay.run(steps, 2, keep_top(sizes)).kept.sum(axis=1).tolist() == sizes.tolist()


@pytest.mark.parametrize("level", [1e-4, 5e-4])
def test_smallest_k_is_a_crossing_found_by_trying_every_k(replay, level):
    found = smallest_k(replay, 3, level)
    passes = np.array([replay.run(replay.steps, 3, keep_top(k)).kl <= level for k in range(1, replay.n_patches + 1)])
    for step, k in enumerate(found):
        assert passes[k - 1, step]
        assert k == 1 or not passes[k - 2, step]
        if np.all(np.diff(passes[:, step].astype(int)) >= 0):
            assert k == 1 + np.argmax(passes[:, step])
    assert found.min() < found.max()


def test_causal_usage_gathers_what_the_replay_says(vlm, trace, replay):
    levels = (5e-4, 1.3e-3)
    (usage,) = causal_usage(vlm, [trace], 3, levels)
    blind = replay.run(replay.steps, 3, keep_exactly(np.zeros((STEPS - 1, replay.n_patches), bool)))
    assert np.allclose(usage.blind_kl, blind.kl) and blind.kl.min() < 1.3e-3 < blind.kl.max()
    for place, level in enumerate(levels):
        expected = np.where(blind.kl > level, smallest_k(replay, 3, level), 0)
        assert np.array_equal(usage.needed[ANCHOR][place], expected)
    twice = np.clip(2 * usage.needed[ANCHOR][0], 1, usage.n_patches).astype(int)
    passes = replay.run(replay.steps, 3, keep_top(twice)).kl <= 5e-4
    assert np.array_equal(usage.steady, passes | (usage.needed[ANCHOR][0] == 0))
    assert usage.levels == levels and set(usage.needed) == {ANCHOR, LATER}


def test_every_order_adds_the_patches_that_come_first_in_it(vlm, trace, replay, monkeypatch):
    """Orders sorted a second time; the number found passes, and one patch fewer does not."""
    scene, level = generate(3, 6), 1e-4
    named = [None, 0, 1, None, 2, 0, 1, 2]
    cells = object_patches(scene, trace.grid)
    nothing = np.zeros(len(trace.grid), dtype=bool)
    shown = np.array([nothing if index is None else cells[index] for index in named])
    monkeypatch.setattr(module, "parts_said", lambda *_: shown)
    (usage,) = causal_usage(vlm, [trace], 3, [level], [Sample("scene", scene.render(), QUESTION, scene)])
    logits = []
    replay.run(replay.steps, 3, lambda scores, rows: logits.append(scores.numpy()) or torch.ones(scores.shape) > 0)
    later = trace.attention.values[1:, 3:].astype(float).sum(axis=1)
    found = set()
    for step, anchored in enumerate(logits[0]):
        firsts = {LATER: later[step], ANCHOR: np.zeros(replay.n_patches)}
        if named[step + 1] is not None:
            firsts[TRUTH] = cells[named[step + 1]].astype(float)
        else:
            assert np.isnan(usage.needed[TRUTH][0, step])
        for name, first in firsts.items():
            count = usage.needed[name][0, step]
            order = sorted(range(replay.n_patches), key=lambda p, a=first, b=anchored: (-a[p], -b[p]))
            sizes = [int(count), int(count) - 1] if count else []
            kept = np.array([[patch in order[:size] for patch in range(replay.n_patches)] for size in sizes])
            if count:
                kl = replay.run(np.full(2, step + 1), 3, keep_exactly(kept)).kl
                assert kl[0] <= level < kl[1] or (count == 1 and kl[0] <= level)
                found.add((name, count > 1))
            else:
                assert usage.blind_kl[step] <= level
    assert {(name, True) for name in (ANCHOR, LATER, TRUTH)} <= found
    assert not np.array_equal(usage.needed[LATER], usage.needed[ANCHOR])


def test_an_order_that_is_not_known_is_left_out(vlm, trace):
    alone = vpa.decode(vlm, trace.images[0], QUESTION, layers=3, max_new_tokens=STEPS)
    (usage,) = causal_usage(vlm, [alone], 3, [5e-4], [Sample("own", trace.images[0], QUESTION)])
    assert set(usage.needed) == {ANCHOR}
    for levels, samples in (((), ()), ((0.1,), [Sample("a", None, "?")] * 2)):
        with pytest.raises(ValueError, match="expected a level or more, and one sample per trace or none"):
            causal_usage(vlm, [trace], 3, levels, samples)


def test_what_cannot_be_replayed_is_refused(vlm, trace, replay, pictures):
    pruned = vpa.decode(vlm, pictures[0], QUESTION, pruner=TopOnce(), max_new_tokens=3)
    with pytest.raises(ValueError, match="decoded with a pruner"):
        SingleSteps.of(vlm, pruned)
    with pytest.raises(ValueError, match="decoded with weights other"):
        SingleSteps.of(vlm, trace.with_meta({**trace.meta, "model_hash": "other"}))
    with pytest.raises(ValueError, match="at least two tokens"):
        SingleSteps.of(vlm, vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=1))
    for steps in ([0], [STEPS], []):
        with pytest.raises(ValueError, match="steps must be a list of numbers from 1 to 7"):
            replay.run(np.array(steps, dtype=int), 3, keep_top(1))
    with pytest.raises(ValueError, match="has layers 0 to 7"):
        replay.run(np.array([1]), 8, keep_top(1))
    with pytest.raises(ValueError, match="level is a KL"):
        smallest_k(replay, 3, 0.0)
