"""A row that has ended gives its place to the next question, and no trace depends on who shares the batch."""

from __future__ import annotations

import numpy as np
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding import Batch, run
from visionpulse_analysis.decoding.sampling import Sample
from visionpulse_analysis.pruners import FastV, LastStepOnly, Random, VisionPulse
from visionpulse_analysis.pruners.adaptvis import AdaptVis

QUESTIONS = ["where is the red circle ?", "how many blue shapes ?", "is the red star left of the blue cross ?"]
LIMIT = 14
WAYS = {
    "dense": {},
    "sampled": {"sample": Sample(temperature=1.5)},
    "random": {"pruner": Random(0.2, 1), "sample": Sample(temperature=1.5)},
    "looking back": {"pruner": VisionPulse(budget=0.1, hysteresis=1.0, reuse_previous=True), "execution": "gathered"},
    "blocks": {"pruner": VisionPulse(granularity="block", block_size=16, budget_max=0.5)},
    "one step late": {"pruner": LastStepOnly(0.1), "execution": "gathered"},
    "weighed anew": {"pruner": AdaptVis(2.0, 0.5, threshold=0.04), "sample": Sample(temperature=1.5)},
    "in prefill": {"pruner": FastV(budget=0.3)},
}


@pytest.fixture(scope="module")
def asked(pictures):
    """Nine questions: the first three about the smallest picture, later prompts are longer and some shorter again."""
    chosen = [0, 0, 0, 2, 1, 0, [0, 1], 2, 0]
    images = [[pictures[i] for i in one] if isinstance(one, list) else pictures[one] for one in chosen]
    return images, [QUESTIONS[number % 3] for number in range(len(images))]


@pytest.fixture(scope="module")
def ends(vlm, asked):
    """End tokens that make rows end at different steps, or at the limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "end_ids", lambda vlm: set())
        free = vpa.decode(vlm, *asked, max_new_tokens=LIMIT, layers="none")
    return {int(trace.token_ids[step]) for trace, step in zip(free, (2, 9, 5), strict=False)}


@pytest.fixture
def uneven(ends, monkeypatch):
    monkeypatch.setattr(run, "end_ids", lambda vlm: ends)


@pytest.fixture
def sizes(monkeypatch):
    """Rows and columns of every decode step."""
    seen = []

    def step(self, original=Batch.step):
        logits = original(self)
        seen.append((len(logits), self.width))
        return logits

    monkeypatch.setattr(Batch, "step", step)
    return seen


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_traces_are_the_same_whatever_the_batch_size(vlm, asked, uneven, sizes, way):
    options = {"max_new_tokens": LIMIT, "seed": list(range(20, 29)), **way}
    alone = vpa.decode(vlm, *asked, batch_size=1, **options)
    assert {rows for rows, _ in sizes} == {1}
    assert len({len(trace) for trace in alone}) > 1
    for batch_size in (3, 32):
        for row, trace in enumerate(vpa.decode(vlm, *asked, batch_size=batch_size, **options)):
            assert trace.tokens == alone[row].tokens
            assert trace.meta["finished"] == alone[row].meta["finished"]
            assert np.abs(trace.logprobs - alone[row].logprobs).max() < 1e-4
            assert np.abs(trace.mass.values - alone[row].mass.values).max() < 1e-5
            if "pruner" in way:
                assert np.array_equal(trace.kept.values, alone[row].kept.values)
                assert np.array_equal(trace.k_per_layer.values, alone[row].k_per_layer.values)


@pytest.mark.parametrize("way", [WAYS["dense"], WAYS["looking back"]], ids=["dense", "pruned"])
def test_results_read_one_step_late_are_the_same(vlm, asked, uneven, monkeypatch, way):
    """As on a GPU, where the next step runs before the last one is read: what ended rows go on saying is left out."""
    options = {"max_new_tokens": LIMIT, "batch_size": 3, **way}
    expected = vpa.decode(vlm, *asked, **options)
    monkeypatch.setitem(run.LAG, "cpu", 1)
    for a, b in zip(expected, vpa.decode(vlm, *asked, **options), strict=True):
        assert a.tokens == b.tokens and a.meta["finished"] == b.meta["finished"]
        assert np.abs(a.mass.values - b.mass.values).max() < 1e-5


def test_the_batch_stays_full_while_questions_wait(vlm, asked, uneven, sizes):
    traces = vpa.decode(vlm, *asked, max_new_tokens=LIMIT, batch_size=3)
    needed = sum(len(trace) - 1 for trace in traces)
    assert sizes[0][0] == 3
    # Every step but those at the end, when nothing waits any more, has three rows at work.
    assert sum(rows for rows, _ in sizes) <= needed + 3 * LIMIT
    assert len(sizes) < sum(max(len(t) for t in traces[i : i + 3]) - 1 for i in (0, 3, 6))


def test_the_longest_prompts_come_first_and_those_of_one_length_together(vlm, asked, uneven, monkeypatch):
    """Equal ones need no padding; what does not fit into memory fails before hours of decoding."""
    seen = []

    def prefill(self, original=Batch.prefill):
        seen.append([self.width - start for start in self.starts])
        return original(self)

    monkeypatch.setattr(Batch, "prefill", prefill)
    traces = vpa.decode(vlm, *asked, max_new_tokens=LIMIT, batch_size=2)
    lengths = [length for batch in seen for length in sorted(batch, reverse=True)]
    assert lengths == sorted(lengths, reverse=True) and len(lengths) == 9
    given = [len(vlm.prompt(image, question).ids) for image, question in zip(*asked, strict=True)]
    assert seen[0] == [length for length in given if length in seen[0]]  # side by side in the order given
    assert [trace.meta["question"] for trace in traces] == asked[1]


def test_columns_that_nobody_needs_any_more_are_forgotten(vlm, pictures, monkeypatch, sizes):
    monkeypatch.setattr(run, "end_ids", lambda vlm: set())
    longest = len(vlm.prompt(pictures[0], QUESTIONS[0]).ids) + LIMIT
    vpa.decode(vlm, [pictures[0]] * 12, [QUESTIONS[0]] * 12, max_new_tokens=LIMIT, batch_size=2)
    assert max(columns for _, columns in sizes) <= longest


def test_a_trace_is_on_disk_when_its_row_has_ended(vlm, asked, uneven, tmp_path, monkeypatch):
    store, ids, seen = vpa.TraceStore(tmp_path / "store", mode="a"), [f"t{i}" for i in range(9)], []

    def step(self, original=Batch.step):
        seen.append((len(store.finished_ids), len(store.ids)))
        return original(self)

    monkeypatch.setattr(Batch, "step", step)
    traces = vpa.decode(vlm, *asked, max_new_tokens=LIMIT, batch_size=3, store=store, ids=ids)
    assert seen[0][0] < 6 and seen == sorted(seen) and all(started - done <= 3 for done, started in seen)
    assert store.finished_ids == ids
    assert all(store[name].data_hash == trace.data_hash for name, trace in zip(ids, traces, strict=True))
