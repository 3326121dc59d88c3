"""What a recorded quantity is computed from: one attention call of a step."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn.functional import pad

from visionpulse_analysis.attention.prefill import redirected_weights
from visionpulse_analysis.attention.rows import Query
from visionpulse_analysis.pruners.view import Layout

OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "wo", "proj")  # what the attention modules of the library call it


@dataclass(frozen=True)
class LayerAttention:
    """One attention call of a step: how the newest query of each row reads, at one layer.

    Parameters
    ----------
    layer : int
    query : [row, head, dim]
        After rotary embedding, as `key`.
    key, value : [row, kv_head, key, dim]
        Over all positions of the sequence; 0 where they are not read (outside of a window). Query heads share key
        heads in order, ``head // (n_heads // n_kv_heads)``.
    weights : float32 [row, head, key]
        Softmax row, 0 at positions that are hidden or not read.
    output : [row, head, dim]
        What the kernel put out, before the output projection.
    module : torch.nn.Module
        The attention module.
    layout : Layout
        Where the patches are.
    memory : dict
        See `once`.
    redirect : int64 [row, patch], optional
        The patch whose value each patch reads, where a pruner merges them in prefill.
    """

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    weights: torch.Tensor
    output: torch.Tensor
    module: torch.nn.Module
    layout: Layout
    memory: dict[Hashable, Any]
    redirect: torch.Tensor | None = None

    @classmethod
    def of(
        cls, query: Query, weights: torch.Tensor, output: torch.Tensor, layout: Layout, memory: dict[Hashable, Any],
        redirect: torch.Tensor | None = None,
    ) -> LayerAttention:  # fmt: skip
        """That of a query whose row is ``weights`` [row, head, total]; ``output`` [row, q, head, dim] is the call's."""
        behind = query.total - query.first - query.key.shape[2]
        key, value = (pad(states, (0, 0, query.first, behind)) for states in (query.key, query.value))
        newest, device = query.query[:, :, 0], query.key.device
        return cls(
            query.call.layer, newest, key, value, weights.to(device), output[:, query.index], query.call.module,
            layout.on(device), memory, None if redirect is None else redirect.to(device),
        )  # fmt: skip

    def at_patches(self, found: torch.Tensor) -> torch.Tensor:
        """Pick the patches out of [row, head, key, ...]: [row, head, patch, ...], 0 where a row has fewer patches."""
        places, present = self.layout.places[:, None], self.layout.patches[:, None]
        more = (1,) * (found.ndim - 3)
        index = places.reshape(*places.shape, *more).expand(*found.shape[:2], -1, *found.shape[3:])
        return found.gather(2, index) * present.reshape(*present.shape, *more)

    @cached_property
    def patch_weights(self) -> torch.Tensor:
        """float32 [row, head, patch]: the weights at the patches, not renormalised."""
        found = self.at_patches(self.weights)
        return found if self.redirect is None else redirected_weights(found, self.redirect)

    @cached_property
    def patch_values(self) -> torch.Tensor:
        """float32 [row, head, patch, dim]: the value vectors of the patches, for each query head."""
        own = self.at_patches(self.value).float()
        return own.repeat_interleave(self.query.shape[1] // own.shape[1], dim=1)

    @property
    def output_projection(self) -> torch.Tensor:
        """float32 [head, dim, width]: by which the output of each head is multiplied before all are summed.

        Raises ValueError for a module that shows no such projection.
        """
        heads, dim = self.output.shape[1:]
        for name in OUTPUT_PROJECTIONS:
            found = getattr(self.module, name, None)
            if isinstance(found, torch.nn.Linear) and found.in_features == heads * dim:
                return found.weight.float().T.reshape(heads, dim, -1)
        raise ValueError(
            f"layer {self.layer} ({type(self.module).__name__}) shows no output projection for {heads} heads of {dim}, "
            f"a torch.nn.Linear named {', '.join(OUTPUT_PROJECTIONS)}: quantities that need it cannot be recorded here"
        )

    def once(self, name: str, made: Callable[[], Any]) -> Any:
        """What ``made`` gives, made once for each layer of a generation: for what does not change from step to step."""
        key = self.layer, name
        if key not in self.memory:
            self.memory[key] = made()
        return self.memory[key]
