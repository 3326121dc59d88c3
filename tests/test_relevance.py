"""The gradient-weighted relevance, against whole matrices and the library's own eager attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding.patch_gradients import relevance
from visionpulse_analysis.pruners import list_pruners
from visionpulse_analysis.pruners.baselines import Oracle

QUESTION = "where is the red circle ?"


def slow_relevance(vlm, prompt, answer) -> np.ndarray:
    """The product of all layers' matrices, token by token, each with a forward of its own: float64 [patch]."""
    total = np.zeros(len(prompt.grid))
    vlm.model.set_attn_implementation({"text_config": "eager"})
    try:
        for number, token in enumerate(answer.tolist()):
            out = vlm.model(**vlm.family.batch([prompt.answered(answer[:number])], 0), output_attentions=True)
            for weights in out.attentions:
                weights.retain_grad()
            vlm.model.zero_grad()
            out.logits[0, -1, token].backward()
            matrix = np.eye(out.logits.shape[1])
            for weights in out.attentions:
                seen, gradient = weights[0].detach().double().numpy(), weights.grad[0].double().numpy()
                matrix = matrix + np.maximum(seen * gradient, 0).mean(axis=0) @ matrix
            total = total + matrix[-1, prompt.grid.position]
    finally:
        vlm.model.zero_grad()
        vlm.model.set_attn_implementation({"text_config": "sdpa"})
    return total / len(answer)


@pytest.mark.parametrize("frozen", [False, True])
def test_relevance_is_the_mean_over_the_answer(vlm, pictures, frozen):
    prompt, answer = vlm.prompt(pictures[0], QUESTION), torch.tensor([20, 33, 41])
    expected = slow_relevance(vlm, prompt, answer)
    vlm.model.requires_grad_(not frozen)
    try:
        found = relevance(vlm, prompt, answer)
    finally:
        vlm.model.requires_grad_(True)
    assert found.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-9) and expected.std() > 0


def test_the_oracle_keeps_the_most_relevant_patches_of_its_own_answer(vlm, pictures):
    images = [pictures[0], [pictures[0], pictures[0]]]
    dense = vpa.decode(vlm, images, [QUESTION] * 2, max_new_tokens=3)
    pruned = vpa.decode(vlm, images, [QUESTION] * 2, pruner=Oracle(0.1, tokens=2), max_new_tokens=3)
    for image, plain, trace in zip(images, dense, pruned, strict=True):
        prompt = vlm.prompt(image, QUESTION)
        scores = relevance(vlm, prompt, torch.from_numpy(plain.token_ids[:2].copy())).numpy()
        k = round(0.1 * len(scores))
        assert set(np.flatnonzero(trace.kept.values[0])) == set(np.argsort(-scores)[:k])


def test_gradients_leave_nothing_behind(vlm, pictures):
    relevance(vlm, vlm.prompt(pictures[0], QUESTION), torch.tensor([20]))
    assert all(parameter.grad is None for parameter in vlm.model.parameters())
    assert vlm.model.config.text_config._attn_implementation == "sdpa"


def test_the_oracle_outside_decoding(vlm):
    from slow_pruners import random_batch

    with pytest.raises(ValueError, match="use it through decode"):
        list_pruners()["oracle"]().start(random_batch(np.random.default_rng(0)).layout())
