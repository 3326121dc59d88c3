"""Questions about scenes, the reasoning traces a careful searcher would write, and the truth of every token.

The next object inspected is drawn by similarity to the target, without repetition, until the target is met; so traces
visit objects that the question did not ask for as far as the image invites it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visionpulse_analysis.testbed.scenes.scene import COLOURS, SHAPES, Scene

TASKS = ("find", "compare", "count")
RELATIONS = {"left": ("col", -1), "right": ("col", 1), "above": ("row", -1), "below": ("row", 1)}
WEIGHT_TARGET, WEIGHT_SHARED, WEIGHT_OTHER = 2.0, 0.6, 0.03
ANSWER_MARK, END_MARK = "</think>", "<|im_end|>"


@dataclass(frozen=True)
class TokenTruth:
    """What one token of a trace is.

    kind : "template", "colour", "shape", "row", "column", "verdict", "number" or "answer".
    object : index into ``scene.objects`` of the object the token is about, or None.
    """

    word: str
    kind: str = "template"
    object: int | None = None


@dataclass(frozen=True)
class Question:
    """One question about a scene, with its answer. ``targets`` are the objects that the question is about."""

    task: str
    text: str
    answer: str
    targets: tuple[int, ...]
    relation: str | None = None
    attribute: str | None = None


def ask(scene: Scene, task: str, rng: np.random.Generator) -> Question:
    """Draw a question of a task ("find", "compare", "count" or "describe") that ``scene`` determines.

    Raises ValueError for an unknown task, or when the scene cannot carry the question (fewer than two objects).
    """
    n = len(scene.objects)
    if task == "find":
        index = int(rng.integers(n))
        o = scene.objects[index]
        return Question(task, f"where is the {o.name} ?", " ".join(o.place), (index,))
    if task == "compare":
        if n < 2:
            raise ValueError(f"compare needs two objects, the scene has {n}; use n_objects >= 2")
        first, second = (int(i) for i in rng.choice(n, size=2, replace=False))
        a, b = scene.objects[first], scene.objects[second]
        asked = str(rng.choice([r for r, (axis, _) in RELATIONS.items() if getattr(a, axis) != getattr(b, axis)]))
        axis, sign = RELATIONS[asked]
        holds = np.sign(getattr(a, axis) - getattr(b, axis)) == sign
        link = f"{asked} of" if axis == "col" else asked
        text = f"is the {a.name} {link} the {b.name} ?"
        return Question(task, text, "yes" if holds else "no", (first, second), relation=asked)
    if task == "count":
        # A present attribute three times in four, else any: the answer 0 must be possible but not common.
        if rng.random() < 0.75:
            o = scene.objects[int(rng.integers(n))]
            attribute = o.colour if rng.random() < 0.5 else o.shape
        else:
            attribute = str(rng.choice(list(COLOURS) if rng.random() < 0.5 else SHAPES))
        return _count_question(scene, attribute)
    if task == "describe":
        return Question(task, "describe the picture .", "done", tuple(range(n)))
    raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}, describe")


def _count_question(scene: Scene, attribute: str) -> Question:
    order = SHAPES if attribute in COLOURS else tuple(COLOURS)
    members = [i for i, o in enumerate(scene.objects) if attribute in (o.colour, o.shape)]
    key = "shape" if attribute in COLOURS else "colour"
    members.sort(key=lambda i: order.index(getattr(scene.objects[i], key)))
    return Question("count", f"how many {attribute} shapes ?", str(len(members)), tuple(members), attribute=attribute)


def reason(
    scene: Scene, question: Question, rng: np.random.Generator, *, target_weight: float = WEIGHT_TARGET
) -> list[TokenTruth]:
    """Write one reasoning trace with its answer, from the first token after ``<think>`` to the end mark.

    A lower ``target_weight`` gives a searcher who looks at more objects before the target.
    """
    if question.task == "find":
        body = _search(scene, question.targets[0], rng, target_weight)
    elif question.task == "compare":
        searches = [token for target in question.targets for token in _search(scene, target, rng, target_weight)]
        body = searches + _decision(scene, question)
    elif question.task == "count":
        body = _check_off(scene, question)
    else:
        body = [t for i in rng.permutation(len(scene.objects)) for t in [*_see(scene, int(i)), TokenTruth(".")]]
        body += _words("no more .")
    answer = [TokenTruth(word, "answer") for word in question.answer.split()]
    return [*body, TokenTruth(ANSWER_MARK), *answer, TokenTruth(END_MARK)]


def _words(text: str) -> list[TokenTruth]:
    return [TokenTruth(word) for word in text.split()]


def _see(scene: Scene, index: int) -> list[TokenTruth]:
    o = scene.objects[index]
    row, column = o.place
    return [
        TokenTruth("see"),
        TokenTruth(o.colour, "colour", index),
        TokenTruth(o.shape, "shape", index),
        TokenTruth(row, "row", index),
        TokenTruth(column, "column", index),
    ]


def _search(scene: Scene, target: int, rng: np.random.Generator, target_weight: float) -> list[TokenTruth]:
    goal = scene.objects[target]
    tokens = _words(f"look for the {goal.name} .")
    left = list(range(len(scene.objects)))
    while True:
        weights = np.array([target_weight if i == target else _similarity(scene, i, target) for i in left])
        seen = left.pop(int(rng.choice(len(left), p=weights / weights.sum())))
        verdict = "yes" if seen == target else "no"
        tokens += [*_see(scene, seen), TokenTruth(","), TokenTruth(verdict, "verdict", seen), TokenTruth(".")]
        if seen == target:
            return tokens


def _similarity(scene: Scene, index: int, target: int) -> float:
    o, goal = scene.objects[index], scene.objects[target]
    return WEIGHT_SHARED if o.colour == goal.colour or o.shape == goal.shape else WEIGHT_OTHER


def _decision(scene: Scene, question: Question) -> list[TokenTruth]:
    a, b = (scene.objects[i] for i in question.targets)
    axis, sign = RELATIONS[str(question.relation)]
    holds = question.answer == "yes"
    found = next(name for name, (other, s) in RELATIONS.items() if other == axis and s == (sign if holds else -sign))
    which = 0 if axis == "row" else 1
    # What is compared is written side by side before each decision.
    return [
        *_words(f"{a.place[which]} then {b.place[which]} so"),
        TokenTruth(found, "verdict"),
        *_words(f". {question.relation} ?"),
        TokenTruth(question.answer, "verdict"),
        TokenTruth("."),
    ]


def _check_off(scene: Scene, question: Question) -> list[TokenTruth]:
    """One by one, whatever could have the attribute: where it is, or none."""
    asked = str(question.attribute)
    names = [(asked, shape) for shape in SHAPES] if asked in COLOURS else [(colour, asked) for colour in COLOURS]
    tokens, number = _words(f"look for {asked} shapes ."), 0
    for colour, shape in names:
        tokens += _words(f"check {colour} {shape}")
        index = scene.index_of(colour, shape)
        if index is None:
            tokens.append(TokenTruth("none", "verdict"))
        else:
            number += 1
            row, column = scene.objects[index].place
            tokens += [TokenTruth(row, "row", index), TokenTruth(column, "column", index)]
            tokens += [TokenTruth(","), TokenTruth(str(number), "number", index)]
        tokens.append(TokenTruth("."))
    return [*tokens, *_words("no more so"), TokenTruth(question.answer, "number"), TokenTruth(".")]
