"""VisionPulse: select the patches afresh at every decode step, as many as the visual attention mass asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from visionpulse_analysis.pruners.base import (
    Layout,
    Pruner,
    Selection,
    View,
    budget_to_k,
    check_share,
    resolve_anchor,
    top_k,
)


@dataclass(frozen=True)
class VisionPulse(Pruner):
    """Step-wise pruning at an anchor layer (arXiv 2605.31457, section on the method).

    At every decode step the newest query's logits at the anchor layer give the visual attention mass
    ``m = max_h exp(LSE_patches(l / tau) - LSE_all(l / tau))``; the budget is ``clamp(m, budget_min, budget_max)`` of
    the patches, rounded down, at least one; the patches with the highest head-mean logits stay visible at the anchor
    layer and above. Text is never dropped, the cache stays whole, prefill is dense, nothing is carried over.

    Parameters
    ----------
    anchor_layer : int, optional
        Zero-based; the model's default anchor if left out.
    temperature : float
        tau > 0; lower values push the mass towards 0 or 1.
    budget_min, budget_max : float
        Range of the budget, shares of the patches in (0, 1].
    budget : float, optional
        A fixed share instead of the mass-driven one.
    """

    name: ClassVar[str] = "visionpulse"

    anchor_layer: int | None = None
    temperature: float = 0.1
    budget_min: float = 0.01
    budget_max: float = 0.05
    budget: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        check_share("budget_min", self.budget_min)
        check_share("budget_max", self.budget_max)
        if self.budget is not None:
            check_share("budget", self.budget)
        if self.budget_min > self.budget_max:
            raise ValueError(f"budget_min {self.budget_min} is above budget_max {self.budget_max}")

    @classmethod
    def five_percent(cls, anchor_layer: int | None = None) -> VisionPulse:
        """The paper's "5 percent" setting: temperature 0.1, 1 to 5 % of the patches."""
        return cls(anchor_layer, temperature=0.1, budget_min=0.01, budget_max=0.05)

    @classmethod
    def ten_percent(cls, anchor_layer: int | None = None) -> VisionPulse:
        """The paper's "10 percent" setting: temperature 0.4, 5 to 10 % of the patches."""
        return cls(anchor_layer, temperature=0.4, budget_min=0.05, budget_max=0.10)

    def start(self, layout: Layout) -> Selection:
        return _VisionPulseSelection(self, layout)


class _VisionPulseSelection(Selection):
    def __init__(self, pruner: VisionPulse, layout: Layout):
        super().__init__(layout)
        self.pruner, self.anchor = pruner, resolve_anchor(pruner.anchor_layer, layout)

    def visible(self, view: View) -> torch.Tensor | None:
        if view.layer < self.anchor:
            return None
        if view.layer == self.anchor:
            pruner, scores = self.pruner, view.patch_logits()
            self.mass = attention_mass(view.logits(), scores, pruner.temperature)
            if pruner.budget is None:
                self.budget = self.mass.double().clamp(pruner.budget_min, pruner.budget_max)
            else:
                self.budget = torch.full_like(self.mass, pruner.budget, dtype=torch.float64)
            self.kept = top_k(scores.mean(dim=1), budget_to_k(self.budget, self.layout.counts))
        return self.kept


def attention_mass(logits: torch.Tensor, patch_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Visual attention mass at a temperature, maximum over heads: float32 [row] in 0..1.

    logits : float32 [row, head, key]; patch_logits : float32 [row, head, patch]; -inf where masked.
    """
    share = torch.logsumexp(patch_logits / temperature, -1) - torch.logsumexp(logits / temperature, -1)
    return share.exp().amax(dim=1).clamp(0.0, 1.0)
