"""Does pruning shorten the trace without losing accuracy? Pairs of a dense and a pruned trace of the same sample."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from visionpulse_analysis.experiments.conditions import decode_arms
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.statistics import (
    Claim,
    Estimate,
    cluster_bootstrap,
    judge,
    paired_difference,
    proportion_interval,
)
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import VisionPulse, make_pruner
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.studies.shared.paired import (
    PairedLengths,
    PairedRight,
    nothing_ended,
    paired_lengths,
    paired_right,
)
from visionpulse_analysis.studies.shared.per_trace import PURPOSES, Arm, Scored, measure
from visionpulse_analysis.studies.step_dependence.named_objects import named_arm

DENSE = "dense"
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class ScoredChange(PairedRight):
    """The part of a comparison that needs known answers, over all pairs; see `PairedRight` for its first fields.

    ratio : accuracy over that of dense; its bounds are Wilson's where every right answer stays right and no other
    is, or none is: resamples never differ there. ratio_together : the same at a confidence that makes 95 % for all
    comparisons of a study together: what "kept" is decided by.
    length_both_right : relative change of length over the `n_both_right` pairs that ended and are right both times;
    None without such a pair.
    dense_detours, detours : per trace, dense and in this arm; detour_change : of the two. words : change of tokens by
    purpose, adding up to the change of length in tokens. All four over the pairs that ended both times.
    """

    ratio: Estimate
    ratio_together: Estimate
    length_both_right: Estimate | None
    n_both_right: int
    dense_detours: Estimate
    detours: Estimate
    detour_change: Estimate
    words: dict[str, Estimate]


@dataclass(frozen=True)
class Change(PairedLengths):
    """An arm against dense decoding, over pairs of the same sample and seed; see `PairedLengths` for its first fields.

    retention : mean share of patches kept. truth : None where answers are unknown.
    """

    retention: float
    truth: ScoredChange | None


def pulse_arms(anchor: int | None = None) -> dict[str, Pruner | None]:
    """Dense decoding and the two presets of the paper."""
    return {
        DENSE: None,
        "VisionPulse 5 %": VisionPulse.five_percent(anchor),
        "VisionPulse 10 %": VisionPulse.ten_percent(anchor),
    }


def static_arms(measured: Mapping[str, Arm], patches: int, anchor: int | None = None) -> dict[str, Pruner | None]:
    """One set for the whole trace, of the mean retention of a VisionPulse arm, the nearest whole number of ``patches``.

    Chosen at prefill, for every arm; chosen in hindsight, for the smallest. Budgets round down: half a patch more makes
    the nearest of it.
    """
    kept = {name: arm.retention.mean() for name, arm in measured.items() if name.startswith("VisionPulse")}
    budgets = {name: round(min(1.0, float(share) + 0.5 / patches), 5) for name, share in kept.items()}
    least = min(budgets, key=lambda name: budgets[name])
    pairs = [("at prefill", "prefill_once", name) for name in budgets] + [("hindsight", "hindsight", least)]
    return {
        name.replace("VisionPulse", label): make_pruner(pruner, budget=budgets[name], anchor_layer=anchor)
        for label, pruner, name in pairs
    }


def measure_ways(
    vlm: VLM,
    samples: Sequence[Sample],
    ways: Mapping[str, Mapping[str, Any]],
    anchor: int | None = None,
    **options: Any,
) -> dict[str, dict[str, Arm]]:
    """Decode all arms in several ways and measure them: [way][arm].

    Parameters
    ----------
    ways : mapping of name to `seeds` and `sample`, see :func:`decode_arms`; ``options`` are common to all
    """
    measured, patches = {}, len(vlm.prompt(samples[0].image, samples[0].question).grid)
    for way, choices in ways.items():
        found = decode_arms(vlm, samples, pulse_arms(anchor), **choices, **options)
        arms = {name: measure(samples, runs) for name, runs in found.items()}
        known = named_arm(vlm, samples, found[DENSE], choices.get("seeds", (0,)), anchor)
        found = decode_arms(vlm, samples, static_arms(arms, patches, anchor) | known, **choices, **options)
        measured[way] = arms | {name: measure(samples, runs) for name, runs in found.items()}
    return measured


def judge_changes(changes: Mapping[Key, Change], family: str) -> dict[Key, dict[str, Claim]]:
    """Judge length, accuracy (where known) and cut-offs of several comparisons as one family of tests.

    Parameters
    ----------
    changes : mapping of anything to Change
        All that are compared for one purpose, not only those that look different.
    family : str
        What they are, for the reader.

    Returns
    -------
    dict
        key -> one of "length", "cut off", "accuracy" -> Claim; its effects are those of the `Change`.
    """
    tests: dict[tuple[Key, str], tuple[Estimate, float]] = {}
    for key, c in changes.items():
        tests[key, "length"] = c.length, c.p
        tests[key, "cut off"] = c.cut_off.change, c.cut_off.p
        if c.truth is not None:
            tests[key, "accuracy"] = c.truth.change, c.truth.p
    found: dict[Key, dict[str, Claim]] = {key: {} for key in changes}
    for (key, outcome), verdict in judge(tests, family).items():
        found[key][outcome] = verdict
    return found


def compare(dense: Arm, arm: Arm, only: np.ndarray | None = None, *, together: int = 1) -> Change:
    """Compare an arm with dense decoding of the same samples and seeds.

    Parameters
    ----------
    only : bool [sample], optional
        Restrict to these samples, for example those of one task.
    together : int, >= 1
        How many such comparisons a study makes, of which any may be said to keep the accuracy.
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

    lengths = paired_lengths(flat(dense.length), flat(arm.length), flat(dense.finished), flat(arm.finished), clusters)
    return Change(
        **vars(lengths),
        retention=float(flat(arm.retention).mean()),
        truth=_compare_scored(dense, arm, flat, clusters, together),
    )


