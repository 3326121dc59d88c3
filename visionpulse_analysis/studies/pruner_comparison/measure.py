"""All pruners at the same retention: which parameters that takes, and what each of them costs and spares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Estimate, paired_difference
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import KeepAll, list_pruners, make_pruner
from visionpulse_analysis.pruners.base import BeforeModel, Pruner
from visionpulse_analysis.pruners.heads import Learned
from visionpulse_analysis.studies.pruner_comparison import settings as to
from visionpulse_analysis.studies.pruner_comparison.settings import Basis, share_of_layers
from visionpulse_analysis.studies.shared.arms import COSTS, DENSE, Arms, measure_arms
from visionpulse_analysis.studies.step_dependence.fixed_sets import NAMED, greedy_named_arm


@dataclass(frozen=True)
class Rival:
    """A pruner of the comparison."""

    name: str  # of `list_pruners`, or a combination ``a | b``
    family: str  # pruners that share a panel
    at_prefill: bool  # whether what is visible is settled when prefill ends, though it may change from layer to layer
    # (budget, basis) -> parameters with which it keeps that share (see :func:`retention`); for a combination, its text;
    # None where no setting keeps about as much. None in its place: no parameter sets the share.
    matched: Callable[[float, Basis], dict[str, Any] | str | None] | None = None
    # Parameters of a setting that is reported at its own retention, or what makes it from the basis. None: no such
    # setting.
    own: dict[str, Any] | Callable[[Basis], Pruner] | None = None
    # Layers of the model -> the first that the method can drop patches from, where that is not the first which it does
    # drop them from
    first: Callable[[int], int] | None = None


PULSE, STALE, ATTENTION, DIVERSITY = (
    "VisionPulse",
    "chosen earlier or twice",
    "attention in prefill",
    "diversity, prompt",
)
STEPS, AT_ONCE, REFERENCE = "attention at steps", "whole layers or steps", "references"
ADDED = "added"
RIVALS = {
    "VisionPulse": Rival("visionpulse", PULSE, False, to.budget, {}),
    "DivPrune | VisionPulse": Rival("divprune | visionpulse", STALE, False, to.divprune_then_pulse),
    "last step only": Rival("last_step_only", STALE, False, to.budget),
    "at prefill": Rival("prefill_once", STALE, True, to.budget),
    "FastV": Rival("fastv", ATTENTION, True, to.budget),
    "PyramidDrop": Rival("pyramiddrop", ATTENTION, True, to.pyramiddrop),
    "SparseVLM": Rival("sparsevlm", ATTENTION, True, to.sparsevlm, {}),
    "LOOK-M": Rival("lookm", ATTENTION, True, to.lookm, {}),
    "DivPrune": Rival("divprune", DIVERSITY, True, to.budget),
    "CDPruner": Rival("cdpruner", DIVERSITY, True, to.budget),
    "ZSPAPrune": Rival("zspaprune", DIVERSITY, True, to.budget),
    "CoViPAL": Rival("covipal", DIVERSITY, True, to.budget),
    "relevance CNN": Rival("relevance_cnn", DIVERSITY, True, to.budget),
    "SeTok": Rival("setok", DIVERSITY, True, to.budget, {}),
    # FastV(per_step=True) is not here: without a cache, each of its steps costs as much as a prefill.
    "DyCoke": Rival("dycoke", STEPS, False, to.dycoke, {}),
    "ST3": Rival("st3", STEPS, False, to.st3, {}),
    "VTW": Rival("vtw", AT_ONCE, True, to.vtw, to.vtw_calibrated, first=lambda n: 0),
    "ShortV": Rival("shortv", AT_ONCE, True, to.shortv, to.shortv_calibrated, first=lambda n: 0),
    # They prune what is computed of pictures, and keep every patch: own settings, compared by what they cost.
    "ViCA": Rival("vica", AT_ONCE, True, None, {}, first=lambda n: 0),
    "YOPO": Rival("yopo", AT_ONCE, True, None, {}, first=lambda n: 0),
    "VisiPruner": Rival(
        "visipruner", AT_ONCE, True, to.visipruner, {"relative_threshold": 0.1}, to.visipruner_acts_from
    ),
    "DyVTE": Rival("dyvte", AT_ONCE, True, None, {}, first=lambda n: 0),
    "DyVTE, each step": Rival("dyvte_steps", AT_ONCE, False, None, {}, first=lambda n: 0),
    "MVW": Rival("mvw", AT_ONCE, False, to.mvw, {}),
    "random": Rival("random", REFERENCE, False, to.budget),
    "uniform": Rival("uniform", REFERENCE, True, to.budget),
    "oracle": Rival("oracle", REFERENCE, True, to.budget),
    "hindsight": Rival("hindsight", REFERENCE, True, to.budget),
    "static random": Rival("static_random", REFERENCE, True, to.budget),
}
# Sets of certain samples: an arm only where these are given, see `named_rival`.
OF_SAMPLES = {NAMED: Rival("", REFERENCE, True)}
OWN = "own setting"


def all_rivals() -> dict[str, Rival]:
    """All rivals, with every pruner defined elsewhere: at its ``budget`` where it takes one, else with its defaults.

    Pruners that weigh patches anew are left out: they keep no share of them that others could be compared at.
    """
    # Combinations are taken apart: each of their pruners has its own line, too.
    told = {part for rival in RIVALS.values() for part in rival.name.split(" | ")} | {KeepAll.name}
    others = {name: kind for name, kind in list_pruners().items() if name not in told and not kind.reweights}
    return RIVALS | OF_SAMPLES | {name: _added(kind) for name, kind in others.items()}


def _added(kind: type[Pruner]) -> Rival:
    takes_budget = any(field.name == "budget" for field in fields(kind))
    at_prefill = issubclass(kind, BeforeModel)
    return Rival(kind.name, ADDED, at_prefill, to.budget if takes_budget else None, None if takes_budget else {})


def retention(by_layer: Sequence[float] | np.ndarray, pruner: str, n_layers: int) -> float:
    """Share of the patches kept: mean over the steps after prefill, and over the layers that a method acts on.

    Those are the layers from the first on that it can drop patches from: the anchor for VisionPulse, the layer of
    FastV, the first boundary of PyramidDrop, all of them where patches go before the model or where the layer is what
    a method chooses (VTW, ShortV).

    by_layer : of :func:`kept_by_layer`. pruner : name of it; 1 where nothing is dropped.
    """
    known = next((rival for rival in all_rivals().values() if rival.name == pruner), None)
    return share_of_layers(by_layer, None if known is None or known.first is None else known.first(n_layers))


def arm_name(label: str, budget: float | None) -> str:
    """The arm of a rival at a budget, or at its own setting."""
    return f"{label}, {OWN}" if budget is None else f"{label} {100 * budget:g} %"


def matched_pruner(rival: Rival, budget: float, basis: Basis) -> Pruner | None:
    """The rival with parameters at which it keeps ``budget`` of the patches, or None where there are none."""
    given = None if rival.matched is None else rival.matched(budget, basis)
    if given is None:
        return None
    return make_pruner(given) if isinstance(given, str) else make_pruner(rival.name, **given)


def rival_arms(budgets: Sequence[float], basis: Basis) -> dict[str, dict[str, Pruner]]:
    """Every rival at every budget that it can keep, then at its own setting: label -> arm -> pruner.

    Those with a trained head are left out where it does not belong to the model of the basis.
    """
    arms: dict[str, dict[str, Pruner]] = {}
    for label, rival in all_rivals().items():
        kind = list_pruners().get(rival.name)
        asked = make_pruner(rival.name) if kind is not None and issubclass(kind, Learned) else None
        if isinstance(asked, Learned) and (basis.vlm is None or not asked.serves(basis.vlm.weights_hash)):
            continue
        found = {arm_name(label, budget): matched_pruner(rival, budget, basis) for budget in budgets}
        arms[label] = {name: pruner for name, pruner in found.items() if pruner is not None}
        if rival.own is not None:
            own = rival.own(basis) if callable(rival.own) else make_pruner(rival.name, **rival.own)
            arms[label][arm_name(label, None)] = own
    return {label: group for label, group in arms.items() if group}


def named_rival(vlm: VLM, samples: Sequence[Sample], **options: Any) -> dict[str, dict[str, Pruner]]:
    """Label -> arm -> pruner of the objects named by the dense answers; empty where no truth is known.

    ``options`` : of :func:`decode_arms`, as for the comparison.
    """
    found = greedy_named_arm(vlm, samples, **options)
    return {NAMED: {arm_name(NAMED, None): found[NAMED]}} if found else {}


@dataclass(frozen=True, eq=False)
class Comparison:
    """All rivals against dense, greedy, on the same samples."""

    arms: Arms  # every arm, dense among them
    groups: dict[str, list[str]]  # label -> names of its arms
    kept: dict[str, float]  # arm -> its :func:`retention`, mean over the samples; 1 for dense

    def cost_change(self, arm: str, cost: str) -> Estimate:
        """Cost of an arm (one of `COSTS`) relative to dense, paired by sample: -0.3 is 30 % less."""
        return paired_difference(self.arms.rows(DENSE)[cost], self.arms.rows(arm)[cost], relative=True)

    def numbers(self) -> dict[str, Any]:
        """Every arm, JSON-ready."""
        return {
            name: {
                **found,
                "change": as_json(self.arms.changes[name]),
                "retention": self.kept[name],
                "retention_last_layer": found["retention"],
                "costs": {cost: self.cost_change(name, cost).to_json() for cost in COSTS},
            }
            for name, found in self.arms.numbers().items()
        }


def compare_rivals(
    vlm: VLM, samples: Sequence[Sample], arms: Mapping[str, Mapping[str, Pruner]], **options: Any
) -> Comparison:
    """Decode dense and in all arms (see :func:`decode_arms` for ``options``); outcomes are kept and read again."""
    pruners = {name: pruner for group in arms.values() for name, pruner in group.items()}
    measured = measure_arms(vlm, samples, pruners, **options)
    kept, rivals = {DENSE: 1.0}, all_rivals()
    for label, group in arms.items():
        for name in group:
            shares = measured.rows(name)["kept_by_layer"]
            kept[name] = float(np.mean([retention(one, rivals[label].name, vlm.n_layers) for one in shares]))
    return Comparison(measured, {label: list(group) for label, group in arms.items()}, kept)
