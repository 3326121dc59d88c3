"""Questions and traces: every answer and every token follows from the scene."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionpulse_analysis.testbed.scenes.questions import TASKS, TokenTruth, ask, reason
from visionpulse_analysis.testbed.scenes.scene import COLOURS, SHAPES, Scene, SceneObject, generate
from visionpulse_analysis.testbed.scenes.tokens import build_tokenizer
from visionpulse_analysis.testbed.scenes.truth import annotate, answer_is_right, score_statements

SCENE = Scene(
    4,
    (SceneObject("red", "circle", 0, 1), SceneObject("red", "star", 2, 3), SceneObject("blue", "star", 3, 0)),
    seed=0,
)


def independent_answer(scene, text):
    """Answer a question by reading its words, without the generator's own book-keeping."""
    words = text.split()
    by_name = {(o.colour, o.shape): o for o in scene.objects}
    if words[0] == "where":
        o = by_name[words[3], words[4]]
        return f"r{o.row} c{o.col}"
    if words[0] == "how":
        return str(sum(words[2] in name for name in by_name))
    a, b = by_name[words[2], words[3]], by_name[words[-3], words[-2]]
    holds = {"left": a.col < b.col, "right": a.col > b.col, "above": a.row < b.row, "below": a.row > b.row}
    return "yes" if holds[words[4]] else "no"


@given(seed=st.integers(0, 2**32), cells=st.sampled_from([4, 6, 8]), task=st.sampled_from([*TASKS, "describe"]))
@settings(max_examples=150, deadline=None)
def test_answers_and_traces_are_determined_by_the_image(seed, cells, task):
    scene, rng = generate(seed, cells), np.random.default_rng(seed)
    question = ask(scene, task, rng)
    trace = reason(scene, question, rng)
    words = [t.word for t in trace]
    if task != "describe":
        assert question.answer == independent_answer(scene, question.text)
    assert answer_is_right(question, " ".join(words[words.index("</think>") + 1 : -1]))
    said = score_statements(scene, words)
    assert all(said.colour) and all(said.shape) and all(said.position) and all(said.presence)
    for truth in trace:
        if truth.kind in ("colour", "shape", "row", "column"):
            o = scene.objects[truth.object if truth.object is not None else -1]
            row, column = o.place
            assert truth.word == {"colour": o.colour, "shape": o.shape, "row": row, "column": column}[truth.kind]
    # Reading a trace back finds what was written, but for decisions ("so left", "so 2"): they are about no one object.
    for written, read in zip(trace, annotate(scene, words), strict=True):
        decision = written.kind in ("verdict", "number") and written.object is None and written.word != "none"
        assert read == (TokenTruth(written.word) if decision else written)


def inspections(words):
    """The searches of a trace, read word by word: (what is looked for, [(colour, shape, verdict, number or none)])."""
    searches = []
    for index, word in enumerate(words):
        if word == "look":
            searches.append((words[index + 2 : words.index(".", index)], []))
        elif word == "see":
            searches[-1][1].append((words[index + 1], words[index + 2], words[index + 6]))
        elif word == "check":
            said = words[index + 3]
            searches[-1][1].append((words[index + 1], words[index + 2], said if said == "none" else words[index + 6]))
    return searches


@given(seed=st.integers(0, 2**32), cells=st.sampled_from([4, 6, 8]), task=st.sampled_from(TASKS))
@settings(max_examples=150, deadline=None)
def test_a_trace_is_consistent_in_itself(seed, cells, task):
    """Verdicts, repetitions, counts and comparisons, against the words before them and the scene."""
    scene, rng = generate(seed, cells), np.random.default_rng(seed)
    question = ask(scene, task, rng)
    words = [t.word for t in reason(scene, question, rng)]
    for goal, seen in inspections(words):
        names = [name[:2] for name in seen]
        assert len(set(names)) == len(names), "an object is inspected twice in one search"
        if task == "count":
            there = [(*name, said) for *name, said in seen if said != "none"]
            assert [number for *_, number in there] == [str(i + 1) for i in range(len(there))]
            found = {" ".join(name) for *name, _ in there}
            assert {o.name for o in scene.objects if goal[0] in o.name.split()} == found
            assert len(names) == (len(SHAPES) if goal[0] in COLOURS else len(COLOURS)), "not all kinds are checked"
        else:
            assert [verdict for *_, verdict in seen] == ["yes" if [*name] == goal[1:] else "no" for name in names]
            assert seen[-1][2] == "yes"
    if task == "compare":
        first, _, second, _, found, _, asked, _, answer = words[words.index("so") - 3 :][:9]
        a, b = ({o.name: o for o in scene.objects}[" ".join(goal[1:])] for goal, _ in inspections(words))
        across = found in ("left", "right")
        assert (asked in ("left", "right")) == across
        assert [first, second] == [f"c{a.col}", f"c{b.col}"] if across else [f"r{a.row}", f"r{b.row}"]
        less = int(first[1:]) < int(second[1:])
        assert found == (("left" if less else "right") if across else ("above" if less else "below"))
        assert answer == ("yes" if found == asked else "no")


def test_a_description_names_every_object_once():
    for seed in range(20):
        scene, rng = generate(seed, 6), np.random.default_rng(seed)
        said = score_statements(scene, [t.word for t in reason(scene, ask(scene, "describe", rng), rng)])
        assert sorted(said.seen) == list(range(len(scene.objects)))


@given(seed=st.integers(0, 2**32), task=st.sampled_from([*TASKS, "describe"]))
@settings(max_examples=80, deadline=None)
def test_every_word_is_in_the_vocabulary(seed, task):
    tokenizer = build_tokenizer()
    scene, rng = generate(seed, 8), np.random.default_rng(seed)
    question = ask(scene, task, rng)
    text = " ".join([question.text, *(t.word for t in reason(scene, question, rng))])
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_detours_follow_similarity():
    rng = np.random.default_rng(0)
    scene = generate(3, 8)
    question = ask(scene, "find", rng)
    goal = scene.objects[question.targets[0]]
    counts = np.zeros(3)
    for _ in range(600):
        for index in score_statements(scene, [t.word for t in reason(scene, question, rng)]).seen:
            o = scene.objects[index]
            counts[
                0 if index in question.targets else 1 if o.colour == goal.colour or o.shape == goal.shape else 2
            ] += 1
    shared = sum(o.colour == goal.colour or o.shape == goal.shape for o in scene.objects) - 1
    other = len(scene.objects) - 1 - shared
    assert counts[0] == 600
    assert counts[1] / max(shared, 1) > 5 * counts[2] / max(other, 1)


def test_about_half_of_the_comparisons_hold():
    rng = np.random.default_rng(0)
    answers = [ask(generate(seed, 8), "compare", rng).answer for seed in range(600)]
    assert 0.42 < answers.count("yes") / 600 < 0.58


def test_at_least_forty_percent_of_a_trace_is_determined_by_text():
    rng = np.random.default_rng(0)
    visual = total = 0
    for seed in range(150):
        scene = generate(seed, 8)
        for task in TASKS:
            trace = reason(scene, ask(scene, task, rng), rng)
            visual += sum(t.kind in ("colour", "shape", "row", "column") for t in trace)
            total += len(trace)
    assert visual / total < 0.6


def test_bad_questions():
    with pytest.raises(ValueError, match="unknown task 'sing'"):
        ask(SCENE, "sing", np.random.default_rng(0))
    with pytest.raises(ValueError, match="needs two objects"):
        ask(Scene(4, SCENE.objects[:1], 0), "compare", np.random.default_rng(0))
    assert set(COLOURS) >= {o.colour for o in SCENE.objects}
