"""Batches: every row is what it would be alone, with its own seed, also when others end early."""

import numpy as np
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding import Batch, run
from visionpulse_analysis.decoding.sampling import Sample
from visionpulse_analysis.pruners import Random, VisionPulse

QUESTION = "where is the red circle ?"
QUESTIONS = [QUESTION, "how many blue shapes ?", "is the red star left of the blue cross ?"]


def test_a_batch_gives_the_traces_of_its_rows(vlm, pictures):
    sample = Sample(temperature=1.5)
    together = vpa.decode(vlm, pictures, QUESTIONS, max_new_tokens=25, sample=sample, seed=[3, 4, 5])
    for trace, picture, question, seed in zip(together, pictures, QUESTIONS, (3, 4, 5), strict=True):
        alone = vpa.decode(vlm, picture, question, max_new_tokens=25, sample=sample, seed=seed)
        assert trace.tokens == alone.tokens
        assert trace.grid.equals(alone.grid)
        assert np.abs(trace.mass.values - alone.mass.values).max() < 1e-5
        gap = np.abs(trace.attention.values.astype(np.float32) - alone.attention.values)
        assert gap.max() < 1e-3
        assert np.abs(trace.logprobs - alone.logprobs).max() < 1e-4


def test_questions_of_a_list_have_seeds_of_their_own(vlm, pictures):
    """Row i of a list is drawn with ``seed + i``; with one seed for all, equal questions would give equal traces."""
    sample, questions = Sample(temperature=1.5), [QUESTION] * 3
    rows = vpa.decode(vlm, [pictures[0]] * 3, questions, max_new_tokens=8, sample=sample, seed=7)
    assert [row.meta["seed"] for row in rows] == [7, 8, 9]
    for row, seed in zip(rows, (7, 8, 9), strict=True):
        alone = vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=8, sample=sample, seed=seed)
        assert row.tokens == alone.tokens
    assert len({tuple(row.tokens) for row in rows}) == 3


@pytest.mark.parametrize("pruner", [None, VisionPulse(budget=0.2, reuse_previous=True, hysteresis=1.0), Random(0.2)])
def test_rows_that_end_early_do_not_disturb_the_others(vlm, pictures, monkeypatch, pruner):
    images, questions = [*pictures, pictures[0]], [*QUESTIONS, QUESTION]
    options = {"max_new_tokens": 12, "sample": Sample(temperature=1.5), "seed": [1, 2, 3, 4], "pruner": pruner}
    monkeypatch.setattr(run, "end_ids", lambda vlm: set())
    free = vpa.decode(vlm, images, questions, **options)
    # Row 1 ends early and row 3 two steps later or more, each at a word that no other row says.
    said = [trace.token_ids.tolist() for trace in free]
    early = next(t for t in said[1] if all(t not in said[row] for row in (0, 2, 3)))
    after = said[1].index(early) + 2
    late = next(t for t in said[3][after:] if t not in said[3][:after] and all(t not in said[row] for row in (0, 1, 2)))
    stop = {early, late}
    sizes = []

    def forward(self, ids, *given, original=Batch.forward, **inputs):
        sizes.append(len(ids))
        return original(self, ids, *given, **inputs)

    monkeypatch.setattr(Batch, "forward", forward)
    monkeypatch.setattr(run, "end_ids", lambda vlm: stop)
    ended = vpa.decode(vlm, images, questions, **options)
    assert list(dict.fromkeys(sizes)) == [4, 3, 2]  # each ended row was dropped at once
    for row, (a, b) in enumerate(zip(free, ended, strict=True)):
        first = next((step for step, token in enumerate(a.token_ids.tolist()) if token in stop), None)
        assert (first is not None) == b.meta["finished"] == (row in (1, 3))
        assert b.tokens == a.tokens[: 12 if first is None else first + 1]
        assert np.abs(b.mass.values - a.mass.values[: len(b)]).max() < 1e-5
        assert np.abs(b.logprobs - a.logprobs[: len(b)]).max() < 1e-4
        if pruner is not None:
            assert np.array_equal(b.kept.values, a.kept.values[: len(b)])


def test_several_images_in_one_question(vlm, pictures):
    trace = vpa.decode(vlm, [pictures[0], pictures[1]], QUESTION, max_new_tokens=4)
    assert trace.grid.n_images == 2 and len(trace.grid) == 64 + 144
    assert [image.shape for image in trace.images] == [pictures[0].shape, pictures[1].shape]
    swapped = vpa.decode(vlm, [pictures[1], pictures[0]], QUESTION, max_new_tokens=4)
    assert not np.array_equal(trace.logprobs, swapped.logprobs)
