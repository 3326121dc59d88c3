"""How a pruner's choice is carried out at a decode step: by a mask, or by reading only what it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from visionpulse_analysis.attention.sparse import Gathered
from visionpulse_analysis.attention.text_columns import TextColumns
from visionpulse_analysis.pruners.view import Layout

Execution = Literal["masked", "gathered"]
NO_WAIT = {"cpu"}  # devices on which reading a number costs nothing


class Readings:
    """What the layers of a step read. Layers that share a choice share the work.

    Parameters
    ----------
    layout : Layout
        Where the patches are in the batch.
    execution : "masked" or "gathered"
    most : int, optional
        No row ever keeps more patches than this. Where it is known, a GPU need not be waited for.
    """

    def __init__(self, layout: Layout, execution: Execution, most: int | None = None):
        self.layout, self.execution, self.most = layout, execution, most
        self.text = TextColumns.of(layout) if execution == "gathered" else None
        self.bare: TextColumns | None = None  # without the other tokens of pictures, for steps that see no patch
        self.known: list[tuple[torch.Tensor, torch.Tensor | None, int, Masked | Gathered | None]] = []

    def of(
        self, kept: torch.Tensor, mask: torch.Tensor | None, n_keys: int, biased: bool = False
    ) -> Masked | Gathered | None:
        """What to read of ``n_keys`` keys; None where nothing is hidden.

        kept bool [row, patch]; mask bool [row, 1, 1, key], the model's own, or None. biased : whether a bias is added
        to the logits anyway, so that hiding nothing by it costs nothing.
        """
        if biased and self.text is None:
            return Masked(~self.layout.hidden_keys(kept.to(self.layout.device), n_keys))
        for known_kept, known_mask, known_keys, reading in self.known:
            if known_kept is kept and known_mask is mask and known_keys == n_keys:
                return reading
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(
                f"pruning needs a boolean attention mask, this model passes {mask.dtype}; decode it without a pruner"
            )
        reading = self._work_out(kept, mask, n_keys)
        # Two sets are in use at a time where the layers below the anchor see the set of the step before.
        self.known = [*self.known[-3:], (kept, mask, n_keys, reading)]
        return reading

    def _work_out(self, kept: torch.Tensor, mask: torch.Tensor | None, n_keys: int) -> Masked | Gathered | None:
        kept = kept.to(self.layout.device)
        bound = None if kept.device.type in NO_WAIT else self.most
        if bound is None or bound >= kept.shape[1]:
            counts = kept.sum(dim=1)
            widest, narrowest, dropped = torch.stack(
                [counts.max(), counts.min(), (self.layout.patches & ~kept).any().long()]
            ).tolist()
            if not dropped:
                return None
        else:
            widest, narrowest = bound, -1
        if self.text is None:
            visible = ~self.layout.hidden_keys(kept, n_keys)
            return Masked(visible if mask is None else visible & mask[:, 0, -1])
        text = self.text
        if widest == 0 and self.layout.others.shape[1]:
            text = self.bare = self.bare or TextColumns.of(self.layout, others=False)
        return text.gather(kept, widest, narrowest, mask, n_keys)


@dataclass
class Masked:
    """Every key is read, and hidden ones weigh nothing; visible bool [row, key]."""

    visible: torch.Tensor
