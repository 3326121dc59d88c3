"""Relevance to the question against diversity: ZSPAPrune's core share r, between random patches and the oracle.

All arms choose equally many patches before the language model: what differs is which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionpulse_analysis.experiments.conditions import first_choices
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.attention import coverage, jaccard, jaccard_null
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Estimate, cluster_bootstrap, paired_difference, permutation_test
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import make_pruner
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.studies.shared.arms import Arms, measure_arms

RANDOM, ORACLE = "random", "oracle"
OTHERS = {"FastV": "fastv", "CDPruner": "cdpruner"}  # compared by what they keep alone


def ratio_name(ratio: float) -> str:
    """How the arm of a core share is called."""
    return f"r = {ratio:g}"


def at_budget(label: str, budget: float) -> str:
    """The arm of a label at a budget."""
    return f"{label}, {100 * budget:g} %"


def prompt_arms(ratios: Sequence[float], budgets: Sequence[float]) -> dict[str, Pruner]:
    """ZSPAPrune at every core share, a random set and the oracle, at every budget: arm -> pruner.

    The random set is drawn once per sample, before the language model as the others (FastV with K = 0).

    Raises ValueError without ratios or budgets.
    """
    if not ratios or not budgets:
        raise ValueError(f"expected ratios and budgets, got {list(ratios)} and {list(budgets)}")
    arms: dict[str, Pruner] = {}
    for budget in budgets:
        for ratio in ratios:
            arms[at_budget(ratio_name(ratio), budget)] = make_pruner("zspaprune", core=ratio, budget=budget)
        # FastV that ranks after no layer has nothing to rank by and draws: one set per sample, before the model.
        arms[at_budget(RANDOM, budget)] = make_pruner("fastv", layer=0, budget=budget)
        arms[at_budget(ORACLE, budget)] = make_pruner("oracle", budget=budget)
    return arms


@dataclass(frozen=True, eq=False)
class PromptAwareness:
    """What was measured, greedy, on the same samples; intervals resample samples."""

    ratios: list[float]
    budgets: list[float]
    arms: Arms
    kept: dict[str, list[np.ndarray]]  # arm -> bool [patch] per sample, also of `OTHERS`
    relevance: list[np.ndarray]  # float32 [patch] per sample, how much the dense answer depends on each patch

    @property
    def labels(self) -> list[str]:
        """What is decoded at every budget."""
        return [*map(ratio_name, self.ratios), RANDOM, ORACLE]

    @property
    def diverse(self) -> str:
        """The smallest core share."""
        return ratio_name(min(self.ratios))

    @property
    def relevant(self) -> str:
        """The largest core share."""
        return ratio_name(max(self.ratios))

    @property
    def mixed(self) -> str:
        """The core share nearest to 0.6, that of the public re-implementations."""
        return ratio_name(min(self.ratios, key=lambda ratio: abs(ratio - 0.6)))

    def accuracy(self, arm: str) -> Estimate:
        """Share of right answers; missing where they are not known."""
        truth = self.arms.changes[arm].truth
        return Estimate.missing("right answers are not known") if truth is None else truth.accuracy

    def held(self, arm: str) -> Estimate:
        """Share of the relevance on the patches that an arm keeps."""
        return _mean(self._held(arm))

    def held_gain(self, arm: str, over: str) -> Estimate:
        """The same, minus that of another arm, paired by sample."""
        return paired_difference(self._held(over), self._held(arm))

    def _held(self, arm: str) -> np.ndarray:
        """Per sample; a sample whose answer depends on no patch counts as lost."""
        shares = [float(coverage(r, kept)) for r, kept in zip(self.relevance, self.kept[arm], strict=True)]
        return np.nan_to_num(shares)

    def gain_test(self, arm: str, over: str) -> tuple[Estimate, float]:
        """Accuracy of an arm minus that of another, or relevance held where answers are unknown, and its exact p."""
        truth = self.arms.against(arm, over).truth
        if truth is not None:
            return truth.change, truth.p
        return self.held_gain(arm, over), permutation_test(self._held(over), self._held(arm)).p

    def overlap(self, arm: str, other: str) -> Estimate:
        """Jaccard index of what two arms keep."""
        return _mean(self._overlaps(arm, other)[0])

    def chance(self, arm: str, other: str) -> float:
        """Jaccard index of random sets of the same sizes, mean over samples."""
        return float(self._overlaps(arm, other)[1].mean())

    def overlap_test(self, arm: str, other: str) -> tuple[Estimate, float]:
        """Jaccard index of what two arms keep minus that of random sets of the same sizes, and its p."""
        found, random = self._overlaps(arm, other)
        return _mean(found - random), permutation_test(random, found).p

    def _overlaps(self, arm: str, other: str) -> tuple[np.ndarray, np.ndarray]:
        """Jaccard index of every sample, and the mean one of random sets of the same sizes."""
        pairs = list(zip(self.kept[arm], self.kept[other], strict=True))
        random = [jaccard_null(len(a), int(a.sum()), int(b.sum())).mean for a, b in pairs]
        return np.array([float(jaccard(a, b)) for a, b in pairs]), np.array(random)

    def numbers(self) -> dict[str, Any]:
        """Every arm, with its gain over random patches and its overlap with the oracle's, JSON-ready."""
        found = self.arms.numbers()
        for budget in self.budgets:
            random, oracle = at_budget(RANDOM, budget), at_budget(ORACLE, budget)
            for arm in (at_budget(label, budget) for label in self.labels):
                own = {"gain_over_random": self.arms.advantage(arm, random), "held": self.held(arm)}
                found[arm] |= as_json(own | {"overlap_with_oracle": self.overlap(arm, oracle)})
        return found


def prompt_awareness(
    vlm: VLM,
    samples: Sequence[Sample],
    ratios: Sequence[float],
    budgets: Sequence[float],
    *,
    max_new_tokens: int = 96,
    batch_size: int = 48,
) -> PromptAwareness:
    """Decode all arms, and look at what they keep; outcomes and relevance are kept and read again."""
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    arms = prompt_arms(ratios, budgets)
    measured = measure_arms(vlm, samples, arms, **options)
    others = {at_budget(label, b): make_pruner(name, budget=b) for label, name in OTHERS.items() for b in budgets}
    kept, relevance = first_choices(vlm, samples, arms | others, **options)
    return PromptAwareness(list(ratios), list(budgets), measured, kept, relevance)


def _mean(values: np.ndarray) -> Estimate:
    return cluster_bootstrap(values, np.arange(len(values)), method="studentized")
