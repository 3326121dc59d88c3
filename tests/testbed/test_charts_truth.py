"""Generated traces are read as true ones were written, broken ones as far as they go, and answers are scored."""

from types import SimpleNamespace

import numpy as np
import pytest

from visionpulse_analysis.testbed.charts import evaluation
from visionpulse_analysis.testbed.charts.chart import generate
from visionpulse_analysis.testbed.charts.questions import TASKS, ask, can_ask
from visionpulse_analysis.testbed.charts.reasoning import TokenTruth, reason
from visionpulse_analysis.testbed.charts.regions import patches_of_thing
from visionpulse_analysis.testbed.charts.truth import REASONS, annotate, looks_again, mistakes, reasons_to_err


def traces():
    for seed in range(90):
        chart = generate(seed, (12, 16, 24)[seed % 3])
        for task in filter(lambda task: can_ask(chart, task), TASKS):
            rng = np.random.default_rng([seed, 7])
            question = ask(chart, task, rng)
            yield chart, question, reason(chart, question, rng)


TRACES = list(traces())


def test_a_true_trace_is_annotated_as_it_was_written():
    """As tokens bring the spaces between words, too; and nothing in it is a mistake."""
    for chart, question, true in TRACES:
        words = [f" {token.word}" for token in true]
        assert annotate(chart, question, words) == true, question
        assert not mistakes(chart, question, words)


@pytest.mark.parametrize("damage", ["cut", "shuffled", "dropped", "doubled", "foreign"])
def test_a_broken_trace_is_read_word_by_word(damage):
    """Every word gets an entry, of parts that the chart has; a trace that was cut off is annotated up to the cut."""
    rng = np.random.default_rng(3)
    for chart, question, true in TRACES[::3]:
        words = [token.word for token in true]
        place, above = int(rng.integers(len(words))), str(chart.step * (chart.intervals + 3))  # no tick is there
        changed = {
            "cut": words[:place],
            "shuffled": [str(word) for word in rng.permutation(words)],
            "dropped": words[:place] + words[place + 1 :],
            "doubled": words[:place] + words[place : place + 4] + words[place:],
            "foreign": [*words[:place], "r3", "99", "over", above, "2", "", *words[place + 1 :]],
        }[damage]
        read = annotate(chart, question, changed)
        assert [token.word for token in read] == changed
        for token in read:
            for thing in token.about:
                assert patches_of_thing(chart, thing).any(), thing
        if damage == "cut" and "." in words[:place]:
            whole = place - words[:place][::-1].index(".")  # up to the last full stop
            assert read[:whole] == true[:whole]


def test_a_word_that_the_picture_contradicts_is_a_mistake_and_keeps_its_place():
    """Words read off the picture are exchanged for others of their kind, one at a time."""
    others = {"rises": "falls", "falls": "rises", "level": "rises", "higher": "lower", "lower": "higher"}
    others |= {"clear": "faint", "faint": "clear", "hidden": "clear", "close": "clear"}
    seen = set()
    for chart, question, true in TRACES[::4]:
        for place, token in enumerate(true):
            wrong = str(int(token.word) + 1) if token.word.isdigit() else others.get(token.word)
            if token.kind not in ("axis", "number", "tick", "part", "state", "glance") or wrong is None:
                continue
            words = [*(t.word for t in true[:place]), wrong, *(t.word for t in true[place + 1 :])]
            assert mistakes(chart, question, words)[0] == TokenTruth(wrong, token.kind, token.about), question
            seen.add(token.kind)
    assert seen == {"axis", "number", "tick", "part", "state", "glance"}


def test_reasons_to_err_are_those_for_a_second_look():
    """A question of comparing without a reason has no second look in its true trace; every reason comes up."""
    met = set()
    for chart, question, true in TRACES:
        reasons = reasons_to_err(chart, question)
        met |= {*reasons}
        if not reasons:
            assert not looks_again([token.word for token in true]), question
    assert met == {*REASONS}


def test_answers_are_scored_by_task_and_by_reason(monkeypatch):
    """True traces are right everywhere; without their answers they are wrong, and no word in them is misread."""
    by_question = {}

    def items(task, side, n, first_seed):
        found = build(task, side, n, first_seed)
        for item in found:
            rng = np.random.default_rng(item.chart.seed)
            by_question[item.question.text] = [token.word for token in reason(item.chart, item.question, rng)]
        return found

    build, wrong = evaluation.build_items, {"": False}

    def decode(vlm, images, questions, **options):
        said = [by_question[question][: -2 if wrong[""] else None] for question in questions]
        return [SimpleNamespace(tokens=words, meta={"finished": not wrong[""]}) for words in said]

    monkeypatch.setattr(evaluation, "build_items", items)
    monkeypatch.setattr(evaluation, "decode", decode)
    vlm = SimpleNamespace(name="told", weights_hash="0", default_anchor=4)
    # One chart a task: a question may be asked about two charts.
    result = evaluation.evaluate(vlm, 1, sides=[16])
    assert [score["accuracy"] for score in result["sizes"]["256"].values()] == [1.0] * len(TASKS)
    assert not result["first_misread"]["256"]
    wrong[""] = True
    result = evaluation.evaluate(vlm, 1, sides=[16])
    assert {score["accuracy"] for score in result["reasons"]["256"].values()} == {0.0}
    assert evaluation.CLEAR in result["reasons"]["256"]
    assert result["first_misread"]["256"] == {evaluation.UNREAD: len(TASKS)}
    assert "no word misread 9" in evaluation.format_report(result)
