"""Parameters at which a pruner keeps a given share of the patches, and settings calibrated on samples of their own.

A function of ``(budget, basis)`` gives parameters, or None where no setting keeps about that share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch

from visionpulse_analysis.decoding import decode
from visionpulse_analysis.decoding.calibration import FirstTokens
from visionpulse_analysis.experiments.conditions import decode_arms, kept_by_layer
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import VTW, PyramidDrop
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.pruners.shortv import ShortV
from visionpulse_analysis.pruners.sparsevlm import SparseVLM
from visionpulse_analysis.pruners.st3 import ST3
from visionpulse_analysis.pruners.visipruner import VisiPruner
from visionpulse_analysis.studies.shared.arms import DENSE

NEAR = 0.25  # a setting is matched if what it keeps lies within this share of the budget around it
LAYER_TESTS = (0.995, 0.999, 0.9999, 1.0)  # VisiPruner's published one, and laxer ones
HALVINGS = 8


@dataclass(frozen=True, eq=False)
class Basis:
    """What settings are worked out from: the number of layers, and where that does not do, a model and samples."""

    n_layers: int
    anchor: int  # the model's default anchor
    vlm: Any = None  # VLM, where there are samples
    samples: Sequence[Sample] = ()  # not among those compared
    max_new_tokens: int = 96  # of their dense answers

    @classmethod
    def of(cls, vlm: VLM, samples: Sequence[Sample] = (), max_new_tokens: int = 96) -> Basis:
        """The basis of a model and calibration samples; without these, what needs them is not matched."""
        return cls(vlm.n_layers, vlm.default_anchor, vlm, samples, max_new_tokens)

    @cached_property
    def first_tokens(self) -> Callable[[Pruner | None], torch.Tensor]:
        """What `Pruner.calibrated` asks for, found once per pruner."""
        return cache(FirstTokens(self.vlm, [(one.image, one.question) for one in self.samples]))

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of the dense greedy answers: int [sample]."""
        found = decode_arms(self.vlm, self.samples, {DENSE: None}, max_new_tokens=self.max_new_tokens)
        return np.array([len(outcome.tokens) for outcome in found[DENSE][0]])

    @cached_property
    def share_from(self) -> Callable[[Pruner, int], float]:
        """Call with a pruner of prefill and a layer: share of the patches left from there on, mean over samples."""
        images, questions = [one.image for one in self.samples], [one.question for one in self.samples]

        def share(pruner: Pruner, first: int) -> float:
            traces = decode(self.vlm, images, questions, pruner=pruner, layers="none", max_new_tokens=2, sample=None)
            return float(np.mean([share_of_layers(kept_by_layer(trace), first) for trace in traces]))

        return cache(share)


def share_of_layers(by_layer: Sequence[float] | np.ndarray, first: int | None) -> float:
    """Mean of shares by layer from the layer ``first`` on; if None, from the first that keeps fewer than all.

    1 where there are no shares, or none is below 1.
    """
    shares = np.asarray(by_layer, float)
    if first is None:
        dropping = np.flatnonzero(shares < 1)
        first = int(dropping[0]) if len(dropping) else 0
    return float(shares[min(first, len(shares) - 1) :].mean()) if len(shares) else 1.0


def budget(share: float, basis: Basis) -> dict[str, Any]:
    """For all that take a budget as it is meant here."""
    return {"budget": share}


def lookm(share: float, basis: Basis) -> dict[str, Any]:
    """The last tokens take half of the budget, as in the paper, up to its tenth of the prompt."""
    return {"budget": share, "recent": min(0.1, share / 2)}


def dycoke(share: float, basis: Basis) -> dict[str, Any]:
    return {"budget": share, "unpruned_when_steady": False}


def pyramiddrop(share: float, basis: Basis) -> dict[str, Any]:
    # Each stage keeps the same ratio of the one before, so a layer keeps ratio ** (boundaries at or before it).
    after = PyramidDrop().boundaries(basis.n_layers)
    drops = [sum(boundary <= layer for boundary in after) for layer in range(after[0], basis.n_layers)]
    return {"ratio": _solve(lambda ratio: np.mean([ratio**times for times in drops]), share)}


def sparsevlm(share: float, basis: Basis) -> dict[str, Any]:
    after, given = SparseVLM().pruning_layers(basis.n_layers), SparseVLM.shares
    stages = [sum(boundary < layer for boundary in after) - 1 for layer in range(after[0] + 1, basis.n_layers)]

    def shares(scale: float) -> tuple[float, ...]:
        return tuple(min(1.0, scale * one / given[-1]) for one in given)

    scale = _solve(lambda scale: np.mean([shares(scale)[stage] for stage in stages]), share)
    return {"shares": shares(scale), "recycled": 0.0}


