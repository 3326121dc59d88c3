"""VisionPulse: select the patches afresh at every decode step, as many as the visual attention mass asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from visionpulse_analysis._util.checks import TEMPERATURES, check_temperature
from visionpulse_analysis.pruners.anchored import AnchoredSelection
from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.blocks import Blocks
from visionpulse_analysis.pruners.top_k import budget_to_k, check_anchor, check_share, float64, share_of_each, top_k
from visionpulse_analysis.pruners.view import Layout, View


@dataclass(frozen=True)
class VisionPulse(Pruner):
    """Step-wise pruning at an anchor layer (arXiv 2605.31457, section on the method).

    At every decode step the newest query's logits at the anchor layer give the visual attention mass
    ``m = max_h exp(LSE_patches(l / tau) - LSE_all(l / tau))``; the budget is ``clamp(m, budget_min, budget_max)`` of
    the patches, rounded down, at least one; the patches with the highest head-mean logits stay visible at the anchor
    layer and above. Text is never dropped, the cache stays whole, prefill is dense, nothing is carried over.

    Presets: ``visionpulse:5`` and ``visionpulse:10`` are the paper's settings; ``visionpulse:block`` is what the
    authors' GPU variant is called with (tau 0.4, 1 to 5 %).

    Logits are ranked in float32, whatever the model's dtype. The authors' code ranks head means in the model's dtype;
    in bfloat16 these tie (up to 12 patches at the edge), and the sets then share .94 to .99 of their patches with those
    kept here.

    Parameters
    ----------
    anchor_layer : int, optional
        Zero-based; the model's default anchor if left out.
    temperature : float
        tau > 0; lower values push the mass towards 0 or 1.
    budget_min, budget_max : float
        Range of the budget, shares of the patches in (0, 1]; `budget_min` may be 0, and one patch is kept all the same.
    budget : float, optional
        A fixed share instead of the mass-driven one.
    granularity : "token" or "block"
        "block" is the authors' GPU variant, best as its preset, since tau is another there: whole blocks of the
        sequence (counted from the row's first real token; the authors count from the first column of a padded batch)
        are scored by the softmax over blocks, at tau, of the largest logit inside each; the mass sums the blocks that
        consist of image tokens; ``ceil(b n / block_size)`` of these are kept, ranked by head-mean share. Blocks that
        mix text and image are always kept, and the anchor layer itself stays dense.
    reuse_previous : bool
        Not in the paper. The layers below the anchor see the set that the previous step chose (prefill's last query, at
        the first step) instead of everything; the anchor and later layers see the fresh one, which is the one recorded.
    hysteresis : float
        Not in the paper. A patch (or block) chosen at the previous step, or by prefill's last query at the first step,
        is ranked as if its attention were ``exp(hysteresis)`` times as large. 0 changes nothing.
    block_size : int
        Tokens per block; only for ``granularity="block"``.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    name: ClassVar[str] = "visionpulse"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "5": {"temperature": 0.1, "budget_min": 0.01, "budget_max": 0.05},
        "10": {"temperature": 0.4, "budget_min": 0.05, "budget_max": 0.10},
        "block": {"temperature": 0.4, "budget_min": 0.01, "budget_max": 0.05, "granularity": "block", "block_size": 64},
    }

    anchor_layer: int | None = None
    temperature: float = 0.1
    budget_min: float = 0.01
    budget_max: float = 0.05
    budget: float | None = None
    granularity: Literal["token", "block"] = "token"
    reuse_previous: bool = False
    hysteresis: float = 0.0
    block_size: int = 64

    def __post_init__(self) -> None:
        check_anchor(self.anchor_layer)
        super().__post_init__()
        check_temperature(self.temperature)
        if self.budget_min != 0 or isinstance(self.budget_min, bool):
            check_share("budget_min", self.budget_min, "[0, 1]")
        check_share("budget_max", self.budget_max)
        if self.budget is not None:
            check_share("budget", self.budget)
        if self.budget_min > self.budget_max:
            raise ValueError(f"budget_min {self.budget_min} is above budget_max {self.budget_max}")
        if not 0 <= self.hysteresis <= TEMPERATURES[1]:
            raise ValueError(f"hysteresis must be 0 or above (up to {TEMPERATURES[1]}), got {self.hysteresis}")
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {self.block_size}")

    @classmethod
    def five_percent(cls, anchor_layer: int | None = None) -> VisionPulse:
        """The paper's "5 percent" setting: temperature 0.1, 1 to 5 % of the patches; `anchor_layer` as above."""
        return cls(anchor_layer, **cls.presets["5"])

    @classmethod
    def ten_percent(cls, anchor_layer: int | None = None) -> VisionPulse:
        """The paper's "10 percent" setting: temperature 0.4, 5 to 10 % of the patches; `anchor_layer` as above."""
        return cls(anchor_layer, **cls.presets["10"])

    @classmethod
    def block(cls, anchor_layer: int | None = None) -> VisionPulse:
        """The setting of the authors' GPU variant: blocks of 64, temperature 0.4, 1 to 5 %; `anchor_layer` as above."""
        return cls(anchor_layer, **cls.presets["block"])

    def start(self, layout: Layout) -> Selection:
        return _VisionPulseSelection(self, layout)


class _VisionPulseSelection(AnchoredSelection):
    def __init__(self, pruner: VisionPulse, layout: Layout):
        super().__init__(layout, pruner.anchor_layer)
        self.pruner = pruner
        largest = pruner.budget_max if pruner.budget is None else pruner.budget
        if pruner.granularity == "token":
            self.most = int(budget_to_k(torch.tensor(largest, dtype=torch.float64), layout.counts.cpu()).max())
        else:
            self.most_blocks, self.most = Blocks.most(largest, layout, pruner.block_size)
        self.looks_back = pruner.reuse_previous or pruner.hysteresis > 0

    def observe_prefill(self, view: View) -> None:
        if self.looks_back and view.layer == self.anchor:
            self.choose(view)

    def visible(self, view: View) -> torch.Tensor | None:
        if view.layer < self.anchor:
            return self.kept if self.pruner.reuse_previous else None
        if view.layer == self.anchor:
            self.choose(view)
            if self.pruner.granularity == "block":
                return None
        return self.kept

    def choose(self, view: View) -> None:
        pruner, previous = self.pruner, self.kept if self.looks_back else None
        if pruner.granularity == "block":
            blocks = Blocks.of(view.logits(), self.layout, pruner.block_size, pruner.temperature)
            self.mass = blocks.mass
            self.budget = self._share(self.mass)
            self.kept = blocks.keep(self.budget, self.layout, previous, pruner.hysteresis, self.most_blocks)
            return
        logits = view.patch_logits()
        self.mass = attention_mass(view, pruner.temperature)
        self.budget = self._share(self.mass)
        scores = logits.mean(dim=1)
        if previous is not None:
            scores = scores + pruner.hysteresis * previous
        self.kept = top_k(scores, budget_to_k(self.budget, self.layout.counts), self.most)

    def _share(self, mass: torch.Tensor) -> torch.Tensor:
        """Share of the patches to keep: float64 [row]."""
        if self.pruner.budget is not None:
            return share_of_each(self.pruner.budget, mass)
        return float64(mass).clamp(self.pruner.budget_min, self.pruner.budget_max)


def attention_mass(view: View, temperature: float) -> torch.Tensor:
    """Visual attention mass at a temperature, maximum over heads: float32 [row] in 0..1."""
    weights = torch.softmax(view.logits() / temperature, dim=-1)
    return view.at_patches(weights, absent=0.0).sum(dim=-1).amax(dim=1).clamp(0.0, 1.0)
