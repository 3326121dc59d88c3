"""What pruning costs at which retention: budgets, selections, anchors, temperatures, and knobs beyond the paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from visionpulse_analysis.metrics.statistics import Claim
from visionpulse_analysis.pruners import VisionPulse, make_pruner
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.studies.shared.arms import Arms
from visionpulse_analysis.studies.step_dependence.fixed_sets import NAMED

PULSE = "VisionPulse"
SELECTIONS = {
    PULSE: "visionpulse",
    "uniform": "uniform",
    "last step only": "last_step_only",
    "random": "random",
    "hindsight": "hindsight",
    "static random": "static_random",
}
LIMITS = (0.05, 1.0)  # largest budgets that follow the mass: the paper's first setting, and none


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
    return {
        label: {
            layer: (
                f"{label} {100 * budget:g} %, from layer {layer}",
                make_pruner(SELECTIONS[label], budget=budget, anchor_layer=layer),
            )
            for layer in range(0, n_layers, every)
        }
        for label in (PULSE, "random")
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
    return {"preset 5 %": VisionPulse.five_percent(anchor), "preset 10 %": VisionPulse.ten_percent(anchor)}


def knobs(budget: float, hysteresis: Sequence[float], anchor: int | None = None) -> dict[str, Pruner]:
    """The knobs beyond the paper, one at a time, at a fixed budget."""
    # A fixed budget: else a knob that changes the attention would change how much is kept as well.
    plain = VisionPulse(anchor, budget=budget)
    return {
        "reuse_previous": replace(plain, reuse_previous=True),
        **{f"hysteresis {value:g}": replace(plain, hysteresis=value) for value in hysteresis},
    }


def flatten(groups: Mapping[str, Mapping[Any, Any]]) -> dict[str, Pruner]:
    """All arms of `at_budgets`, `at_temperatures` or `at_anchors` in one dictionary."""
    named = [pair for group in groups.values() for pair in group.items()]
    return dict(value if isinstance(value, tuple) else (arm, value) for arm, value in named)


def judged_pairs(measured: Arms, budgets: Sequence[float], knobs: Iterable[str]) -> dict[tuple[str, str], Claim]:
    """Accuracy of VisionPulse minus that of other selections, and of the knobs minus VisionPulse: one family."""
    pairs, arms = [], measured.names
    for budget in budgets:
        share = f"{100 * budget:g} %"
        others = [f"{other} {share}" for other in SELECTIONS if other != PULSE] + [NAMED]
        pairs += [(f"{PULSE} {share}", other) for other in others if other in arms]
    pairs += [(knob, f"{PULSE} {100 * budgets[0]:g} %") for knob in knobs]
    return measured.judge_accuracy(pairs)


def numbers(judged: Mapping[tuple[str, str], Claim]) -> dict[str, dict[str, Any]]:
    """Arm -> what it is compared with -> its verdict, JSON-ready."""
    found: dict[str, dict[str, Any]] = {}
    for (arm, over), verdict in judged.items():
        found.setdefault(arm, {})[over] = verdict.to_json()
    return found
