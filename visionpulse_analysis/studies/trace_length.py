"""Does pruning shorten the trace without losing accuracy? Pairs of a dense and a pruned trace of the same sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionpulse_analysis.models import VLM
from visionpulse_analysis.pruners import VisionPulse, make_pruner
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.statistics import (
    Interval,
    cluster_bootstrap,
    mcnemar,
    paired_difference,
    permutation_test,
)
from visionpulse_analysis.studies.arms import Outcome, decode_arms
from visionpulse_analysis.studies.samples import Sample
from visionpulse_analysis.testbed.questions import ANSWER_MARK, Question
from visionpulse_analysis.testbed.scenes import COLOURS, SHAPES, Scene
from visionpulse_analysis.testbed.truth import answer_is_right, detours

PURPOSES = ("objects asked for", "detours", "objects not there", "other words")
DENSE = "dense"


@dataclass(frozen=True)
class Arm:
    """One way of decoding, measured: every array is [seed, sample].

    length : int, generated tokens. retention : float, mean share of patches kept. finished : bool.
    right : bool, exact answer; detours : int, inspections of objects that the question is not about;
    words : int [purpose, seed, sample], tokens by `PURPOSES`. These three are None without ground truth.
    """

    length: np.ndarray
    retention: np.ndarray
    finished: np.ndarray
    right: np.ndarray | None
    detours: np.ndarray | None
    words: np.ndarray | None


@dataclass(frozen=True)
class Change:
    """An arm against dense decoding, over pairs of the same sample and seed; intervals resample samples.

    length : relative change of the mean length, -0.12 = 12 % fewer tokens; tokens : the same in tokens per trace.
    shorter, equal, longer : shares of the pairs.
    Without ground truth None: accuracy and dense_accuracy, accuracy_change (pruned minus dense), accuracy_ratio,
    p (exact McNemar test with one seed, else a permutation test that keeps a sample's seeds together) and `lost`,
    `won` (pairs right only dense, only pruned); length_both_right over `n_both_right` pairs; detours per trace and
    detour_change; words : change of tokens per trace by purpose, which add up to `tokens`.
    """

    n_pairs: int
    retention: float
    unfinished: float
    length: Interval
    tokens: Interval
    shorter: Interval
    equal: Interval
    longer: Interval
    dense_accuracy: Interval | None = None
    accuracy: Interval | None = None
    accuracy_change: Interval | None = None
    accuracy_ratio: Interval | None = None
    p: float | None = None
    lost: int | None = None
    won: int | None = None
    length_both_right: Interval | None = None
    n_both_right: int | None = None
    detours: Interval | None = None
    detour_change: Interval | None = None
    words: dict[str, Interval] | None = None

    def numbers(self) -> dict[str, Any]:
        """All fields, JSON-ready."""
        return {name: _plain(value) for name, value in vars(self).items() if value is not None}


def pulse_arms(anchor: int | None = None) -> dict[str, Pruner | None]:
    """Dense decoding and the two presets of the paper."""
    return {
        DENSE: None,
        "VisionPulse 5 %": VisionPulse.five_percent(anchor),
        "VisionPulse 10 %": VisionPulse.ten_percent(anchor),
    }


def prefill_arms(measured: Mapping[str, Arm], anchor: int | None = None) -> dict[str, Pruner | None]:
    """Pruning once at prefill, to the mean retention that each VisionPulse arm turned out to have."""
    return {
        name.replace("VisionPulse", "at prefill"): make_pruner(
            "prefill_once", budget=round(float(arm.retention.mean()), 4), anchor_layer=anchor
        )
        for name, arm in measured.items()
        if name.startswith("VisionPulse")
    }


def measure_arms(vlm: VLM, samples: Sequence[Sample], arms: Mapping[str, Pruner | None], **options: Any):
    """Decode (see :func:`decode_arms` for ``options``) and measure: dict of arm -> :class:`Arm`."""
    return {name: measure(samples, runs) for name, runs in decode_arms(vlm, samples, arms, **options).items()}


def measure(samples: Sequence[Sample], runs: list[list[Outcome]]) -> Arm:
    """Measure the outcomes [seed][sample] of one arm."""

    def table(value, dtype) -> np.ndarray:
        return np.array([[value(s, o) for s, o in zip(samples, run, strict=True)] for run in runs], dtype=dtype)

    length = table(lambda s, o: len(o.tokens), int)
    retention, finished = table(lambda s, o: o.retention, float), table(lambda s, o: o.finished, bool)
    if any(s.truth is None for s in samples):
        return Arm(length, retention, finished, None, None, None)
    return Arm(
        length,
        retention,
        finished,
        right=table(lambda s, o: answer_is_right(s.truth, answer_of(o.tokens)), bool),
        detours=table(lambda s, o: detours(s.scene, s.truth, o.tokens), int),
        words=np.moveaxis(table(lambda s, o: words_by_purpose(s.scene, s.truth, o.tokens), int), -1, 0),
    )


def answer_of(tokens: list[str]) -> str:
    """The words after the answer mark, without the end token; empty where the trace never answers."""
    if ANSWER_MARK not in tokens:
        return ""
    words = tokens[tokens.index(ANSWER_MARK) + 1 :]
    return " ".join(word for word in words if not word.startswith("<|"))


def words_by_purpose(scene: Scene, question: Question, words: list[str]) -> tuple[int, ...]:
    """Tokens of a trace spent on each of `PURPOSES`; they add up to its length.

    An inspection runs from ``see`` up to its full stop, the next ``see`` or the answer mark, and belongs to the object
    that it names; one that names no colour and shape counts as other words.
    """
    spent = dict.fromkeys(PURPOSES, 0)
    purpose = "other words"
    for place, word in enumerate(words):
        if word == "see":
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
    if index is None:
        return "objects not there"
    return "objects asked for" if index in question.targets else "detours"


def compare(dense: Arm, arm: Arm, only: np.ndarray | None = None) -> Change:
    """Compare an arm with dense decoding of the same samples and seeds.

    Parameters
    ----------
    only : bool [sample], optional
        Restrict to these samples, for example those of one task.
    """
    if dense.length.shape != arm.length.shape:
        raise ValueError(
            f"pairs need the same seeds and samples, got [seed, sample] = {dense.length.shape} and {arm.length.shape}"
        )
    n_seeds, n_samples = dense.length.shape
    chosen = np.ones(n_samples, bool) if only is None else np.asarray(only, bool)
    clusters = np.tile(np.arange(n_samples)[chosen], n_seeds)

    def flat(values: np.ndarray) -> np.ndarray:
        return values[:, chosen].ravel().astype(float)

    before, after = flat(dense.length), flat(arm.length)
    shares = {
        name: cluster_bootstrap(of.astype(float), clusters)
        for name, of in (("shorter", after < before), ("equal", after == before), ("longer", after > before))
    }
    basics = {
        "n_pairs": len(before),
        "retention": float(flat(arm.retention).mean()),
        "unfinished": float(1 - flat(arm.finished).mean()),
        "length": paired_difference(before, after, clusters, relative=True),
        "tokens": paired_difference(before, after, clusters),
        **shares,
    }
    if dense.right is None or arm.right is None or dense.words is None or arm.words is None:
        return Change(**basics)
    a, b = flat(dense.right), flat(arm.right)
    table, both = mcnemar(a, b), (a == 1) & (b == 1)
    return Change(
        **basics,
        dense_accuracy=cluster_bootstrap(a, clusters),
        accuracy=cluster_bootstrap(b, clusters),
        accuracy_change=paired_difference(a, b, clusters),
        accuracy_ratio=_plus_one(paired_difference(a, b, clusters, relative=True)),
        p=table.p if n_seeds == 1 else permutation_test(a, b, clusters).p,
        lost=table.b,
        won=table.c,
        length_both_right=paired_difference(before[both], after[both], clusters[both], relative=True)
        if both.any()
        else None,
        n_both_right=int(both.sum()),
        detours=cluster_bootstrap(flat(arm.detours), clusters),
        detour_change=paired_difference(flat(dense.detours), flat(arm.detours), clusters),
        words={
            name: paired_difference(flat(dense.words[i]), flat(arm.words[i]), clusters)
            for i, name in enumerate(PURPOSES)
        },
    )


def _plus_one(interval: Interval) -> Interval:
    ends = {name: getattr(interval, name) + 1 for name in ("estimate", "low", "high")}
    return Interval(**{**vars(interval), **ends})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value.to_dict() if isinstance(value, Interval) else value
