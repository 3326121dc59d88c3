"""How a pruner's choice is carried out at a decode step: by a mask, or by reading only what it keeps.

The attention of one query is a softmax over one vector of logits. When gathered, its parts are computed where their
keys are (the kept patches, copied together; each stretch of text, as a view of the cache) and joined for the softmax;
the values are summed while they are read, or part by part. Nothing is approximated, and query heads that share a key
head share one reading of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch

from visionpulse_analysis.attention.autotune import run_fastest
from visionpulse_analysis.pruners.view import Layout

Execution = Literal["masked", "gathered"]
NO_WAIT = {"cpu"}  # devices on which reading a number costs nothing
VIEWS = 3  # stretches of text inside the prompt that are read where they lie; shorter ones are copied with the patches
SHARED = 4  # query heads of one key head; with more, copying its values once is the faster way on a CPU


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


@dataclass
class TextColumns:
    """Which columns of the cache hold text, and how they are read.

    What is no patch counts as text here: the other tokens of pictures are hidden from rows that see no patch.

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
    def of(cls, layout: Layout, others: bool = True) -> TextColumns:
        """Find the text of a batch, with or without the ``others`` of its pictures."""
        places, present, starts = (t.cpu().numpy() for t in (layout.places, layout.patches, layout.starts))
        rows, numbers = np.nonzero(layout.others.cpu().numpy())
        other_places = layout.other_places.cpu().numpy()[rows, numbers]
        width = int(max(places[present].max(initial=-1) + 1, other_places.max(initial=-1) + 1, starts.max()))
        own = np.arange(width)[None] >= starts[:, None]
        own[np.nonzero(present)[0], places[present]] = False
        own[rows, other_places] &= others
        some = own.any(axis=0)
        edges = np.flatnonzero(np.diff(some, prepend=False, append=False))
        inner = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        last = inner.pop()[0] if inner and inner[-1][1] == width else width
        viewed = sorted(sorted(inner, key=lambda part: part[0] - part[1])[:VIEWS])
        rest = np.zeros(width, bool)
        for a, b in set(inner) - set(viewed):
            rest[a:b] = True
        # Rows of a padded batch have different amounts of such text: they are filled up to the widest row with column
        # 0, which `real` says not to count.
        counts = (own & rest).sum(axis=1)
        copied = np.zeros((len(own), counts.max(initial=0)), np.int64)
        real = np.arange(copied.shape[1])[None] < counts[:, None]
        copied[real] = np.nonzero(own & rest)[1]
        on_device = (torch.from_numpy(array).to(layout.places.device) for array in (copied, real, own))
        return cls(layout, [*viewed, (last, None)], *on_device, uniform=bool((own == some).all()))

    def gather(self, kept: torch.Tensor, width: int, fewest: int, mask: torch.Tensor | None, n_keys: int) -> Gathered:
        """Read the kept patches, bool [row, patch], of which each row has ``fewest`` to ``width``; -1 if not known.

        mask : the model's own, bool [row, 1, 1, key], or None.
        """
        even, own, real = fewest == width, self.own, self.real
        if fewest == 0 < width and self.layout.others.shape[1]:
            hidden = self.layout.hidden_keys(kept, own.shape[1])
            own, real = own & ~hidden, real & ~hidden.gather(1, self.copied)
        # What is copied comes first in every row, patches before text, then the views: weights lie in this order.
        patches, filled = _numbers(kept, width, even)
        index = torch.cat([self.layout.places.gather(1, patches), self.copied], dim=1)
        views = [(first, n_keys if end is None else end) for first, end in self.views]
        views = [(first, end) for first, end in views if end > first]
        hidden = None
        if not even or mask is not None or not self.uniform:
            shown = [torch.cat([filled, real], dim=1), *(_columns(own, first, end) for first, end in views)]
            if mask is not None:
                given = mask[:, 0, -1]
                masks = [given.gather(1, index), *(given[:, first:end] for first, end in views)]
                shown = [a & b for a, b in zip(shown, masks, strict=True)]
            hidden = ~torch.cat(shown, dim=1)[:, None, None]
        return Gathered(patches, index, views, hidden)


def _columns(own: torch.Tensor, first: int, end: int) -> torch.Tensor:
    """Which rows have text of their ``own`` in a stretch of columns: bool [row, column]; behind the prompt, all."""
    known = own[:, first:end]
    return torch.nn.functional.pad(known, (0, end - first - known.shape[1]), value=True)


