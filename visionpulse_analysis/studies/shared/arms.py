"""Arms of decoding on the same samples and seeds: one row for each trace, and any two arms compared pair by pair.

A trace that reaches the limit of tokens was cut off: how long it would have become is unknown. So being cut off is an
outcome of its own, and lengths are compared over the pairs in which both traces ended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from visionpulse_analysis.experiments.conditions import Outcome, decode_arms
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import (
    Claim,
    Estimate,
    cluster_bootstrap,
    judge,
    paired_difference,
    permutation_test,
    proportion_interval,
)
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.testbed.charts.chart import LABELS, Chart
from visionpulse_analysis.testbed.scenes.questions import ANSWER_MARK
from visionpulse_analysis.testbed.scenes.scene import COLOURS, SHAPES
from visionpulse_analysis.testbed.scenes.truth import OPENINGS, answer_is_right, words_of
from visionpulse_analysis.testbed.truth import Asked, Picture, asked_of_chart, asked_of_scene, detours

DENSE = "dense"
PURPOSES: tuple[str, ...] = ("objects asked for", "detours", "objects not there", "other words")
ACCURACY, LENGTH, CUT_OFF = OUTCOMES = ("accuracy", "length", "cut off")
LABELLED = {word for words in LABELS.values() for word in words}  # all labels of charts
COSTS = ("flops", "kv_bytes_read", "peak_kv_bytes")
Key = TypeVar("Key", bound=Hashable)
Pair = Callable[[str], tuple[np.ndarray, np.ndarray]]  # a column -> its values in either arm, float [pair]
Judged = dict[str, dict[str, Claim]]  # arm -> one of `OUTCOMES` -> its verdict


@dataclass(frozen=True)
class CutOff:
    """Traces that reached the limit of tokens without an end token, over all pairs."""

    # dense, arm, change: share of the traces cut off, and of the arm minus dense
    dense: Estimate
    arm: Estimate
    # n_dense, n_arm, only_dense, only_arm: traces cut off, and pairs in which one of the two alone was
    n_dense: int
    n_arm: int
    only_dense: int
    only_arm: int
    change: Estimate
    p: float  # exact, signs of whole samples flipped; NaN for a single sample
    # Tokens by which traces cut off in the arm alone exceed their dense ones on average, up to the cut: they became
    # longer by at least that, as the limit allows. NaN without such a pair.
    at_least: float
    # The same for pairs cut off in dense alone: their change is at most that, negative where they became shorter
    at_most: float


@dataclass(frozen=True)
class Answers:
    """What only known answers tell, over all pairs but where it says otherwise."""

    # dense_accuracy, accuracy, change: shares right, and of the arm minus dense
    dense_accuracy: Estimate
    accuracy: Estimate
    change: Estimate
    p: float  # exact, signs of whole samples flipped; with one seed that is McNemar's. NaN for a single sample.
    # lost, won: pairs right in dense only, in the arm only
    lost: int
    won: int
    # ratio, ratio_together: accuracy over that of dense: alone, and at a confidence that makes 95 % for all comparisons
    # of a study together, by which "kept" is decided. Bounds are Wilson's where every right answer stays right and no
    # other is, or none is: resamples never differ there.
    ratio: Estimate
    ratio_together: Estimate
    # Relative change of length over the `n_both_right` pairs that ended and are right both times
    length_both_right: Estimate | None
    n_both_right: int
    # dense_detours, detours, detour_change: inspections per trace of objects that the question is not about, over the
    # pairs that ended both times; not known without scenes, as `words`
    dense_detours: Estimate
    detours: Estimate
    detour_change: Estimate
    # Change of tokens by what they are spent on (`PURPOSES`), adding up to the change of length in tokens
    words: dict[str, Estimate]


@dataclass(frozen=True)
class Change:
    """An arm against dense decoding, or another arm, over pairs of the same sample and seed."""

    # n_pairs, n_both: all pairs, and those in which both traces ended, which all lengths are about
    n_pairs: int
    n_both: int
    # dense_length, arm_length: mean tokens per trace
    dense_length: Estimate
    arm_length: Estimate
    # length, tokens: change of the mean length, arm minus dense: relative to dense, -0.12 = 12 % fewer, and in tokens
    # per trace
    length: Estimate
    tokens: Estimate
    p: float  # of no change of length: exact, signs of whole samples flipped. NaN for a single sample.
    # shorter, equal, longer: shares of the pairs
    shorter: Estimate
    equal: Estimate
    longer: Estimate
    cut_off: CutOff
    retention: float  # mean share of the patches that the arm keeps
    truth: Answers | None  # None where an answer is not known


@dataclass(frozen=True, eq=False)
class Arms:
    """What arms of decoding came to on the same samples and seeds.

    Raises ValueError: two arms are not of the same samples and seeds.
    """

    # A row for each trace, in the order of arms, seeds, samples: ``arm``, ``seed``, ``sample`` (its number), ``tokens``
    # (how many), ``finished``, ``kept`` (share of the patches), ``text`` (the tokens), ``overlap`` (mean Jaccard index
    # of consecutive kept sets), ``kept_by_layer``, and `COSTS`, as in `Outcome`. Where all answers are known also
    # ``right``, ``detours``, and the tokens spent on each of `PURPOSES`, as :func:`words_on` names them.
    table: Any

    def __post_init__(self) -> None:
        first, *others = ((arm, self.rows(arm)[["seed", "sample"]].to_numpy().tolist()) for arm in self.names)
        for arm, pairs in others:
            if pairs != first[1]:
                raise ValueError(
                    f"arms need the same seeds and samples in the same order; those of the {len(first[1])} traces of "
                    f"{first[0]!r} and the {len(pairs)} of {arm!r} differ"
                )

    @classmethod
    def of(
        cls, samples: Sequence[Sample], runs: Mapping[str, Sequence[Sequence[Outcome]]], seeds: Sequence[int] = (0,)
    ) -> Arms:
        """The arms of :func:`decode_arms`: arm -> [seed][sample] -> Outcome."""
        known = all(one.scene is not None and one.truth is not None for one in samples)
        rows = [
            {
                "arm": arm,
                "seed": seed,
                "sample": number,
                **outcome_row(found),
                **(scored(one, found.tokens) if known else {}),
            }
            for arm, of_arm in runs.items()
            for seed, run in zip(seeds, of_arm, strict=True)
            for number, (one, found) in enumerate(zip(samples, run, strict=True))
        ]
        return cls(pd.DataFrame(rows))

    @property
    def names(self) -> list[str]:
        """The arms, in order."""
        return self.table["arm"].unique().tolist()

    def rows(self, arm: str) -> Any:
        """The traces of one arm; raises KeyError where there is no such arm."""
        rows = self.table[self.table["arm"] == arm]
        if rows.empty:
            raise KeyError(f"no arm {arm!r}; there are {', '.join(self.names)}")
        return rows

    def only(self, names: Mapping[str, str]) -> Arms:
        """Some of the arms, under other names: name here -> name there."""
        chosen = self.table[self.table["arm"].isin(list(names))]
        return Arms(chosen.assign(arm=chosen["arm"].map(names)))

    @cached_property
    def changes(self) -> dict[str, Change]:
        """Every arm, dense among them, against dense."""
        # Dense against itself, too: figures read its accuracy and cut-offs where they read those of every arm.
        return {arm: self.against(arm, DENSE) for arm in self.names}

    @property
    def pruned(self) -> dict[str, Change]:
        """Every arm but dense, against dense."""
        return {arm: change for arm, change in self.changes.items() if arm != DENSE}

    @property
    def known(self) -> bool:
        """Whether the right answers are known."""
        return "right" in self.table

    @property
    def limit(self) -> int | None:
        """Tokens at which traces were cut off; None where none was."""
        # A trace that was cut off is as long as the limit; no other place states it.
        cut = self.table.loc[~self.table["finished"], "tokens"]
        return int(cut.max()) if len(cut) else None

    def against(self, arm: str, over: str) -> Change:
        """One arm against another."""
        return compare(self.rows(over), self.rows(arm))

    def advantage(self, arm: str, over: str) -> Estimate | None:
        """Accuracy of one arm minus that of another; None where answers are not known."""
        truth = self.against(arm, over).truth
        return truth and truth.change

    def judge_accuracy(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Claim]:
        """Judge the accuracy of arms against others, all (arm, over) as one family; empty without known answers."""
        found = {(arm, over): self.against(arm, over).truth for arm, over in pairs} if self.known else {}
        tests = {names: (truth.change, truth.p) for names, truth in found.items() if truth is not None}
        return judge(tests, f"{len(tests)} differences in accuracy") if tests else {}

    def numbers(self) -> dict[str, dict[str, Any]]:
        """Every arm, JSON-ready; ``length`` is the mean of all traces, up to the limit where that cut one off."""
        found = {}
        for arm, change in self.changes.items():
            rows = self.rows(arm)
            length = cluster_bootstrap(rows["tokens"], rows["sample"], method="studentized")
            found[arm] = {
                "retention": change.retention,
                "overlap": float(rows["overlap"].mean()),
                "length": length.to_json(),
                "accuracy": None if change.truth is None else change.truth.accuracy.to_json(),
                "cut_off": as_json(change.cut_off),
            }
        return found


def measure_arms(
    vlm: VLM, samples: Sequence[Sample], pruners: Mapping[str, Pruner], *, seeds: Sequence[int] = (0,), **options: Any
) -> Arms:
    """Decode the samples dense and in every arm (see :func:`decode_arms` for ``options``), and measure the traces.

    Raises ValueError when an arm is called "dense".
    """
    if DENSE in pruners:
        raise ValueError(f"the arm {DENSE!r} is decoded anyway; give the pruner another name")
    runs = decode_arms(vlm, samples, {DENSE: None, **pruners}, seeds=seeds, **options)
    return Arms.of(samples, runs, seeds)


def outcome_row(found: Outcome) -> dict[str, Any]:
    """The columns of `Arms.table` that need no known answer."""
    return {
        "tokens": len(found.tokens),
        "finished": found.finished,
        "kept": found.retention,
        "text": found.tokens,
        "overlap": found.overlap,
        "kept_by_layer": found.kept_by_layer,
        **{cost: getattr(found, cost) for cost in COSTS},
    }


def scored(sample: Sample, tokens: Sequence[str]) -> dict[str, Any]:
    """Columns of `Arms.table` that take a scene and its question; ValueError where the sample has none."""
    scene, question = sample.scene, sample.truth
    if scene is None or question is None:
        raise ValueError(f"sample {sample.id!r} has no scene with a known answer")
    words = words_of(tokens)
    spent = words_by_purpose(scene, question, words)
    return {
        "right": answer_is_right(question, answer_of(words)),
        "detours": detours(scene, question, words),
        **{words_on(purpose): count for purpose, count in zip(PURPOSES, spent, strict=True)},
    }


def words_on(purpose: str) -> str:
    """The column of `Arms.table` with the tokens spent on one of `PURPOSES`."""
    return f"words: {purpose}"


def answer_of(tokens: Sequence[str]) -> str:
    """The words after the answer mark, without the end token; empty where the trace never answers."""
    words = words_of(tokens)
    if ANSWER_MARK not in words:
        return ""
    words = words[words.index(ANSWER_MARK) + 1 :]
    return " ".join(word for word in words if not word.startswith("<|"))


def words_by_purpose(scene: Picture, question: Asked, words: Sequence[str]) -> tuple[int, ...]:
    """Tokens of a trace spent on each of `PURPOSES`; they add up to its length.

    An inspection runs from ``see`` or ``check`` up to its full stop, the next inspection or the answer mark, and
    belongs to the object that it names; one that names no colour and shape counts as other words. What a count asks
    for may be checked and not be there: that belongs to the objects asked for too.
    """
    # Every word goes to the inspection that it stands in, so that the four changes add up to that of the length.
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


def _purpose(scene: Picture, question: Asked, named: list[str]) -> str:
    if isinstance(scene, Chart):
        if not named or named[0] not in LABELLED:
            return "other words"
        sought = [scene.labels[mark] for mark in asked_of_chart(question).marks if scene.labels]
        if named[0] in sought:
            return "objects asked for"
        return "detours" if named[0] in scene.labels else "objects not there"
    if len(named) < 2 or named[0] not in COLOURS or named[1] not in SHAPES:
        return "other words"
    index, asked = scene.index_of(*named), asked_of_scene(question)
    if asked.attribute in named:
        return "objects asked for"
    if index is None:
        return "objects not there"
    return "objects asked for" if index in asked.targets else "detours"


def compare(dense: Any, arm: Any, *, together: int = 1) -> Change:
    """Compare two arms over the samples and seeds that both have.

    Raises ValueError: no sample and seed is in both, or one is twice in an arm.

    Parameters
    ----------
    dense, arm : DataFrame
        A row for each trace, as in `Arms.table`; the columns ``sample``, ``seed``, ``tokens``, ``finished`` and
        ``kept`` are needed.
    together : int, >= 1
        How many such comparisons a study makes, of which any may be said to keep the accuracy.
    """
    # By sample and seed, not by place: a sweep lacks the traces that failed, and its rows come in any order.
    pairs = dense.merge(arm, on=["sample", "seed"], suffixes=("/dense", "/arm"), validate="one_to_one")
    if pairs.empty:
        raise ValueError(f"no pair of the same sample and seed among {len(dense)} and {len(arm)} traces")

    def both(column: str) -> tuple[np.ndarray, np.ndarray]:
        a, b = (pairs[f"{column}/{side}"].to_numpy(float, na_value=np.nan) for side in ("dense", "arm"))
        return a, b

    samples, (before, after) = pairs["sample"].to_numpy(), both("tokens")
    cut_before, cut_after = (ended == 0 for ended in both("finished"))
    ended = ~cut_before & ~cut_after
    return Change(
        n_pairs=len(pairs),
        n_both=int(ended.sum()),
        **_lengths(before[ended], after[ended], samples[ended]),
        cut_off=_cut_off(after - before, cut_before, cut_after, samples),
        retention=float(pairs["kept/arm"].mean()),
        truth=_answers(pairs, both, ended, together) if "right/arm" in pairs else None,
    )


def mean_of_ended(rows: Any) -> Estimate:
    """Mean length of the traces that ended; NaN where none did."""
    ended = rows[rows["finished"].astype(bool)]
    if ended.empty:
        return Estimate.missing("no trace ended within the limit")
    return cluster_bootstrap(ended["tokens"].to_numpy(float), ended["sample"], method="studentized")


NO_PAIR = Estimate.missing("no pair ended within the limit both times")


def _lengths(a: np.ndarray, b: np.ndarray, samples: np.ndarray) -> dict[str, Any]:
    """What of `Change` is about the pairs that ended both times."""
    intervals = ("dense_length", "arm_length", "length", "tokens", "shorter", "equal", "longer")
    if len(a) == 0:
        return {**dict.fromkeys(intervals, NO_PAIR), "p": np.nan}
    # "studentized": lengths are counts, also where all happen to be 0 or 1.
    return {
        "dense_length": cluster_bootstrap(a, samples, method="studentized"),
        "arm_length": cluster_bootstrap(b, samples, method="studentized"),
        "length": paired_difference(a, b, samples, relative=True),
        "tokens": paired_difference(a, b, samples, method="studentized"),
        "p": permutation_test(a, b, samples).p,
        "shorter": proportion_interval(b < a, samples),
        "equal": proportion_interval(b == a, samples),
        "longer": proportion_interval(b > a, samples),
    }


def _cut_off(grown: np.ndarray, before: np.ndarray, after: np.ndarray, samples: np.ndarray) -> CutOff:
    only_dense, only_arm = before & ~after, after & ~before
    return CutOff(
        dense=proportion_interval(before, samples),
        arm=proportion_interval(after, samples),
        n_dense=int(before.sum()),
        n_arm=int(after.sum()),
        only_dense=int(only_dense.sum()),
        only_arm=int(only_arm.sum()),
        change=paired_difference(before, after, samples),
        p=permutation_test(before, after, samples).p,
        at_least=float(grown[only_arm].mean()) if only_arm.any() else np.nan,
        at_most=float(grown[only_dense].mean()) if only_dense.any() else np.nan,
    )


def _answers(pairs: Any, both: Pair, ended: np.ndarray, together: int) -> Answers | None:
    a, b = both("right")
    if not np.isfinite([a, b]).all():
        return None
    samples = pairs["sample"].to_numpy()
    ratio = _share_of_dense(a, b, samples)
    both_right = ended & (a == 1) & (b == 1)
    before, after = (lengths[both_right] for lengths in both("tokens"))
    return Answers(
        dense_accuracy=proportion_interval(a, samples),
        accuracy=proportion_interval(b, samples),
        change=paired_difference(a, b, samples),
        p=permutation_test(a, b, samples).p,
        lost=int((a > b).sum()),
        won=int((b > a).sum()),
        ratio=ratio,
        ratio_together=_share_of_dense(a, b, samples, together) if together > 1 else ratio,
        length_both_right=paired_difference(before, after, samples[both_right], relative=True) if len(before) else None,
        n_both_right=int(both_right.sum()),
        **_inspections(pairs[ended], both, ended),
    )


def _inspections(pairs: Any, both: Pair, ended: np.ndarray) -> dict[str, Any]:
    """What of `Answers` is about detours and words, over the pairs that ended both times."""
    known = "detours/arm" in pairs
    if pairs.empty or not known:
        unknown = NO_PAIR if known else Estimate.missing("what words are about is known of scenes only")
        names = ("dense_detours", "detours", "detour_change")
        return {**dict.fromkeys(names, unknown), "words": dict.fromkeys(PURPOSES, unknown)}
    samples = pairs["sample"]
    a, b = (values[ended] for values in both("detours"))
    words = {purpose: [values[ended] for values in both(words_on(purpose))] for purpose in PURPOSES}
    return {
        "dense_detours": cluster_bootstrap(a, samples, method="studentized"),
        "detours": cluster_bootstrap(b, samples, method="studentized"),
        "detour_change": paired_difference(a, b, samples, method="studentized"),
        "words": {name: paired_difference(x, y, samples, method="studentized") for name, (x, y) in words.items()},
    }


def _share_of_dense(a: np.ndarray, b: np.ndarray, samples: np.ndarray, together: int = 1) -> Estimate:
    """Right answers of the arm over those of dense; `a` and `b` are 0 or 1 [pair]."""
    # Bonferroni: "kept" may be said of any of them, so all intervals have to hold together.
    confidence = 1 - 0.05 / together
    draws = max(2000, 400 * together)  # ten of them, at least, lie beyond each end
    ratio = paired_difference(a, b, samples, relative=True, confidence=confidence, n_resamples=draws)
    if np.isnan(ratio.low) and a.any() and (np.array_equal(a, b) or not b.any()):
        # All samples that are right densely fare alike, each one way: count them, not their seeds.
        n_right = len(np.unique(samples[a == 1]))
        return proportion_interval(np.full(n_right, b.any()), confidence=confidence)
    return ratio + 1


def judge_changes(
    changes: Mapping[Key, Change], family: str | None = None, *, relative: bool = True
) -> dict[Key, dict[str, Claim]]:
    """Judge accuracy (where it is known), length and cut-offs of several comparisons as one family of tests.

    Parameters
    ----------
    changes : mapping of anything to Change
        All that are compared for one purpose, not only those that look different.
    family : what they are, for the reader; if None, so many arms against dense
    relative : tell the effect on length as a share of dense; if False, in tokens

    Returns
    -------
    dict
        key -> one of `OUTCOMES` -> Claim; its effects are those of the `Change`.
    """
    tests: dict[tuple[Key, str], tuple[Estimate, float]] = {}
    for key, change in changes.items():
        if change.truth is not None:
            tests[key, ACCURACY] = change.truth.change, change.truth.p
        # Both have one sign and one test; which is told depends on what the reader compares it with.
        tests[key, LENGTH] = change.length if relative else change.tokens, change.p
        tests[key, CUT_OFF] = change.cut_off.change, change.cut_off.p
    if family is None:
        outcomes = [outcome for outcome in OUTCOMES if any(outcome == of_test for _, of_test in tests)]
        family = f"{', '.join(outcomes[:-1])} and {outcomes[-1]} of {len(changes)} arms against dense"
    found: dict[Key, dict[str, Claim]] = {key: {} for key in changes}
    for (key, outcome), verdict in judge(tests, family).items():
        found[key][outcome] = verdict
    return found


def table_hash(*tables: pd.DataFrame) -> str:
    """sha256 (hex) over tables such as `Arms.table`, for the provenance of figures."""
    return hashlib.sha256("\n".join(table.to_csv(index=False) for table in tables).encode()).hexdigest()
