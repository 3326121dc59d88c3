"""Gathered execution: only the kept patches are copied out of the cache; text is read where it lies.

The attention of one query is a softmax over one vector of logits. Its parts are computed where their keys are (the kept
patches, copied together; each stretch of text, as a view of the cache), joined for the softmax, and parted again for
the values. Nothing is approximated, and query heads that share a key head share one reading of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from visionpulse_analysis.attending.fastest import run_fastest
from visionpulse_analysis.pruners.view import Layout

SHARED = 4  # query heads of one key head; with more, copying its values once is the faster way on a CPU
VIEWS = 3  # stretches of text inside the prompt that are read where they lie; shorter ones are copied with the patches


@dataclass
class TextColumns:
    """Which columns of the cache hold text, and how they are read.

    views : stretches (first, end) of columns where some row has text; the last has no end: it grows with the answer.
    copied : int64 [row, token], text outside of them; real : bool [row, token], False where a row has less of it.
    own : bool [row, column], where each row has text itself. uniform : whether all rows have it in the same columns.
    """

    layout: Layout
    views: list[tuple[int, int | None]]
    copied: torch.Tensor
    real: torch.Tensor
    own: torch.Tensor
    uniform: bool

    @classmethod
    def of(cls, layout: Layout) -> TextColumns:
        """Find the text of a batch."""
        places, present, starts = (t.cpu().numpy() for t in (layout.places, layout.patches, layout.starts))
        width = int(max(places[present].max(initial=-1) + 1, starts.max()))
        own = np.arange(width)[None] >= starts[:, None]
        rows, _ = np.nonzero(present)
        own[rows, places[present]] = False
        some = own.any(axis=0)
        edges = np.flatnonzero(np.diff(some, prepend=False, append=False))
        inner = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        last = inner.pop()[0] if inner and inner[-1][1] == width else width
        viewed = sorted(sorted(inner, key=lambda part: part[0] - part[1])[:VIEWS])
        rest = np.zeros(width, bool)
        for a, b in set(inner) - set(viewed):
            rest[a:b] = True
        counts = (own & rest).sum(axis=1)
        copied = np.zeros((len(own), counts.max(initial=0)), np.int64)
        real = np.arange(copied.shape[1])[None] < counts[:, None]
        copied[real] = np.nonzero(own & rest)[1]
        on_device = (torch.from_numpy(array).to(layout.places.device) for array in (copied, real, own))
        return cls(layout, [*viewed, (last, None)], *on_device, uniform=bool((own == some).all()))

    def gather(self, kept: torch.Tensor, width: int, even: bool, mask: torch.Tensor | None, n_keys: int) -> Gathered:
        """Read the kept patches, bool [row, patch], of which no row has more than ``width``; ``even``: all have that.

        mask : the model's own, bool [row, 1, 1, key], or None.
        """
        patches, filled = _numbers(kept, width, even)
        index = torch.cat([self.layout.places.gather(1, patches), self.copied], dim=1)
        views = [(first, n_keys if end is None else end) for first, end in self.views]
        views = [(first, end) for first, end in views if end > first]
        hidden = None
        if not even or mask is not None or not self.uniform:
            shown = [torch.cat([filled, self.real], dim=1), *(self._own(first, end) for first, end in views)]
            if mask is not None:
                given = mask[:, 0, -1]
                masks = [given.gather(1, index), *(given[:, first:end] for first, end in views)]
                shown = [a & b for a, b in zip(shown, masks, strict=True)]
            hidden = ~torch.cat(shown, dim=1)[:, None, None]
        return Gathered(patches, index, views, hidden)

    def _own(self, first: int, end: int) -> torch.Tensor:
        """Which rows have text in a stretch of columns: bool [row, column]; behind the prompt, all."""
        known = self.own[:, first:end]
        return torch.nn.functional.pad(known, (0, end - first - known.shape[1]), value=True)


def _numbers(kept: torch.Tensor, width: int, even: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The marked patches of each row, int64 [row, slot] in order, and which of these slots are filled, bool."""
    if even:
        patches = kept.nonzero()[:, 1].view(len(kept), width)
        return patches, torch.ones_like(patches, dtype=torch.bool)
    slot = kept.cumsum(dim=1) - 1
    numbers = torch.arange(kept.shape[1], device=kept.device).expand(len(kept), -1)
    patches = torch.zeros(len(kept), width + 1, dtype=torch.int64, device=kept.device)
    patches = patches.scatter_(1, torch.where(kept, slot, width), numbers)[:, :width]
    return patches, numbers[:, :width] <= slot[:, -1:]


