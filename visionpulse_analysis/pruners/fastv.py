"""FastV: rank the patches early in the language model and drop the lower part for good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from visionpulse_analysis._util.later import torch
from visionpulse_analysis.pruners.base import LayerIndex, Pruner, Selection, Share
from visionpulse_analysis.pruners.top_k import check_layer, drawn, nearest_k, top_k
from visionpulse_analysis.pruners.view import View


@dataclass(frozen=True)
class FastV(Pruner):
    """Keep the patches that the last token attends to most in layer ``layer - 1``, from ``layer`` on.

    FastV, arXiv 2403.06764, section 4. The score of a patch is the softmax weight that the last prompt token gives it,
    in the layer before, mean over heads, as in the authors' code; their paper speaks of the mean over all tokens.
    ``round(budget * n)`` patches stay, all text stays, positions stay as they were.

    Parameters
    ----------
    layer : int
        K of the paper (2): zero-based, the first layer without the dropped patches. 0 keeps a random set.
    budget : float
        Share kept in (0, 1], 1 - R of the paper (R = 0.5).
    per_step : bool
        Run without a cache, as the authors' evaluation does (``use_cache=False``): every step reads prompt and answer
        anew and chooses by its newest token, so that what one step drops a later one may see, and earlier tokens are
        computed again without what it drops. A step then costs a whole prefill. False chooses once, in prefill, as
        every implementation with a cache does. (With a cache and a dense prefill, ``DyCoke(threshold=2.0)`` chooses at
        every step.)
    rope : bool
        False scores with queries and keys before rotary embedding, without the pull to the bottom of the image
        (FEATHER, arXiv 2412.13180).

    Raises
    ------
    ValueError
        A parameter is out of range, or ``rope=False`` is asked for of layer 0.
    """

    name: ClassVar[str] = "fastv"

    layer: LayerIndex = 2
    budget: Share = 0.5
    per_step: bool = False
    rope: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rope and self.layer == 0:
            raise ValueError("rope=False needs the scores of a layer before: layer must be above 0")

    def begin(self, run: Selection) -> None:
        check_layer("layer", self.layer, run.layout)
        run.recomputes = self.per_step

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        layout, scores = run.layout, None
        if self.layer == 0 and view.layer == 0:
            scores = drawn(layout, view.step)
        elif view.layer == self.layer - 1:
            scores = view.patch_weights(rope=self.rope).mean(dim=1)
        if scores is not None:
            k = nearest_k(self.budget, layout.counts)
            run.kept = top_k(scores.masked_fill(~layout.patches, -torch.inf), k)
        return run.kept if view.layer == self.layer else None
