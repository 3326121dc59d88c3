"""A `Pattern` carried out: by the masks of a prefill, by values that some heads do not get, and inside the MLP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from visionpulse_analysis.pruners.pattern import Pattern
from visionpulse_analysis.pruners.view import Layout

DOWN = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "w2", "wo")  # what libraries call the last matrix of an MLP
Attend = Callable[[torch.Tensor], tuple[torch.Tensor, Any]]


@dataclass(eq=False)
class Carried:
    """A pattern on the rows of one prefill.

    pattern : Pattern. layout : Layout, of these rows.
    """

    pattern: Pattern
    layout: Layout

    def __post_init__(self) -> None:
        self._near: torch.Tensor | None = None
        self._masks: dict[bool, tuple[Any, int, torch.Tensor]] = {}  # by whether text is blind

    @property
    def near(self) -> torch.Tensor:
        """Which patches each patch sees in its window: bool [row, patch, patch]."""
        if self._near is None:
            layout, reach = self.layout, ((self.pattern.window or 1) - 1) // 2
            apart = (layout.cells[:, :, None] - layout.cells[:, None]).abs().amax(dim=3)
            same = layout.pieces[:, :, None] == layout.pieces[:, None]
            there = layout.patches[:, :, None] & layout.patches[:, None]
            self._near = same & there & (apart <= reach)
        return self._near

    def mask(self, layer: int, mask: torch.Tensor | None, n_tokens: int, device: torch.device) -> torch.Tensor | None:
        """The model's `mask` of a `layer` under the pattern: bool [row, 1, q, key], or itself, where nothing changes.

        It lies on the ``device`` of the layer.

        None stands for causal. Raises ValueError for a mask that is not boolean.
        """
        blind = layer in self.pattern.blind
        if self.pattern.window is None and not blind:
            return mask
        known = self._masks.get(blind)
        if known is None or known[0] is not mask or known[1] != n_tokens:  # layers that share a mask share the work
            known = self._masks[blind] = mask, n_tokens, self._work_out(blind, mask, n_tokens)
        return known[2].to(device)

    def _work_out(self, blind: bool, mask: torch.Tensor | None, n_tokens: int) -> torch.Tensor:
        layout = self.layout if mask is None else self.layout.on(mask.device)
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(
                f"a pattern needs a boolean attention mask, this model passes {mask.dtype}; load it with "
                "attn_implementation='sdpa'"
            )
        ones = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=layout.device)
        allowed = (ones.tril() if mask is None else mask).expand(len(layout.patches), 1, -1, -1)
        if self.pattern.window is not None:
            allowed = allowed.clone()
            for row, (present, places) in enumerate(zip(layout.patches, layout.places, strict=True)):
                at = places[present]
                near = self.near[row].to(at.device)[present][:, present]
                allowed[row, 0, at[:, None], at] = near
        if blind:
            images = layout.image_keys(n_tokens)
            allowed = allowed & ~(~images[:, None, :, None] & images[:, None, None])
        return allowed

    def account(self, row: int) -> dict[str, Any]:
        """What the costs of a row depend on beside its frozen layers; nothing where that is all."""
        facts: dict[str, Any] = {}
        if self.pattern.blind:
            facts["blind_layers"] = list(self.pattern.blind)
        if self.pattern.window is not None:
            facts["neighbours"] = float(self.near[row].sum() / self.layout.patches[row].sum().clamp(min=1))
        if self.pattern.heads:
            facts["active_heads"] = [sum(layer) / len(layer) for layer in self.pattern.heads]
        if self.pattern.mlp_share < 1:
            facts["mlp_share"] = self.pattern.mlp_share
        return facts


def by_heads(
    pattern: Pattern, layer: int, output: tuple[Any, ...], value: torch.Tensor, attend: Attend,
    columns: torch.Tensor, rows: torch.Tensor | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    """The output of a layer, [row, q, head, dim], in which inactive heads have nothing of pictures.

    The same weights over values of which those of pictures are 0 give what such heads read: no kernel need tell its
    weights.

    Parameters
    ----------
    attend : the kernel, given other values than ``value`` [row, kv_head, key, dim]
    columns : bool [row, key], which are of pictures
    rows : bool [row, q], which queries are of pictures and get nothing from such a head; none if left out
    """
    lost = pattern.inactive(layer)
    if not lost:
        return output
    mixed = output[0]
    given = len(pattern.heads[layer])
    if given != mixed.shape[2]:
        raise ValueError(f"a pattern lists {given} heads, and layer {layer} has {mixed.shape[2]}")
    without = attend(value.masked_fill(columns[:, None, :, None].to(value.device), 0))[0]
    if rows is not None:
        without = without.masked_fill(rows[..., None, None].to(without.device), 0)
    inactive = torch.zeros(mixed.shape[2], dtype=torch.bool, device=mixed.device)
    inactive[lost] = True
    return torch.where(inactive[:, None], without, mixed), *output[1:]


@contextmanager
def sliced_mlps(model: Any, pattern: Pattern, layout: Layout) -> Iterator[None]:
    """Let pictures use only the first neurons of each MLP inside the ``with`` block, in passes over whole prompts.

    Raises ValueError for a model whose layers have no plain MLP (experts).
    """
    if pattern.mlp_share == 1:
        yield
        return

    def hook(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        neurons, first = args[0], round(pattern.mlp_share * args[0].shape[-1])
        images = layout.on(neurons.device).image_keys(neurons.shape[1])[..., None]
        cut = torch.arange(neurons.shape[-1], device=neurons.device) >= first
        return (neurons.masked_fill(images & cut, 0), *args[1:])

    handles = []
    try:
        for number, block in enumerate(model.get_decoder().layers):
            named = ((name.split("."), one) for name, one in block.named_modules())
            found = [one for name, one in named if name[-1] in DOWN and not any("att" in part for part in name)]
            if len(found) != 1:
                raise ValueError(
                    f"layer {number} of {type(model).__name__} has {len(found) or 'no'} plain MLPs, one is needed in "
                    "which pictures use a share of the neurons; say mlp_share=1.0"
                )
            handles.append(found[0].register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
