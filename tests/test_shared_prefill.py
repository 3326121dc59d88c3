"""Several pruners and seeds from one prefill: each gives what it gives alone, to the last bit."""

import gc

import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding import Batch, sharing
from visionpulse_analysis.decoding.run import Run
from visionpulse_analysis.pruners.base import KNOWN
from visionpulse_analysis.pruners.view import View

QUESTION = "where is the red circle ?"
QUESTIONS = ["where is the red circle ?", "how many blue shapes ?", "where is the green square ?"]
vpa.list_pruners()
ARMS = [
    None,
    vpa.VisionPulse(budget=0.05),
    vpa.VisionPulse(budget=0.05, reuse_previous=True),  # looks at prefill
    KNOWN["prefill_once"](),
    vpa.make_pruner("fastv(layer=3, budget=0.2)"),  # acts in prefill
    KNOWN["lookm"](),  # edits the cache
    KNOWN["random"](),
]


@pytest.fixture
def prefills(monkeypatch):
    """How many rows each prefill read."""
    read = []

    def prefill(self, original=Batch.prefill):
        read.append(len(self.records))
        return original(self)

    monkeypatch.setattr(Batch, "prefill", prefill)
    return read


def test_each_pruner_gives_what_it_gives_alone(vlm, pictures, prefills):
    options = {"max_new_tokens": 5, "heads": "all", "batch_size": 2}
    together = vpa.decode(vlm, pictures, QUESTIONS, pruner=ARMS, seed=7, **options)
    assert prefills == [2, 2, 1, 1]  # fastv alone reads its prompts itself
    assert len(together) == len(ARMS)
    for pruner, traces in zip(ARMS, together, strict=True):
        for start in (0, 2):  # in the same batches, so that nothing rounds otherwise
            rows = slice(start, start + 2)
            alone = vpa.decode(vlm, pictures[rows], QUESTIONS[rows], pruner=pruner, seed=7 + start, **options)
            assert [t.data_hash for t in traces[rows]] == [t.data_hash for t in alone]
            assert [t.meta["costs"] for t in traces[rows]] == [t.meta["costs"] for t in alone]
            assert [t.meta["seed"] for t in traces[rows]] == [t.meta["seed"] for t in alone]


def test_each_has_its_own_seed_and_place_in_the_store(vlm, pictures, prefills, tmp_path):
    store = vpa.TraceStore(tmp_path / "traces", mode="a")
    sample, pruner = vpa.Sample(temperature=1.5), vpa.VisionPulse(budget=0.05)
    options = {"max_new_tokens": 6, "sample": sample}
    together = vpa.decode(
        vlm, pictures[0], QUESTION, pruner=[pruner] * 3, seed=[1, 2, 1], store=store, ids=["a", "b", "c"], **options
    )
    assert prefills == [1]
    alone = [vpa.decode(vlm, pictures[0], QUESTION, pruner=pruner, seed=seed, **options) for seed in (1, 2)]
    assert [trace.data_hash for trace in together] == [alone[n].data_hash for n in (0, 1, 0)]
    assert [store[name].meta["seed"] for name in "abc"] == [1, 2, 1]


def test_what_pruners_look_at_is_gone_when_decoding_goes_on(vlm, pictures, monkeypatch):
    """Queries, keys and states of every layer would take as much memory again as the cache."""
    kept, finish = [], Run.finish

    def note(run):
        gc.collect()
        kept.append(sum(issubclass(type(thing), View) for thing in gc.get_objects()))
        finish(run)

    monkeypatch.setattr(Run, "finish", note)
    vpa.decode(vlm, pictures[0], QUESTION, pruner=ARMS[1:3], max_new_tokens=2, layers="none")
    assert kept == [0, 0]


def test_nothing_is_read_for_all_where_only_one_could_share_it(vlm, pictures, prefills, monkeypatch):
    monkeypatch.setattr(sharing, "Trunk", None)  # not called
    arms, options = [ARMS[4], ARMS[1], ARMS[4]], {"max_new_tokens": 2, "layers": "none"}
    together = vpa.decode(vlm, pictures[0], QUESTION, pruner=arms, **options)
    assert prefills == [1, 1, 1]
    alone = [vpa.decode(vlm, pictures[0], QUESTION, pruner=pruner, **options) for pruner in arms]
    assert [trace.data_hash for trace in together] == [trace.data_hash for trace in alone]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruner": []}, "empty list"),
        ({"pruner": [None, None], "seed": [1]}, "2 pruners need as many seeds, got 1"),
        ({"pruner": [None, "fastv"]}, "pruner must be a pruner"),
        ({"pruner": [None, None], "ids": ["a", "a"]}, "different, also between pruners"),
        ({"pruner": [None, None], "ids": "a"}, "2 pruners need as many lists of ids, got 1"),
    ],
)
def test_lists_that_do_not_match_are_refused(vlm, pictures, options, message):
    with pytest.raises(ValueError, match=message):
        vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=1, **options)
