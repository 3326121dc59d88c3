"""ST3: fewer patches in deeper layers, and fewer still as the answer grows."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, exp, pi
from typing import Annotated, ClassVar, Literal

from visionpulse_analysis._util.checks import Interval
from visionpulse_analysis._util.later import torch
from visionpulse_analysis.pruners.base import Count, LayerIndex, Pruner, Selection, Share
from visionpulse_analysis.pruners.top_k import top_k
from visionpulse_analysis.pruners.view import View

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
    """

    name: ClassVar[str] = "st3"

    start_layer: LayerIndex | None = None
    stride: Count = 1
    rate: Annotated[float, Interval(ge=0, lt=1)] = 0.3
    horizon: Count = 128
    floor: Share = 0.1
    decay: Literal["cosine", "linear", "exponential", "none"] = "cosine"

    def share(self, layer: int, step: int, n_layers: int) -> float:
        """Share of the patches that a layer keeps at a step."""
        start = n_layers // 4 if self.start_layer is None else self.start_layer
        rho = 1.0 if layer < start else (1 - self.rate) ** (1 + (layer - start) // self.stride)
        x = min(1.0, step / self.horizon)
        return rho * max(self.floor, 1.0 if self.decay == "none" else DECAYS[self.decay](x))

    def begin(self, run: Selection) -> None:
        run.evicts = True
        run.held = [run.layout.patches] * run.layout.n_layers  # what each layer still has in its cache
        run.above = None  # what the layer before keeps at this step
        run.scores = None  # of the layer before; at layer 0, its own of the step before
        run.first_scores = None

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        return self.visible(view, run)

    def visible(self, view: View, run: Selection) -> torch.Tensor | None:
        layer, layout, patches = view.layer, run.layout, run.layout.patches
        if layer == 0:
            run.above, run.scores = patches, run.first_scores
        kept = run.held[layer] & (patches if run.above is None else run.above)
        share = self.share(layer, view.step, layout.n_layers)
        k = torch.tensor([max(1, ceil(share * n - 1e-9)) for n in layout.counts.tolist()], device=patches.device)
        k = torch.minimum(k, kept.sum(dim=1))
        if run.scores is not None:
            kept = top_k(run.scores.masked_fill(~kept, -torch.inf), k)
        run.held[layer] = run.above = kept
        run.scores = view.only(kept).patch_weights().mean(dim=1)
        if layer == 0:
            run.first_scores = run.scores
        return kept
