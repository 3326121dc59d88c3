"""What is recorded at one step, layer by layer: the newest query's softmax row over the patches, and what is asked for.

Attention and mass are worked out for all layers at once; further quantities of the table when their layer has run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from visionpulse_analysis.attention.prefill import redirected_weights
from visionpulse_analysis.attention.quantities import LayerAttention
from visionpulse_analysis.pruners.view import Layout
from visionpulse_analysis.traces.quantities import Quantity

LARGE = 1 << 20  # a layer with more logits than this is worked on at once; smaller ones wait for each other


class Recorder:
    """Collects the rows of one step.

    Parameters
    ----------
    layout : Layout
        Where the patches are in the batch.
    layers : list of int
        Layers to record; empty records nothing.
    per_head : list of int or None
        Heads to record one by one; None records the head mean.
    quantities : sequence of Quantity
        Recorded besides attention and mass.
    """

    def __init__(
        self, layout: Layout, layers: Sequence[int], per_head: Sequence[int] | None, quantities: Sequence[Quantity] = ()
    ):
        self.layout, self.layers, self.per_head = layout, list(layers), per_head
        self.quantities = tuple(quantities)
        self._computed: dict[tuple[str, int], torch.Tensor] = {}  # by name and layer: [row, (head,) (patch)]
        self._heads = None if per_head is None else torch.tensor(per_head, device=layout.patches.device)
        self._logits: dict[int, torch.Tensor] = {}  # [row, head, key]
        self._rows: dict[int, torch.Tensor] = {}  # [row, head, patch], one head for the mean
        self._redirects: dict[int, torch.Tensor] = {}
        self._lent: dict[str, torch.Tensor] | None = None

    def put(self, layer: int, logits: torch.Tensor, redirect: torch.Tensor | None = None) -> None:
        """Take the logits of a layer, float32 [row, head, key], -inf where hidden.

        redirect : int64 [row, patch], the patch whose weight goes to each (:class:`Redirect`).
        """
        logits = logits.to(self.layout.device)
        if logits.numel() > LARGE:
            self._rows[layer] = self._over_patches(logits)
        else:
            self._logits[layer] = logits
        if redirect is not None:
            self._redirects[layer] = redirect

    def put_weights(self, layer: int, weights: torch.Tensor, redirect: torch.Tensor | None = None) -> None:
        """Take the weights of a layer themselves, float32 [row, head, key], and the same ``redirect``."""
        self._rows[layer] = self._at_patches(weights.to(self.layout.device))
        if redirect is not None:
            self._redirects[layer] = redirect

    def put_kept(self, layer: int, weights: torch.Tensor, patches: torch.Tensor) -> None:
        """Take the weights float32 [row, head, slot] of the patches int64 [row, slot]; no other patch was read."""
        patches, chosen = patches.to(self.layout.device), self._choose_heads(weights.to(self.layout.device))
        rows = chosen.new_zeros(*chosen.shape[:2], self.layout.patches.shape[1])
        # Slots beyond the patches that a row keeps name patch 0, with weight 0: so they are added.
        self._rows[layer] = rows.scatter_add_(2, patches[:, None].expand_as(chosen), chosen)

    @torch.no_grad()
    def compute(self, call: LayerAttention) -> None:
        """Work out the quantities asked for of a layer; raises ValueError for one that has other axes than it says."""
        sizes = {"head": call.query.shape[1], "patch": self.layout.patches.shape[1]}
        for row in self.quantities:
            found, expected = row(call), (len(call.query), *(sizes[axis] for axis in row.axes[2:]))
            if not torch.is_tensor(found) or found.shape != expected or not found.is_floating_point():
                got = f"{found.dtype} {tuple(found.shape)}" if torch.is_tensor(found) else repr(type(found))
                axes = ", ".join(("row", *row.axes[2:]))
                raise ValueError(f"quantity {row.name!r} gave {got} at layer {call.layer}, expected a tensor of floats "
                                 f"[{axes}] of shape {expected}")  # fmt: skip
            found = found.float().to(self.layout.device)
            if "head" in row.axes:
                found = found.mean(dim=1) if self._heads is None else found.index_select(1, self._heads)
            self._computed[row.name, call.layer] = found

    def lend(self, taken: dict[str, torch.Tensor]) -> None:
        """Give back what another recorder took of the step just made, in place of anything put here."""
        self._lent = taken

    def take(self) -> dict[str, torch.Tensor]:
        """What was recorded of the step just made, by name, [row, layer, (head,) (patch)] on the layout's device.

        ``attention`` is float16, ``mass`` and further quantities are float32.
        """
        if self._lent is not None:
            lent, self._lent = self._lent, None
            return lent
        missing = [layer for layer in self.layers if layer not in self._logits and layer not in self._rows]
        if missing:
            raise RuntimeError(f"layers {missing} did not report: their attention was not routed here")
        if len({logits.shape for logits in self._logits.values()}) > 1:  # layers with heads of their own number
            self._rows |= {layer: self._over_patches(logits) for layer, logits in self._logits.items()}
            self._logits = {}
        waiting, together = list(self._logits), None
        if waiting:
            # All layers at once: at one query a step, the number of small operations is what recording costs.
            together = self._over_patches(torch.stack(list(self._logits.values()), dim=1))
            self._rows |= zip(waiting, together.unbind(dim=1), strict=True)
        if together is None or waiting != self.layers or self._redirects:
            for layer, source in self._redirects.items():
                self._rows[layer] = redirected_weights(self._rows[layer], source)
            parts = [self._rows[layer] for layer in self.layers]
            none = torch.zeros(*self.layout.patches.shape, device=self.layout.patches.device)[:, None, None]
            together = torch.stack(parts, dim=1) if parts else none[:, :0]
        self._logits, self._rows, self._redirects = {}, {}, {}
        rows = together[:, :, 0] if self._heads is None else together
        taken = {"attention": rows.half(), "mass": rows.sum(dim=-1)}
        for row in self.quantities:
            taken[row.name] = torch.stack([self._computed[row.name, layer] for layer in self.layers], dim=1)
        self._computed = {}
        return taken

    def _over_patches(self, logits: torch.Tensor) -> torch.Tensor:
        """Softmax over the keys, at the patches, of chosen heads: [row, (layer,) head, key] -> [.., head, patch]."""
        return self._at_patches(torch.softmax(logits, dim=-1))

    def _at_patches(self, weights: torch.Tensor) -> torch.Tensor:
        span = self.layout.span
        if span is not None:
            return self._choose_heads(weights[..., span[0] : span[1]])
        weights = self._choose_heads(weights)
        between = (slice(None), *[None] * (weights.ndim - 2))
        index = self.layout.places[between].expand(*weights.shape[:-1], -1)
        return weights.gather(-1, index) * self.layout.patches[between]

    def _choose_heads(self, weights: torch.Tensor) -> torch.Tensor:
        return weights.mean(dim=-2, keepdim=True) if self._heads is None else weights.index_select(-2, self._heads)