def _numbers(kept: torch.Tensor, width: int, even: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The marked patches of each row, int64 [row, slot] in order, and which of these slots are filled, bool."""
    if even:
        patches = kept.nonzero()[:, 1].view(len(kept), width)
        return patches, torch.ones_like(patches, dtype=torch.bool)
    # Each marked patch is sent to its rank among the marked ones, all others to one slot too many, which is cut off: so
    # rows with different numbers of patches are listed without a loop, and without asking the device for a number.
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

    def attend(
        self, query, key, value, scaling: float, known: torch.Tensor | None = None, recorded: bool = True,
        bias: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """Output [row, 1, head, dim] of the newest query, and where recorded the weights of all ``columns`` read.

        known : float32 [row, head, key], the logits of all keys, where the choice has computed them. bias : float32
        [row, head or 1, patch], added to those of the patches.
        Weights are [row, head, column read], the kept patches first. On a GPU the output comes from kernels of our own
        where these are faster; they add no bias.
        """
        kernels = fused_kernels(query.device.type)
        if kernels is None or key.shape != value.shape or bias is not None:
            weights = self._weights(query, key, scaling, known, bias)
            return self._output(weights, value), weights.flatten(1, 2) if recorded else None
        hidden = None if self.hidden is None else self.hidden[:, 0, 0]
        ways = {
            "plain": lambda: self._output(self._weights(query, key, scaling, known), value),
            "fused": lambda: kernels.attend_listed(query, key, value, self.columns, hidden, scaling),
        }
        # The way, and with it the last digits, is the same whether or not anything is recorded.
        output = run_fastest(self._case(query, key, known is not None), ways, query.device)
        return output, self._weights(query, key, scaling, known).flatten(1, 2) if recorded else None

    def _case(self, query: torch.Tensor, key: torch.Tensor, ranked: bool) -> str:
        """What decides which way is faster: rows leave and columns come at many steps, so only their size counts."""
        columns = self.index.shape[1] + sum(end - first for first, end in self.views)
        columns, rows = (1 << (count - 1).bit_length() for count in (columns, len(query)))
        heads = f"{query.shape[1]} heads of {query.shape[3]}, {key.shape[1]} of keys"
        said = f"up to {columns:,} columns and {rows} rows, {heads}, {query.dtype} on {query.device}"
        return f"{said}, logits known" if ranked else said

    @cached_property
    def columns(self) -> torch.Tensor:
        """All columns that are read, int64 [row, column read]."""
        views = [torch.arange(*view, device=self.index.device).expand(len(self.index), -1) for view in self.views]
        return torch.cat([self.index, *views], dim=1)

    def _weights(
        self, query, key, scaling: float, known: torch.Tensor | None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Softmax over all columns read: [row, kv_head, query, column read]."""
        rows, heads, _, dim = query.shape
        if known is None:
            grouped = query.view(rows, key.shape[1], -1, dim) * scaling
            keys = [self._copied(key), *(key[:, :, first:end] for first, end in self.views)]
            logits = torch.cat([product(grouped, part.transpose(2, 3)) for part in keys], dim=3)
        else:
            picked = known.gather(2, self.index[:, None].expand(-1, heads, -1))
            read = torch.cat([picked, *(known[:, :, first:end] for first, end in self.views)], dim=2)
            logits = read.view(rows, key.shape[1], -1, read.shape[2])
        if bias is not None:
            slots = self.patches.shape[1]
            own = bias.gather(2, self.patches[:, None].expand(-1, bias.shape[1], -1)).expand(-1, heads, -1)
            logits[..., :slots] += own.reshape(rows, key.shape[1], -1, slots)
        if self.hidden is not None:
            logits.masked_fill_(self.hidden, -torch.inf)
        return torch.softmax(logits, dim=3)

    def _output(self, weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        summed = self._weighted(weights, value)
        return summed.to(value.dtype).view(len(value), 1, -1, value.shape[3])

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


def fused_kernels(device: str) -> Any | None:
    """The module of GPU kernels, for a device that they run on and where Triton, which comes with torch, is there.

    None where the environment says ``VISIONPULSE_KERNELS=0``: which way is faster can change from run to run, and the
    last digits with it.
    """
    if device != "cuda" or os.environ.get("VISIONPULSE_KERNELS") == "0" or not _has_triton():
        return None
    return import_module("visionpulse_analysis.attention.triton_kernels")


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
