"""Dense decoding and an arm on the same samples and seeds: what became longer, what never ended, what is right.

A trace that reaches the limit of tokens was cut off: how long it would have become is unknown. So being cut off is an
outcome of its own, and lengths are compared over the pairs in which both traces ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from visionpulse_analysis.metrics.statistics import (
    Estimate,
    cluster_bootstrap,
    mcnemar,
    paired_difference,
    permutation_test,
    proportion_interval,
)


@dataclass(frozen=True)
class CutOff:
    """Traces that reached the limit of tokens without an end token, over all pairs.

    Attributes
    ----------
    dense, arm : Estimate
        Share of the traces cut off, with a score interval.
    n_dense, n_arm : int
        How many those are.
    only_dense, only_arm : int
        Pairs in which one of the two alone was cut off.
    change : Estimate
        Share cut off, arm minus dense.
    p : float
        Of its exact test, as in `PairedRight`.
    at_least : float
        Tokens by which traces cut off in the arm alone exceed their dense ones on average, up to the cut: they became
        longer by at least that, as the limit allows. NaN without such a pair.
    at_most : float
        The same for pairs cut off in dense alone: their change is at most that, negative where they became shorter.
    """

    dense: Estimate
    arm: Estimate
    n_dense: int
    n_arm: int
    only_dense: int
    only_arm: int
    change: Estimate
    p: float
    at_least: float
    at_most: float

    def numbers(self) -> dict[str, Any]:
        """JSON-ready."""
        return plain(vars(self))


@dataclass(frozen=True)
class PairedLengths:
    """Lengths of an arm against dense decoding, and beside them what was cut off.

    Attributes
    ----------
    n_pairs, n_both : int
        All pairs, and those in which both traces ended. All that follows is about the latter, but `cut_off`.
    dense_length, arm_length : Estimate
        Mean tokens per trace.
    length, tokens : Estimate
        Change of the mean length, arm minus dense: relative to dense, -0.12 = 12 % fewer, and in tokens per trace.
    p : float
        Of the test of no change of length: exact, signs of whole samples flipped. NaN for a single sample.
    shorter, equal, longer : Estimate
        Shares of the pairs.
    cut_off : CutOff
        Over all pairs.
    """

    n_pairs: int
    n_both: int
    dense_length: Estimate
    arm_length: Estimate
    length: Estimate
    tokens: Estimate
    p: float
    shorter: Estimate
    equal: Estimate
    longer: Estimate
    cut_off: CutOff

    def numbers(self) -> dict[str, Any]:
        """JSON-ready."""
        return plain(vars(self))


@dataclass(frozen=True)
class PairedRight:
    """Right answers of an arm against dense decoding, over all pairs.

    Attributes
    ----------
    dense_accuracy, accuracy : Estimate
        Shares right.
    change : Estimate
        Arm minus dense.
    p : float
        Of the exact test that flips whole samples; with one seed that is McNemar's. NaN for a single sample.
    lost, won : int
        Pairs right in dense only, in the arm only.
    """

    dense_accuracy: Estimate
    accuracy: Estimate
    change: Estimate
    p: float
    lost: int
    won: int

    def numbers(self) -> dict[str, Any]:
        """JSON-ready."""
        return plain(vars(self))


def paired_lengths(
    dense: ArrayLike,
    arm: ArrayLike,
    dense_finished: ArrayLike,
    arm_finished: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    unit: str = "sample",
) -> PairedLengths:
    """Compare the lengths of two decodes of the same samples and seeds.

    Parameters
    ----------
    dense, arm : int [pair]
        Generated tokens of each trace.
    dense_finished, arm_finished : bool [pair]
        False where the limit of tokens cut the trace off.
    clusters : labels [pair], optional
        The sample of each pair, where samples repeat over seeds; by default every pair is its own.
    unit : str
        What one cluster is, in the singular.

    Returns
    -------
    PairedLengths; its lengths are NaN where no pair ended both times.

    Raises
    ------
    ValueError
        Arrays of different lengths, or none.
    """
    given = [np.asarray(array) for array in (dense, arm, dense_finished, arm_finished)]
    shapes = [array.shape for array in given]
    if len(set(shapes)) > 1 or given[0].ndim != 1 or given[0].size == 0:
        raise ValueError(f"lengths, and whether traces ended, must be 1-D, one per pair and not empty; got {shapes}")
    before, after = (lengths.astype(float) for lengths in given[:2])
    ended_before, ended_after = (ended.astype(bool) for ended in given[2:])
    labels = np.arange(len(before)) if clusters is None else np.asarray(clusters)
    both = ended_before & ended_after
    return PairedLengths(
        n_pairs=len(before),
        n_both=int(both.sum()),
        **_compare_ended(before[both], after[both], labels[both], unit),
        cut_off=_compare_cut_off(after - before, ~ended_before, ~ended_after, labels, unit),
    )


def paired_right(
    dense: ArrayLike, arm: ArrayLike, clusters: ArrayLike | None = None, *, unit: str = "sample"
) -> PairedRight:
    """Compare which answers are right in two decodes of the same samples and seeds.

    Parameters
    ----------
    dense, arm : bool or 0/1 array [pair]
        Whether each answer is right; one that was cut off before its answer is not.
    clusters : labels [pair], optional
        The sample of each pair, where samples repeat over seeds; by default every pair is its own.
    unit : str
        What one cluster is, in the singular.

    Raises
    ------
    ValueError
        Arrays of different lengths, none, or values other than 0 and 1.
    """
    table = mcnemar(dense, arm)
    return PairedRight(
        dense_accuracy=proportion_interval(dense, clusters, unit=unit),
        accuracy=proportion_interval(arm, clusters, unit=unit),
        change=paired_difference(dense, arm, clusters, unit=unit),
        p=permutation_test(dense, arm, clusters).p,
        lost=table.b,
        won=table.c,
    )


def mean_of_ended(tokens: np.ndarray, finished: np.ndarray, clusters: np.ndarray, *, unit: str = "sample") -> Estimate:
    """Mean length of the traces that ended, int [trace] and bool [trace]; NaN where none did."""
    ended = np.asarray(finished, bool)
    if not ended.any():
        return replace(nothing_ended(unit), refused="no trace ended within the limit")
    lengths = np.asarray(tokens, float)[ended]
    return cluster_bootstrap(lengths, np.asarray(clusters)[ended], unit=unit, method="studentized")


def nothing_ended(unit: str = "sample") -> Estimate:
    """What is known about the pairs that ended both times where there is none."""
    why = "no pair ended within the limit both times"
    return Estimate(np.nan, np.nan, np.nan, 0, 0, 0.95, "none", unit, why)


def _compare_ended(a: np.ndarray, b: np.ndarray, whose: np.ndarray, unit: str) -> dict[str, Any]:
    """What of `PairedLengths` is about the pairs that ended both times."""
    intervals = ("dense_length", "arm_length", "length", "tokens", "shorter", "equal", "longer")
    if len(a) == 0:
        return {**dict.fromkeys(intervals, nothing_ended(unit)), "p": np.nan}
    # "studentized": lengths are counts, also where all happen to be 0 or 1.
    return {
        "dense_length": cluster_bootstrap(a, whose, unit=unit, method="studentized"),
        "arm_length": cluster_bootstrap(b, whose, unit=unit, method="studentized"),
        "length": paired_difference(a, b, whose, relative=True, unit=unit),
        "tokens": paired_difference(a, b, whose, unit=unit, method="studentized"),
        "p": permutation_test(a, b, whose).p,
        "shorter": proportion_interval(b < a, whose, unit=unit),
        "equal": proportion_interval(b == a, whose, unit=unit),
        "longer": proportion_interval(b > a, whose, unit=unit),
    }


def _compare_cut_off(
    grown: np.ndarray, cut_before: np.ndarray, cut_after: np.ndarray, labels: np.ndarray, unit: str
) -> CutOff:
    only_dense, only_arm = cut_before & ~cut_after, cut_after & ~cut_before
    return CutOff(
        dense=proportion_interval(cut_before, labels, unit=unit),
        arm=proportion_interval(cut_after, labels, unit=unit),
        n_dense=int(cut_before.sum()),
        n_arm=int(cut_after.sum()),
        only_dense=int(only_dense.sum()),
        only_arm=int(only_arm.sum()),
        change=paired_difference(cut_before, cut_after, labels, unit=unit),
        p=permutation_test(cut_before, cut_after, labels).p,
        at_least=float(grown[only_arm].mean()) if only_arm.any() else np.nan,
        at_most=float(grown[only_dense].mean()) if only_dense.any() else np.nan,
    )


def plain(value: Any) -> Any:
    """Anything of a comparison as JSON takes it: what has `numbers` or `to_json` by these, NaN as None."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if hasattr(value, "numbers"):
        return value.numbers()
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return None if value != value else value
