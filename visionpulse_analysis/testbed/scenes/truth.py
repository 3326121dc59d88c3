"""Scoring a generated trace against the scene it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.testbed.scenes.questions import ANSWER_MARK, END_MARK, Question, TokenTruth
from visionpulse_analysis.testbed.scenes.scene import CELL, COLOURS, SHAPES, Scene

VISUAL_KINDS = ("colour", "shape", "row", "column")
OPENINGS = ("see", "check")
NONE = "none"


@dataclass
class Statements:
    """Right or wrong, for each place of a trace where the scene determines what is named.

    colour : an object of that colour exists; shape : one of that colour and shape exists; position : row and column
    are those of the object named (where it exists); presence : what was checked for is said to be somewhere, or none,
    as it is. seen : indices of the objects named and placed, in order.
    """

    colour: list[bool] = field(default_factory=list)
    shape: list[bool] = field(default_factory=list)
    position: list[bool] = field(default_factory=list)
    presence: list[bool] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)


def words_of(tokens: Sequence[str]) -> list[str]:
    """The words of the bundled model's tokens, which bring the spaces between them."""
    return [token.strip() for token in tokens]


def annotate(scene: Scene, words: list[str]) -> list[TokenTruth]:
    """Kind and object of every token of a generated trace (one word per token).

    A token belongs to an object from ``see`` on: its colour, shape, row, column and verdict. After ``check`` the colour
    and shape are the question's, so template; what follows belongs to the object checked for. ``object`` is None where
    the trace names something that is not in the scene. The words after the answer mark are the answer; the end token,
    which every trace has, is template.
    """
    words, truths = words_of(words), list[TokenTruth]()
    after_answer_mark, place, opening, current = False, 99, "", None
    for index, word in enumerate(words):
        place = 0 if word in OPENINGS else place + 1
        opening = word if place == 0 else opening
        if place == 1:
            named = words[index : index + 2]
            current = scene.index_of(*named) if len(named) == 2 else None
        if after_answer_mark:
            truths.append(TokenTruth(word, "template" if word == END_MARK else "answer"))
        elif opening == "see" and word in COLOURS and place == 1:
            truths.append(TokenTruth(word, "colour", current))
        elif opening == "see" and word in SHAPES and place == 2:
            truths.append(TokenTruth(word, "shape", current))
        elif place == 3 and word == NONE:
            truths.append(TokenTruth(word, "verdict", current))
            place = 99  # nothing more is said of it
        elif place == 3 or place == 4:
            truths.append(TokenTruth(word, "row" if place == 3 else "column", current))
        elif place == 6 and words[index - 1] == "," and word in ("yes", "no"):
            truths.append(TokenTruth(word, "verdict", current))
        elif place == 6 and words[index - 1] == "," and word.isdigit():
            truths.append(TokenTruth(word, "number", current))
        else:
            truths.append(TokenTruth(word))
        after_answer_mark = after_answer_mark or word == ANSWER_MARK
    return truths


def score_statements(scene: Scene, words: list[str]) -> Statements:
    """Score every ``see <colour> <shape> <row> <column>`` and ``check <colour> <shape> <row> <column>|none``."""
    words, result = words_of(words), Statements()
    for index in (i for i, word in enumerate(words) if word in OPENINGS):
        said = words[index + 1 : index + 5]
        if len(said) < 4:
            continue
        colour, shape, row, column = said
        found = scene.index_of(colour, shape)
        if words[index] == "check":
            result.presence.append((row == NONE) == (found is None))
        else:
            exists = any(o.colour == colour for o in scene.objects)
            result.colour.append(exists)
            if exists:
                result.shape.append(found is not None)
        if found is not None and row != NONE:
            result.position.append((row, column) == scene.objects[found].place)
            result.seen.append(found)
    return result


class HasAnswer(Protocol):
    """A question of any world: it knows its answer."""

    @property
    def answer(self) -> str: ...


def answer_is_right(question: HasAnswer, answer: str) -> bool:
    """Exact answer, word by word."""
    return answer.split() == question.answer.split()


def detours(scene: Scene, question: Question, words: list[str]) -> int:
    """How many inspections of a trace went to objects that the question is not about."""
    return sum(index not in question.targets for index in score_statements(scene, words).seen)


def object_patches(scene: Scene, grid: PatchGrid) -> np.ndarray:
    """Which patches show which object: bool [object, patch], True where the patch overlaps the object's cell."""
    left, top, right, bottom = grid.box.T
    cells = [(o.col * CELL, o.row * CELL) for o in scene.objects]
    return np.array(
        [(left < x + CELL) & (right > x) & (top < y + CELL) & (bottom > y) for x, y in cells], dtype=bool
    ).reshape(len(cells), len(grid))
