"""ST3: fewer patches in deeper layers, and fewer still as the answer grows."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, exp, pi
from typing import ClassVar, Literal

import torch

from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.top_k import check_share, top_k
from visionpulse_analysis.pruners.view import Layout, View

DECAYS = {"cosine": lambda x: (1 + cos(pi * x)) / 2, "linear": lambda x: 1 - x, "exponential": lambda x: exp(-3 * x)}


@dataclass(frozen=True)
class ST3(Pruner):
    """Keep ``ceil(n * rho(layer) * max(floor, decay(step / horizon)))`` patches per layer and step; the rest goes.

    In the style of ST3, arXiv 2412.20105 (progressive pruning over depth, annealing over time). A layer ranks what
    the layer before it has left by that layer's softmax weights of the newest token, mean over heads (layer 0: by
    its own weights of the step before). Deleted keys and values never come back. No code was published and the
    schedules are not verified: ``rho`` is 1 below ``start_layer`` and falls by the factor ``1 - rate`` there and
    every ``stride`` layers, and the shape of the decay are ours.

    Parameters
    ----------
    start_layer : int, optional
        First layer with fewer patches; a quarter of the layers if left out.
    stride : int
        Layers between two reductions, at least 1.
    rate : float
        Share that each reduction takes away, in [0, 1).
    horizon : int
        Step at which the decay ends, at least 1.
    floor : float
        Share of the layer's patches that the decay never goes below, in (0, 1].
    decay : "cosine", "linear", "exponential" or "none"
        Over x = step / horizon in 0..1: ``(1 + cos(pi x)) / 2``, ``1 - x``, ``exp(-3 x)``, or 1.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    name: ClassVar[str] = "st3"

    start_layer: int | None = None
    stride: int = 1
    rate: float = 0.3
    horizon: int = 128
    floor: float = 0.1
    decay: Literal["cosine", "linear", "exponential", "none"] = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("floor", self.floor)
        if self.stride < 1 or self.horizon < 1 or not 0 <= self.rate < 1 or (self.start_layer or 0) < 0:
            raise ValueError(f"expected stride and horizon >= 1, rate in [0, 1) and a start layer >= 0, got {self}")
        if self.decay not in (*DECAYS, "none"):
            raise ValueError(f"decay must be one of {', '.join(DECAYS)} or none, got {self.decay!r}")

    def share(self, layer: int, step: int, n_layers: int) -> float:
        """Share of the patches that a layer keeps at a step."""
        start = n_layers // 4 if self.start_layer is None else self.start_layer
        rho = 1.0 if layer < start else (1 - self.rate) ** (1 + (layer - start) // self.stride)
        x = min(1.0, step / self.horizon)
        return rho * max(self.floor, 1.0 if self.decay == "none" else DECAYS[self.decay](x))

    def start(self, layout: Layout) -> Selection:
        return _ST3Selection(self, layout)


class _ST3Selection(Selection):
    forgets = True

    def __init__(self, pruner: ST3, layout: Layout):
        super().__init__(layout)
        self.pruner = pruner
        self.held = [layout.patches] * layout.n_layers  # what each layer still has in its cache
        self.above: torch.Tensor | None = None  # what the layer before keeps at this step
        self.scores: torch.Tensor | None = None  # of the layer before; at layer 0, its own of the step before
        self.first_scores: torch.Tensor | None = None

    def visible_prefill(self, view: View) -> torch.Tensor | None:
        return self.narrow(view)

    def visible(self, view: View) -> torch.Tensor | None:
        return self.narrow(view)

    def narrow(self, view: View) -> torch.Tensor:
        """What this layer keeps from now on."""
        layer, patches = view.layer, self.layout.patches
        if layer == 0:
            self.above, self.scores = patches, self.first_scores
        above = patches if self.above is None else self.above
        kept = self.held[layer] & above
        share = self.pruner.share(layer, view.step, self.layout.n_layers)
        k = torch.tensor([max(1, ceil(share * n - 1e-9)) for n in self.layout.counts.tolist()], device=patches.device)
        k = torch.minimum(k, kept.sum(dim=1))
        if self.scores is not None:
            kept = top_k(self.scores.masked_fill(~kept, -torch.inf), k)
        self.held[layer] = self.above = kept
        self.scores = view.only(kept).patch_weights().mean(dim=1)
        if layer == 0:
            self.first_scores = self.scores
        return kept
