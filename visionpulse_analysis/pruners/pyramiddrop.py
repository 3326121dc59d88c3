"""PyramidDrop: fewer and fewer patches, at three depths of the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from visionpulse_analysis._util.later import torch
from visionpulse_analysis.pruners.base import Pruner, Selection, Share
from visionpulse_analysis.pruners.top_k import budget_to_k, check_layer, share_of_each, top_k
from visionpulse_analysis.pruners.view import View


@dataclass(frozen=True)
class PyramidDrop(Pruner):
    """Keep ``floor(ratio_i * n)`` patches from the i-th boundary on: those that the last prompt token weighs most.

    PyramidDrop, arXiv 2410.17247, section 3. At each boundary the first layer after it scores what is left by the
    last token's softmax weights among the survivors, mean over heads, and works without the dropped ones itself.

    Parameters
    ----------
    layers : tuple of int, optional
        Zero-based first layer after each boundary, rising. The paper's 8, 16 and 24 of 32 layers if left out: a
        quarter, half and three quarters of the model.
    ratio : float
        lambda of the paper, in (0, 1]: the share that each boundary keeps of what the one before kept, so that
        ``ratio_i`` is its i-th power.
    ratios : tuple of float, optional
        In its place, as the code takes them (``image_token_ratio_list``): for each boundary the share of the whole
        image, in (0, 1], none larger than the one before; 0.5, 0.25 and 0.125 in the code.
    renumber : bool
        Count positions anew without the dropped patches, as the authors' code does, which published numbers come from;
        False keeps every token where the model put it. For models with one-dimensional positions that see the whole
        prompt in every layer; others raise ValueError when they decode.
    """

    name: ClassVar[str] = "pyramiddrop"

    layers: tuple[int, ...] | None = None
    ratio: Share = 0.5
    ratios: tuple[float, ...] | None = None
    renumber: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None and (list(self.layers) != sorted(set(self.layers)) or not self.layers):
            raise ValueError(f"layers are rising layer indices, got {self.layers}")
        if self.ratios is not None:
            count = 3 if self.layers is None else len(self.layers)
            falling = len(self.ratios) == count and list(self.ratios) == sorted(self.ratios, reverse=True)
            if not falling or not all(0 < share <= 1 for share in self.ratios):
                raise ValueError(f"expected {count} falling ratios in (0, 1], one for each boundary, got {self.ratios}")

    def boundaries(self, n_layers: int) -> tuple[int, ...]:
        """First layer after each boundary, in a model of ``n_layers``."""
        return self.layers or tuple(sorted({max(1, n_layers * quarter // 4) for quarter in (1, 2, 3)}))

    def begin(self, run: Selection) -> None:
        layout = run.layout
        run.layers = self.boundaries(layout.n_layers)
        for layer in run.layers:
            check_layer("layer", layer, layout)
        powers = tuple(self.ratio**times for times in range(1, len(run.layers) + 1))
        run.ratios = powers if self.ratios is None else self.ratios
        if len(run.ratios) != len(run.layers):
            raise ValueError(
                f"a model of {layout.n_layers} layers has the boundaries {run.layers}, but there are "
                f"{len(run.ratios)} ratios; give layers as well"
            )

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        if view.layer not in run.layers:
            return None
        layout = run.layout
        budget = share_of_each(run.ratios[run.layers.index(view.layer)], layout.counts)
        # Dropped patches weigh nothing; -1 ranks the places without a patch below them.
        scores = view.patch_weights().mean(dim=1).masked_fill(~layout.patches, -1.0)
        run.kept = top_k(scores, budget_to_k(budget, layout.counts))
        return run.kept