@dataclass
class Gathered:
    """What one choice reads of the cache.

    patches : int64 [row, slot], the kept patches in order; index : int64 [row, slot + copied], their columns, and those
    of text that is copied with them; views : stretches of columns; hidden : bool [row, 1, 1, column read] or None.
    """

    patches: torch.Tensor
    index: torch.Tensor
    views: list[tuple[int, int]]
    hidden: torch.Tensor | None

    def __post_init__(self) -> None:
        self._shared: dict[Hashable, Any] = {}

    def output(self, query, key, value, scaling: float, known: torch.Tensor | None = None) -> torch.Tensor:
        """Output [row, 1, head, dim] of the newest query; on a GPU by fused kernels where these are faster."""
        kernels = fused_kernels(query.device.type)
        if kernels is None:
            return self.attend(query, key, value, scaling, known)[0]
        hidden = None if self.hidden is None else self.hidden[:, 0, 0]
        read = (query, key, value, self.columns, hidden, scaling)
        ways = {
            "plain": lambda: self.attend(query, key, value, scaling, known)[0],
            "fused": lambda: kernels.attend_listed(*read),
        }
        # How many columns are read changes at every step, and matters by its size only.
        size = 1 << self.columns.shape[1].bit_length()
        heads = f"{query.shape[1]} heads of {query.shape[3]}, {key.shape[1]} of keys"
        name = f"up to {size:,} columns, {len(query)} rows, {heads}, {query.dtype}{'' if known is None else ', ranked'}"
        return run_fastest(name, ways, query.device)

    @cached_property
    def columns(self) -> torch.Tensor:
        """All columns that are read, int64 [row, column read]."""
        views = [torch.arange(*view, device=self.index.device).expand(len(self.index), -1) for view in self.views]
        return torch.cat([self.index, *views], dim=1)

    def attend(
        self, query, key, value, scaling: float, known: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output [row, 1, head, dim] of the newest query, and the weights [row, head, slot] of the kept patches.

        known : float32 [row, head, key], the logits of all keys, where the choice has computed them.
        """
        rows, heads, _, dim = query.shape
        if known is None:
            grouped = query.view(rows, key.shape[1], -1, dim) * scaling
            keys = [self._copied(key), *(key[:, :, first:end] for first, end in self.views)]
            logits = torch.cat([product(grouped, part.transpose(2, 3)) for part in keys], dim=3)
        else:
            picked = known.gather(2, self.index[:, None].expand(-1, heads, -1))
            read = torch.cat([picked, *(known[:, :, first:end] for first, end in self.views)], dim=2)
            logits = read.view(rows, key.shape[1], -1, read.shape[2])
        if self.hidden is not None:
            logits.masked_fill_(self.hidden, -torch.inf)
        weights = torch.softmax(logits, dim=3)
        output = self._weighted(weights, value).to(value.dtype).view(rows, 1, heads, -1)
        return output, weights[..., : self.patches.shape[1]].reshape(rows, heads, -1)

    def _copied(self, states: torch.Tensor) -> torch.Tensor:
        """Copy out the columns ``index`` of keys or values: [row, kv_head, key, dim] -> [row, kv_head, slot, dim]."""
        rows, heads, _, dim = states.shape
        lines, apart = _lines(states)
        places = self._once(("copied", *apart), lambda: _places(states, apart, self.index).flatten())
        return lines.index_select(0, places).view(rows, heads, -1, dim)

    def _weighted(self, weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Sum of the values of all columns read: [row, kv_head, query, column read] x [row, kv_head, key, dim]."""
        rows, heads, queries, _ = weights.shape
        if value.device.type == "cpu" and weights.dtype == value.dtype and queries <= SHARED:
            # On a CPU they are summed while they are read, instead of copied, written and read again.
            lines, apart = _lines(value)
            bags, starts = self._once(("summed", *apart), lambda: self._bags(value, apart, queries))
            summed = torch.embedding_bag(lines, bags, starts, False, 0, False, weights.flatten())
            return summed[0].view(rows, heads, queries, -1)
        weights, end = weights.to(value.dtype), self.index.shape[1]
        summed = product(weights[..., :end], self._copied(value))
        for first, last in self.views:
            begin, end = end, end + last - first
            summed = summed + product(weights[..., begin:end], value[:, :, first:last])
        return summed

    def _bags(self, value: torch.Tensor, apart: tuple[int, int], queries: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which vectors each query sums, one after the other, and where those of each query begin."""
        places = _places(value, apart, self.columns)[:, :, None].expand(-1, -1, queries, -1).flatten()
        return places, torch.arange(0, len(places), self.columns.shape[1])

    def _once(self, name: Hashable, made: Callable[[], Any]) -> Any:
        """What layers of one memory layout share."""
        if name not in self._shared:
            self._shared[name] = made()
        return self._shared[name]


def _lines(states: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """The memory of keys or values as one list of vectors, and how many lie between rows and between heads."""
    rows, heads, columns, dim = states.shape
    strides = states.stride()
    if strides[2:] != (dim, 1) or strides[0] % dim or strides[1] % dim:
        states = states.contiguous()
        strides = states.stride()
    # The memory as one list of vectors, also where the cache has spare room behind every head: picking whole
    # vectors out of a list is ten times as fast as torch.gather, and nothing else is copied.
    per_row, per_head = strides[0] // dim, strides[1] // dim
    count = (rows - 1) * per_row + (heads - 1) * per_head + columns
    return states.as_strided((count, dim), (dim, 1)), (per_row, per_head)


def _places(states: torch.Tensor, apart: tuple[int, int], columns: torch.Tensor) -> torch.Tensor:
    """Where in that list some columns, int64 [row, column], are: int64 [row, kv_head, column]."""
    row, head = (torch.arange(count, device=columns.device) for count in states.shape[:2])
    return (row[:, None] * apart[0] + head * apart[1])[..., None] + columns[:, None]


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Matrix product of [row, head, n, k] and [row, head, k, m] in float32 (or in float64 where these are)."""
    if a.dtype in (torch.float32, torch.float64):
        return torch.matmul(a, b)
    if multiplies_into_float32(a.device.type, a.dtype):
        rows, heads = a.shape[:2]
        return torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out_dtype=torch.float32).unflatten(0, (rows, heads))
    return torch.matmul(a.float(), b.float())


@cache
def multiplies_into_float32(device: str, dtype: torch.dtype) -> bool:
    """Whether this device multiplies matrices of this type into float32 without copying them first."""
    one = torch.ones(1, 1, 1, device=device, dtype=dtype)
    try:
        torch.bmm(one, one, out_dtype=torch.float32)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return True


@cache
def fused_kernels(device: str) -> Any | None:
    """The module of GPU kernels, for a device that they run on and where Triton, which comes with torch, is there.

    None where the environment says ``VISIONPULSE_KERNELS=0``: which way is faster can change from run to run, and the
    last digits with it.
    """
    if device != "cuda" or os.environ.get("VISIONPULSE_KERNELS") == "0" or find_spec("triton") is None:
        return None
    return import_module("visionpulse_analysis.attending.fused")
