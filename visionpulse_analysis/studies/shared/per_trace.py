"""What single traces of an arm come to: length, answer, detours, and what their tokens are spent on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from visionpulse_analysis.experiments.conditions import Outcome
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.testbed.scenes.questions import ANSWER_MARK, Question
from visionpulse_analysis.testbed.scenes.scene import COLOURS, SHAPES, Scene
from visionpulse_analysis.testbed.scenes.truth import OPENINGS, answer_is_right, detours, words_of

PURPOSES: tuple[str, ...] = ("objects asked for", "detours", "objects not there", "other words")


@dataclass(frozen=True)
class Scored:
    """What only known answers tell, each [seed, sample].

    right : bool, exact answer. detours : int, inspections of objects that the question is not about.
    words : int [purpose, seed, sample], tokens by `PURPOSES`; they add up to the length.
    """

    right: np.ndarray
    detours: np.ndarray
    words: np.ndarray


@dataclass(frozen=True)
class Arm:
    """One way of decoding, measured: every array is [seed, sample].

    length : int, generated tokens. retention : float, mean share of patches kept. finished : bool.
    truth : None where an answer is unknown.
    """

    length: np.ndarray
    retention: np.ndarray
    finished: np.ndarray
    truth: Scored | None


def measure(samples: Sequence[Sample], runs: list[list[Outcome]]) -> Arm:
    """Measure the outcomes [seed][sample] of one arm."""
    return Arm(
        length=np.array([[len(o.tokens) for o in run] for run in runs]),
        retention=np.array([[o.retention for o in run] for run in runs]),
        finished=np.array([[o.finished for o in run] for run in runs]),
        truth=_score(samples, runs),
    )


def _score(samples: Sequence[Sample], runs: list[list[Outcome]]) -> Scored | None:
    known = [(s.scene, s.truth) for s in samples if s.scene is not None and s.truth is not None]
    if len(known) < len(samples):
        return None
    said = [[words_of(o.tokens) for o in run] for run in runs]
    pairs = [[(*scene, tokens) for scene, tokens in zip(known, run, strict=True)] for run in said]
    words = np.array([[words_by_purpose(*pair) for pair in run] for run in pairs])
    return Scored(
        right=np.array([[answer_is_right(asked, answer_of(tokens)) for _, asked, tokens in run] for run in pairs]),
        detours=np.array([[detours(*pair) for pair in run] for run in pairs]),
        words=np.moveaxis(words, -1, 0),
    )


def answer_of(tokens: list[str]) -> str:
    """The words after the answer mark, without the end token; empty where the trace never answers."""
    words = words_of(tokens)
    if ANSWER_MARK not in words:
        return ""
    words = words[words.index(ANSWER_MARK) + 1 :]
    return " ".join(word for word in words if not word.startswith("<|"))


def words_by_purpose(scene: Scene, question: Question, words: list[str]) -> tuple[int, ...]:
    """Tokens of a trace spent on each of `PURPOSES`; they add up to its length.

    An inspection runs from ``see`` or ``check`` up to its full stop, the next inspection or the answer mark, and
    belongs to the object that it names; one that names no colour and shape counts as other words. What a count asks
    for may be checked and not be there: that belongs to the objects asked for too.
    """
    words, spent = words_of(words), dict.fromkeys(PURPOSES, 0)
    purpose = "other words"
    for place, word in enumerate(words):
        if word in OPENINGS:
            purpose = _purpose(scene, question, words[place + 1 : place + 3])
        elif word == ANSWER_MARK:
            purpose = "other words"
        spent[purpose] += 1
        if word == ".":
            purpose = "other words"
    return tuple(spent.values())


def _purpose(scene: Scene, question: Question, named: list[str]) -> str:
    if len(named) < 2 or named[0] not in COLOURS or named[1] not in SHAPES:
        return "other words"
    index = scene.index_of(*named)
    if question.attribute in named:
        return "objects asked for"
    if index is None:
        return "objects not there"
    return "objects asked for" if index in question.targets else "detours"


def arms_hash(arms: Mapping[str, Arm]) -> str:
    """sha256 (hex) over all measured arrays, for the provenance of figures."""
    digest = hashlib.sha256()
    for name, arm in sorted(arms.items()):
        arrays = [arm.length, arm.retention, arm.finished]
        arrays += [] if arm.truth is None else [arm.truth.right, arm.truth.detours, arm.truth.words]
        for values in arrays:
            digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
