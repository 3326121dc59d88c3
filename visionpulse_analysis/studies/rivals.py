"""All pruners at the same retention: which parameters that takes, and what each of them costs and spares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from visionpulse_analysis.models import VLM
from visionpulse_analysis.pruners import KeepAll, list_pruners, make_pruner
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.pruners.diversity import BeforeModel
from visionpulse_analysis.statistics import Interval, paired_difference
from visionpulse_analysis.studies.arms import Outcome, decode_arms
from visionpulse_analysis.studies.frontier import Frontier, measure_frontier
from visionpulse_analysis.studies.samples import Sample
from visionpulse_analysis.studies.trace_length import DENSE

COSTS = ("flops", "kv_bytes_read", "peak_kv_bytes")


@dataclass(frozen=True)
class Rival:
    """A pruner of the comparison.

    name : of `list_pruners`, or a combination ``a | b``. family : pruners that share a colour.
    at_prefill : whether what is visible is settled when prefill ends, though it may change from layer to layer.
    matched : (budget, layers of the model) -> parameters with which the last layer sees that share; for a combination,
    its text. None where no parameter sets the share: then the pruner runs as ``own`` says.
    own : parameters of a setting that is reported at its own retention. None: no such setting.
    """

    name: str
    family: str
    at_prefill: bool
    matched: Callable[[float, int], dict[str, Any] | str] | None = None
    own: dict[str, Any] | None = None


def _budget(budget: float, n_layers: int) -> dict[str, Any]:
    return {"budget": budget}


def _fastv_each_step(budget: float, n_layers: int) -> dict[str, Any]:
    return {"budget": budget, "per_step": True}


def _dycoke(budget: float, n_layers: int) -> dict[str, Any]:
    return {"budget": budget, "unpruned_when_steady": False}


def _pyramiddrop(budget: float, n_layers: int) -> dict[str, Any]:
    boundaries = len({max(1, n_layers * quarter // 4) for quarter in (1, 2, 3)})
    return {"ratio": budget ** (1 / boundaries)}


def _sparsevlm(budget: float, n_layers: int) -> dict[str, Any]:
    return {"shares": tuple(min(1.0, budget * share / 110) for share in (300, 200, 110)), "recycled": 0.0}


def _st3(budget: float, n_layers: int) -> dict[str, Any]:
    return {"rate": 1 - budget ** (1 / (n_layers - n_layers // 4)), "decay": "none"}


def _divprune_then_pulse(budget: float, n_layers: int) -> str:
    return f"divprune(budget={min(1.0, 2 * budget)!r}) | visionpulse(budget={budget!r})"


PULSE, STALE, ATTENTION, DIVERSITY = "VisionPulse", "stale choice", "attention in prefill", "diversity and prompt"
STEPS, AT_ONCE, CHANCE, REFERENCE = "attention at steps", "whole layers or steps", "no choice", "oracle"
ADDED = "added"
RIVALS = {
    "VisionPulse": Rival("visionpulse", PULSE, False, _budget, {}),
    "DivPrune | VisionPulse": Rival("divprune | visionpulse", PULSE, False, _divprune_then_pulse),
    "last step only": Rival("last_step_only", STALE, False, _budget),
    "at prefill": Rival("prefill_once", STALE, True, _budget),
    "FastV": Rival("fastv", ATTENTION, True, _budget),
    "PyramidDrop": Rival("pyramiddrop", ATTENTION, True, _pyramiddrop),
    "SparseVLM": Rival("sparsevlm", ATTENTION, True, _sparsevlm, {}),
    "LOOK-M": Rival("lookm", ATTENTION, True, None, {}),
    "DivPrune": Rival("divprune", DIVERSITY, True, _budget),
    "CDPruner": Rival("cdpruner", DIVERSITY, True, _budget),
    "ZSPAPrune": Rival("zspaprune", DIVERSITY, True, _budget),
    "FastV, each step": Rival("fastv", STEPS, False, _fastv_each_step),
    "DyCoke": Rival("dycoke", STEPS, False, _dycoke, {}),
    "ST3": Rival("st3", STEPS, False, _st3, {}),
    "VTW": Rival("vtw", AT_ONCE, True, None, {}),
    "ShortV": Rival("shortv", AT_ONCE, True, None, {}),
    "VisiPruner": Rival("visipruner", AT_ONCE, True, None, {"relative_threshold": 0.1}),
    "MVW": Rival("mvw", AT_ONCE, False, None, {}),
    "random": Rival("random", CHANCE, False, _budget),
    "uniform": Rival("uniform", CHANCE, True, _budget),
    "oracle": Rival("oracle", REFERENCE, True, _budget),
}
OWN = "own setting"


def all_rivals() -> dict[str, Rival]:
    """`RIVALS` and every pruner defined elsewhere: at its ``budget`` where it takes one, else with its defaults."""
    told = {part for rival in RIVALS.values() for part in rival.name.split(" | ")} | {KeepAll.name}
    return RIVALS | {name: _added(kind) for name, kind in list_pruners().items() if name not in told}


def _added(kind: type[Pruner]) -> Rival:
    takes_budget = any(field.name == "budget" for field in fields(kind))
    at_prefill = issubclass(kind, BeforeModel)
    return Rival(kind.name, ADDED, at_prefill, _budget if takes_budget else None, None if takes_budget else {})


def arm_name(label: str, budget: float | None) -> str:
    """The arm of a rival at a budget, or at its own setting."""
    return f"{label}, {OWN}" if budget is None else f"{label} {100 * budget:g} %"


def matched_pruner(rival: Rival, budget: float, n_layers: int) -> Pruner:
    """The rival with the parameters at which the last layer sees ``budget`` of the patches.

    Raises ValueError where no parameter sets that share.
    """
    if rival.matched is None:
        raise ValueError(f"no parameter of {rival.name} sets the share kept; run it as it is")
    given = rival.matched(budget, n_layers)
    return make_pruner(given) if isinstance(given, str) else make_pruner(rival.name, **given)


def rival_arms(budgets: Sequence[float], n_layers: int) -> dict[str, dict[str, Pruner]]:
    """Every rival at every budget, then at its own setting: label -> arm -> pruner."""
    arms: dict[str, dict[str, Pruner]] = {}
    for label, rival in all_rivals().items():
        found = {} if rival.matched is None else {b: matched_pruner(rival, b, n_layers) for b in budgets}
        arms[label] = {arm_name(label, budget): pruner for budget, pruner in found.items()}
        if rival.own is not None:
            arms[label][arm_name(label, None)] = make_pruner(rival.name, **rival.own)
    return arms


@dataclass(frozen=True)
class Comparison:
    """All rivals against dense, greedy, on the same samples.

    arms : label -> names of its arms. costs : arm -> cost -> float64 [sample], for every one of `COSTS`.
    """

    frontier: Frontier
    arms: dict[str, list[str]]
    costs: dict[str, dict[str, np.ndarray]]

    def cost_change(self, arm: str, cost: str) -> Interval:
        """Cost of an arm relative to dense, paired by sample: -0.3 is 30 % less."""
        return paired_difference(self.costs[DENSE][cost], self.costs[arm][cost], relative=True)

    def numbers(self) -> dict[str, Any]:
        """Every arm, JSON-ready."""
        found = {name: {**point.numbers(), "change": point.change.numbers()} for name, point in self._points()}
        for name in found:
            found[name]["costs"] = {cost: self.cost_change(name, cost).to_dict() for cost in COSTS}
        return found

    def _points(self):
        return self.frontier.points.items()


def compare_rivals(
    vlm: VLM, samples: Sequence[Sample], arms: Mapping[str, Mapping[str, Pruner]], **options: Any
) -> Comparison:
    """Decode dense and in all arms (see :func:`decode_arms` for ``options``); outcomes are kept and read again."""
    flat = {name: pruner for group in arms.values() for name, pruner in group.items()}
    measured = measure_frontier(vlm, samples, flat, **options)
    runs = decode_arms(vlm, samples, {DENSE: None, **flat}, **options)  # all of them are in the cache by now
    return Comparison(
        measured,
        {label: list(group) for label, group in arms.items()},
        {name: _costs(run[0]) for name, run in runs.items()},
    )


def _costs(outcomes: Sequence[Outcome]) -> dict[str, np.ndarray]:
    return {cost: np.array([getattr(outcome, cost) for outcome in outcomes]) for cost in COSTS}
