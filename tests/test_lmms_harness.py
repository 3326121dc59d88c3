"""lmms-eval under watch, with stand-ins for its model classes: names of traces, errors, and what is put back.

`tests/lmms` runs the real one.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace

import pytest
import torch

import visionpulse_analysis as vpa

QUESTIONS = ["where is the red circle ?", "how many blue shapes ?", "where is the green square ?"]


class Stock:
    """Answers documents so many at a time, as a class of lmms-eval does: ``way`` names a habit of one of them."""

    batch, way = 1, "plain"

    def __init__(self, vlm, prompts):
        self.vlm, self.model, self.tokenizer = vlm, vlm.model, vlm.tokenizer
        self.documents = {"test": [0, 1, 2]}
        self.task_dict, self.prompts = {"tiny": self.documents}, prompts

    def _inputs(self, numbers):
        looked_up = [self.task_dict["tiny"]["test"][number] for number in numbers]
        return self.vlm.family.batch([self.prompts[number] for number in looked_up], padding=0)

    def _answer(self, inputs):
        try:
            out = self.model.generate(**inputs, max_new_tokens=3, do_sample=False)
            return [row.tolist() for row in out[:, inputs["input_ids"].shape[1] :]]
        except ValueError:
            if self.way != "swallows":
                raise
            return [[]] * len(inputs["input_ids"])

    def generate_until(self, requests):
        chunks = [requests[start : start + self.batch] for start in range(0, len(requests), self.batch)]
        if self.way == "ahead":  # all are prepared before the first is answered
            with ThreadPoolExecutor(1) as other:
                chunks = list(other.map(self._inputs, chunks))
            return [answer for inputs in chunks for answer in self._answer(inputs)]
        return [answer for chunk in chunks for answer in self._answer(self._inputs(chunk))]


@pytest.fixture
def lmms_eval(monkeypatch, vlm, pictures):
    """Stands for the package; ``make`` gives an instance of the class that it would answer with."""
    package, evaluator, models = (ModuleType(f"lmms_eval{end}") for end in ("", ".evaluator", ".models"))
    evaluator.ResponseCache = type("ResponseCache", (), {"create": staticmethod(lambda **given: "a cache")})
    models.get_model = lambda name: type("Stock", (Stock,), {"way": name})
    for module in (package, evaluator, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    prompts = [vlm.prompt(picture, question) for picture, question in zip(pictures, QUESTIONS, strict=True)]

    def make(way="plain", batch=1):
        made = models.get_model(way)(vlm, prompts)
        made.batch = batch
        return made

    return SimpleNamespace(make=make, models=models, evaluator=evaluator, prompts=prompts)


@pytest.mark.parametrize(("way", "batch"), [("plain", 1), ("plain", 2), ("ahead", 1), ("ahead", 2)])
def test_answers_are_those_of_a_plain_run_and_traces_are_named_by_document(lmms_eval, vlm, tmp_path, way, batch):
    order = [2, 0, 1]
    plain = lmms_eval.make(way, batch).generate_until(order)
    before = lmms_eval.models.get_model, lmms_eval.evaluator.ResponseCache.create
    store = vpa.TraceStore(tmp_path / "traces", mode="a")
    with vpa.watch_lmms_eval(store, layers=3, prefix="a-") as seen:
        made = lmms_eval.make(way, batch)
        assert made.generate_until(order) == plain
        assert made.generate_until([1]) == plain[2:]
        assert made.task_dict == {"tiny": made.documents} and "generate" not in vars(vlm.model)
    assert seen.ids == ["a-tiny-test-2", "a-tiny-test-0", "a-tiny-test-1", "a-tiny-test-1.1"]
    assert sorted(store.finished_ids) == sorted(seen.ids) and seen.error is None
    for name, answer in zip(seen.ids, [*plain, plain[2]], strict=True):
        assert store[name].token_ids.tolist() == answer and store[name].layers == [3]
        assert lmms_eval.prompts[int(name[12])].question in store[name].question
    assert (lmms_eval.models.get_model, lmms_eval.evaluator.ResponseCache.create) == before


def test_a_document_without_a_picture_is_answered_unwatched(lmms_eval, vlm, tmp_path):
    words = lmms_eval.prompts[2].ids[lmms_eval.prompts[2].kinds == 0]
    made_of = {"input_ids": words[None], "attention_mask": torch.ones(1, len(words), dtype=torch.long)}
    store = vpa.TraceStore(tmp_path / "traces", mode="a")
    with vpa.watch_lmms_eval(store, pruner=vpa.VisionPulse(), layers="none") as seen:
        made = lmms_eval.make()
        inputs = made._inputs
        made._inputs = lambda numbers: {**made_of, "looked up": inputs(numbers)} if numbers == [2] else inputs(numbers)
        answer = made._answer
        made._answer = lambda given: answer({name: value for name, value in given.items() if name != "looked up"})
        assert len(made.generate_until([2, 0])) == 2
    assert seen.without_picture == ["tiny-test-2"] and seen.ids == ["tiny-test-0"] == store.ids


def test_what_cannot_be_right_is_an_error_also_where_a_class_goes_on(lmms_eval, tmp_path):
    store = vpa.TraceStore(tmp_path / "traces", mode="a")
    with vpa.watch_lmms_eval(store, pruner=vpa.make_pruner("lookm"), layers="none") as seen:
        with pytest.raises(ValueError, match="lookm edits the cache"):
            lmms_eval.make("swallows").generate_until([0, 1])
        assert "lookm" in str(seen.error) and not store.ids
        with pytest.raises(ValueError, match="cache of answers"):
            lmms_eval.evaluator.ResponseCache.create(model="tiny")
    with vpa.watch_lmms_eval(store, layers="none"):
        doubled = lmms_eval.make()
        doubled._answer = lambda inputs: doubled.model.generate(**{name: torch.cat([one, one]) for name, one in
                                                                  inputs.items()})  # fmt: skip
        with pytest.raises(ValueError, match=r"2 answers after looking up 1 documents \(tiny-test-0\)"):
            doubled.generate_until([0])
        without = lmms_eval.make()
        without.model = None
        with pytest.raises(ValueError, match="holds no model of transformers"):
            without.generate_until([0])
        several = lmms_eval.make()
        several.world_size = 2
        with pytest.raises(ValueError, match="runs in 2 processes"):
            several.generate_until([0])
    with pytest.raises(ValueError, match="is no trace id"), vpa.watch_lmms_eval(store, prefix="a/b"):
        pass
