"""What pruning costs at which retention: budgets, selections, anchors, temperatures, and knobs beyond the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from visionpulse_analysis.experiments.conditions import decode_arms
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.statistics import Claim, Estimate, cluster_bootstrap, judge
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import VisionPulse, make_pruner
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.studies.shared.paired import PairedRight, paired_right
from visionpulse_analysis.studies.shared.per_trace import Arm, measure
from visionpulse_analysis.studies.trace_length.measure import DENSE, Change, compare

SELECTIONS = {
    "VisionPulse": "visionpulse",
    "uniform": "uniform",
    "last step only": "last_step_only",
    "random": "random",
    "hindsight": "hindsight",
    "static random": "static_random",
}

LIMITS = (0.05, 1.0)  # largest budgets that follow the mass: the paper's first setting, and none


@dataclass(frozen=True)
class Point:
    """One setting on the frontier, greedy; intervals resample samples.

    retention : mean share of patches kept; overlap : mean Jaccard index of consecutive kept sets;
    length : mean tokens per trace, up to the limit where that cut one off; accuracy : share right, None without ground
    truth; change : against dense.
    """

    retention: float
    overlap: float
    length: Estimate
    accuracy: Estimate | None
    change: Change

    def numbers(self) -> dict[str, Any]:
        """Headline numbers, JSON-ready."""
        return {
            "retention": self.retention,
            "overlap": self.overlap,
            "length": self.length.to_json(),
            "accuracy": None if self.accuracy is None else self.accuracy.to_json(),
            "cut_off": self.change.cut_off.numbers(),
        }


@dataclass(frozen=True)
class Frontier:
    """Points by arm, and the measured arms for paired comparisons. ``dense`` is the arm without pruning."""

    points: dict[str, Point]
    arms: dict[str, Arm]
    tokens: dict[str, list[list[str]]]

    @property
    def dense(self) -> Point:
        return self.points[DENSE]

    @property
    def changes(self) -> dict[str, Change]:
        """Every arm but dense, against dense."""
        return {name: point.change for name, point in self.points.items() if name != DENSE}

    @property
    def limit(self) -> int | None:
        """Tokens at which traces were cut off; None where none was."""
        cut = [int(arm.length[~arm.finished].max()) for arm in self.arms.values() if not arm.finished.all()]
        return max(cut, default=None)

    def group(self, names: Mapping[str, Any]) -> dict[str, Point]:
        """The points of some arms, such as one of the dictionaries that named them."""
        return {name: self.points[name] for name in names}


def at_budgets(budgets: Sequence[float], anchor: int | None = None) -> dict[str, dict[str, Pruner]]:
    """Every selection at every fixed share of the patches: selection -> arm -> pruner."""
    return {
        label: {
            f"{label} {100 * budget:g} %": make_pruner(name, budget=budget, anchor_layer=anchor) for budget in budgets
        }
        for label, name in SELECTIONS.items()
    }


def at_anchors(n_layers: int, budget: float, every: int = 1) -> dict[str, dict[int, tuple[str, Pruner]]]:
    """VisionPulse and random selection from every layer on: selection -> layer -> (arm, pruner)."""
    layers = range(0, n_layers, every)
    return {
        label: {
            layer: (
                f"{label} {100 * budget:g} %, from layer {layer}",
                make_pruner(SELECTIONS[label], budget=budget, anchor_layer=layer),
            )
            for layer in layers
        }
        for label in ("VisionPulse", "random")
    }


def at_temperatures(temperatures: Sequence[float], anchor: int | None = None) -> dict[str, dict[str, Pruner]]:
    """Budgets that follow the attention mass, from 1 % to each of `LIMITS`: limit -> arm (a temperature) -> pruner."""
    return {
        f"to {100 * limit:g} %": {
            f"to {100 * limit:g} %, tau {tau:g}": VisionPulse(
                anchor, temperature=tau, budget_min=0.01, budget_max=limit
            )
            for tau in temperatures
        }
        for limit in LIMITS
    }


def presets(anchor: int | None = None) -> dict[str, Pruner]:
    """The two settings of the paper."""
    return {
        "preset 5 %": VisionPulse.five_percent(anchor),
        "preset 10 %": VisionPulse.ten_percent(anchor),
    }


def knobs(budget: float, hysteresis: Sequence[float], anchor: int | None = None) -> dict[str, Pruner]:
    """The knobs beyond the paper, one at a time, at a fixed budget."""
    plain = VisionPulse(anchor, budget=budget)
    return {
        "reuse_previous": replace(plain, reuse_previous=True),
        **{f"hysteresis {value:g}": replace(plain, hysteresis=value) for value in hysteresis},
    }


def measure_frontier(vlm: VLM, samples: Sequence[Sample], arms: Mapping[str, Pruner], **options: Any) -> Frontier:
    """Decode the samples greedily, dense and in every arm (see :func:`decode_arms` for ``options``), and measure.

    Raises ValueError when an arm is called "dense".
    """
    if DENSE in arms:
        raise ValueError(f"the arm {DENSE!r} is decoded anyway; give the pruner another name")
    runs = decode_arms(vlm, samples, {DENSE: None, **arms}, **options)
    measured = {name: measure(samples, of_arm) for name, of_arm in runs.items()}
    ids = list(range(len(samples)))
    points = {}
    for name, arm in measured.items():
        points[name] = Point(
            retention=float(arm.retention.mean()),
            overlap=float(sum(o.overlap for o in runs[name][0]) / len(samples)),
            length=cluster_bootstrap(arm.length[0], ids, method="studentized"),
            accuracy=None if arm.truth is None else cluster_bootstrap(arm.truth.right[0].astype(float), ids),
            change=compare(measured[DENSE], arm),
        )
    return Frontier(points, measured, {name: [o.tokens for o in run[0]] for name, run in runs.items()})


def pair(frontier: Frontier, arm: str, over: str) -> PairedRight | None:
    """Right answers of one arm against those of another, paired by sample; None without ground truth."""
    first, second = frontier.arms[arm].truth, frontier.arms[over].truth
    if first is None or second is None:
        return None
    return paired_right(second.right[0], first.right[0])


def advantage(frontier: Frontier, arm: str, over: str) -> Estimate | None:
    """Accuracy of one arm minus that of another, paired by sample; None without ground truth."""
    found = pair(frontier, arm, over)
    return None if found is None else found.change


def judge_pairs(frontier: Frontier, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Claim]:
    """Judge the accuracy of arms against others, all (arm, over) as one family; empty without ground truth."""
    found = {(arm, over): pair(frontier, arm, over) for arm, over in pairs}
    tests = {names: (one.change, one.p) for names, one in found.items() if one is not None}
    return judge(tests, f"{len(tests)} differences in accuracy") if tests else {}


def flatten(groups: Mapping[str, Mapping[Any, Any]]) -> dict[str, Pruner]:
    """All arms of `at_budgets` or `at_anchors` in one dictionary."""
    found: dict[str, Pruner] = {}
    for group in groups.values():
        for name, value in group.items():
            arm, pruner = value if isinstance(value, tuple) else (name, value)
            found[arm] = pruner
    return found
