"""Reading a trace back: what each token is about, what is right, and which patches show what."""

import numpy as np

from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.testbed.scenes.questions import Question, ask
from visionpulse_analysis.testbed.scenes.scene import Scene, SceneObject
from visionpulse_analysis.testbed.scenes.truth import (
    annotate,
    answer_is_right,
    detours,
    object_patches,
    score_statements,
)

SCENE = Scene(
    4,
    (SceneObject("red", "circle", 0, 1), SceneObject("red", "star", 2, 3), SceneObject("blue", "star", 3, 0)),
    seed=0,
)
SEARCH = "look for the red star . see red circle r0 c1 , no . see red star r2 c0 , yes ."
WORDS = f"{SEARCH} </think> r2 c0 <|im_end|>".split()


def test_statements():
    said = score_statements(SCENE, WORDS)
    assert said.colour == [True, True] and said.shape == [True, True]
    assert said.position == [True, False] and said.seen == [0, 1]


def test_things_that_are_not_there():
    said = score_statements(SCENE, "see green star r0 c0 , see blue circle r1 c1 , see".split())
    assert said.colour == [False, True] and said.shape == [False] and said.position == [] and said.seen == []


def test_checks_of_what_is_there_and_what_is_not():
    there, missed = "check red circle r0 c1 , 1 .", "check red star none ."
    absent, made_up = "check red square none .", "check red cross r1 c1 , 2 ."
    said = score_statements(SCENE, f"{there} {missed} {absent} {made_up}".split())
    assert said.presence == [True, False, True, False]
    assert said.position == [True] and said.seen == [0]
    assert said.colour == [] and said.shape == []
    shown = [(t.word, t.kind, t.object) for t in annotate(SCENE, f"{there} {absent} {missed}".split())]
    assert [t for t in shown if t[1] != "template"] == [
        ("r0", "row", 0), ("c1", "column", 0), ("1", "number", 0), ("none", "verdict", None), ("none", "verdict", 1)
    ]  # fmt: skip


def test_annotation():
    truths = annotate(SCENE, WORDS)
    shown = [(t.word, t.kind, t.object) for t in truths if t.kind != "template"]
    assert shown == [
        ("red", "colour", 0), ("circle", "shape", 0), ("r0", "row", 0), ("c1", "column", 0), ("no", "verdict", 0),
        ("red", "colour", 1), ("star", "shape", 1), ("r2", "row", 1), ("c0", "column", 1), ("yes", "verdict", 1),
        ("r2", "answer", None), ("c0", "answer", None),
    ]  # fmt: skip


def test_detours():
    question = ask(SCENE, "find", np.random.default_rng(0))
    words = WORDS
    assert detours(SCENE, question, words) == sum(i != question.targets[0] for i in (0, 1))


def test_object_patches_are_the_cells():
    grid = PatchGrid.from_grid(range(64), 8, 8, [(64, 64)])
    where = object_patches(SCENE, grid)
    for index, o in enumerate(SCENE.objects):
        expected = (grid.row // 2 == o.row) & (grid.col // 2 == o.col)
        assert np.array_equal(where[index], expected) and expected.sum() == 4


def test_object_patches_on_another_grid():
    coarse = PatchGrid.from_grid(range(4), 2, 2, [(64, 64)])
    assert object_patches(SCENE, coarse).tolist() == [
        [True, False, False, False], [False, False, False, True], [False, False, True, False]
    ]  # fmt: skip


def test_what_is_not_in_the_scene_has_no_object():
    for words in ("see green star r0 c1 , no .", "see blue circle r3 c0 , no .", "see red"):
        assert {t.object for t in annotate(SCENE, words.split())} == {None}


def test_only_the_exact_answer_is_right():
    question = Question("find", "where is the red star ?", "r2 c1", (1,))
    assert answer_is_right(question, "r2 c1") and answer_is_right(question, " r2  c1 ")
    for wrong in ("r2 c10", "r2", "c1 r2", "r2 c1 yes", "", "see r2 c1"):
        assert not answer_is_right(question, wrong)