def _compare_scored(
    dense: Arm, arm: Arm, flat: Callable[[np.ndarray], np.ndarray], clusters: np.ndarray, together: int
) -> ScoredChange | None:
    if dense.truth is None or arm.truth is None:
        return None
    first, second = dense.truth, arm.truth
    a, b = flat(first.right), flat(second.right)
    ended = (flat(dense.finished) == 1) & (flat(arm.finished) == 1)
    both = ended & (a == 1) & (b == 1)
    before, after = flat(dense.length)[both], flat(arm.length)[both]
    ratio = _share_of_dense(a, b, clusters)
    return ScoredChange(
        **vars(paired_right(a, b, clusters)),
        ratio=ratio,
        ratio_together=_share_of_dense(a, b, clusters, together) if together > 1 else ratio,
        length_both_right=paired_difference(before, after, clusters[both], relative=True) if both.any() else None,
        n_both_right=int(both.sum()),
        **_why(first, second, flat, ended, clusters),
    )


def _why(
    before: Scored,
    after: Scored,
    flat: Callable[[np.ndarray], np.ndarray],
    ended: np.ndarray,
    clusters: np.ndarray,
) -> dict[str, Any]:
    """What of `ScoredChange` is about detours and words."""
    whose = clusters[ended]
    a, b = flat(before.detours)[ended], flat(after.detours)[ended]
    if len(whose) == 0:
        names = ("dense_detours", "detours", "detour_change")
        return {**dict.fromkeys(names, nothing_ended()), "words": dict.fromkeys(PURPOSES, nothing_ended())}
    return {
        "dense_detours": cluster_bootstrap(a, whose, method="studentized"),
        "detours": cluster_bootstrap(b, whose, method="studentized"),
        "detour_change": paired_difference(a, b, whose, method="studentized"),
        "words": {
            name: paired_difference(
                flat(before.words[i])[ended], flat(after.words[i])[ended], whose, method="studentized"
            )
            for i, name in enumerate(PURPOSES)
        },
    }


def _share_of_dense(a: np.ndarray, b: np.ndarray, clusters: np.ndarray, together: int = 1) -> Estimate:
    """Right answers of the pruned arm over those of the dense one; `a` and `b` are 0 or 1 [pair]."""
    confidence = 1 - 0.05 / together
    draws = max(2000, 400 * together)  # ten of them, at least, lie beyond each end
    ratio = paired_difference(a, b, clusters, relative=True, confidence=confidence, n_resamples=draws)
    if np.isnan(ratio.low) and a.any() and (np.array_equal(a, b) or not b.any()):
        # All samples that are right densely fare alike, each one way: count them, not their seeds.
        n_right = len(np.unique(clusters[a == 1]))
        return proportion_interval(np.full(n_right, b.any()), unit=ratio.unit, confidence=confidence)
    return ratio + 1