def st3(share: float, basis: Basis) -> dict[str, Any]:
    n, first = basis.n_layers, basis.n_layers // 4

    def mean(left: float) -> float:
        return float(np.mean([ST3(rate=1 - left, decay="none").share(layer, 1, n) for layer in range(first, n)]))

    return {"rate": 1 - _solve(mean, share), "decay": "none"}


def divprune_then_pulse(share: float, basis: Basis) -> str:
    """DivPrune keeps twice what VisionPulse then chooses from the anchor on; together the share of all layers."""
    # Layers below the anchor keep 2 s, those from it on s; the mean over all layers is to be the share.
    second = share * basis.n_layers / (basis.n_layers + basis.anchor)
    return f"divprune(budget={min(1.0, 2 * second)!r}) | visionpulse(budget={second!r})"


def vtw(share: float, basis: Basis) -> dict[str, Any] | None:
    seeing = whole_layers(share, basis.n_layers)
    return None if seeing is None else {"layer": seeing}


def shortv(share: float, basis: Basis) -> dict[str, Any] | None:
    working = whole_layers(share, basis.n_layers)
    if working is None or not basis.samples:
        return None
    return {"layers": ShortV.calibrated(basis.first_tokens, basis.n_layers, frozen=basis.n_layers - working).layers}


def mvw(share: float, basis: Basis) -> dict[str, Any] | None:
    """The number of tokens after which dense answers of the samples would have seen that share of their steps."""
    if not basis.samples:
        return None
    steps = np.maximum(basis.lengths - 1, 1)
    kept = [float(np.mean(np.minimum(seen, steps) / steps)) for seen in range(1, int(steps.max()) + 1)]
    seen = int(np.argmin(np.abs(np.array(kept) - share)))
    return {"tokens": seen + 2} if near(kept[seen], share) else None


def visipruner(share: float, basis: Basis) -> dict[str, Any] | None:
    """A relative threshold, with the published test of a layer or, where that finds too few filter layers, a laxer one.

    The first is found by halving, in logarithms, between 0.001 and 1.
    """
    if not basis.samples:
        return None
    first = visipruner_acts_from(basis.n_layers)
    for test in LAYER_TESTS:
        low, high, middle = 1e-3, 1.0, 1.0
        found: dict[float, dict[str, Any]] = {}
        for _ in range(1 + HALVINGS):
            kept = basis.share_from(VisiPruner(layer_threshold=test, relative_threshold=middle), first)
            found[abs(kept - share)] = {"layer_threshold": test, "relative_threshold": middle}
            # How much is kept falls with the threshold, but by samples of a model: nothing to solve, only to try.
            if middle == 1.0 and kept > share:
                break  # the strictest threshold keeps more
            low, high = (middle, high) if kept > share else (low, middle)
            middle = float(f"{(low * high) ** 0.5:.3g}")
        if near(share + min(found), share):
            return found[min(found)]
    return None


def visipruner_acts_from(n_layers: int) -> int:
    """The first layer that VisiPruner can drop patches from: it looks one layer after the shallow stage at first."""
    return VisiPruner().first_after(n_layers) + 2


def vtw_calibrated(basis: Basis) -> Pruner:
    """VTW by its search for the layer, where there are samples and the search ends; else its default."""
    try:
        return VTW.calibrated(basis.first_tokens, basis.n_layers) if basis.samples else VTW()
    except ValueError:
        return VTW()


def shortv_calibrated(basis: Basis) -> Pruner:
    """ShortV with the authors' share of layers, by Layer Contribution where there are samples."""
    return ShortV.calibrated(basis.first_tokens, basis.n_layers) if basis.samples else ShortV()


def whole_layers(share: float, n_layers: int) -> int | None:
    """How many of the layers come nearest to a share, at least one; None where that is far from it."""
    count = max(1, round(share * n_layers))
    return count if near(count / n_layers, share) else None


def near(found: float, share: float) -> bool:
    """Whether what is kept is what was asked for, as far as whole layers and steps allow it."""
    return abs(found - share) <= NEAR * share + 1e-9


def _solve(mean: Callable[[float], Any], share: float) -> float:
    """Where in 0..1 a function that rises there from 0 to 1 reaches a share."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if mean(middle) >= share else (middle, high)
    return high
