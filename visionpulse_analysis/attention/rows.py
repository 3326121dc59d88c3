"""From an attention call of the model to the softmax row of one of its queries, checked against the kernel's output.

Most models compute a plain softmax over scaled dot products. There a row is a matrix product and a softmax, which is
what recording costs. Whether a layer is one of these is not believed but tried: on its first calls the model's own
eager function is asked for the same row. Where the two differ (capped logits, sinks, position biases), or the model
passes the kernel anything that a plain softmax does not take, the rows come from the eager function at every step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch.nn.functional import pad

from visionpulse_analysis._util.checks import BROKEN
from visionpulse_analysis.attention.routing import Call
from visionpulse_analysis.pruners.view import newest_logits


class SelfCheckError(RuntimeError):
    """A recorded row does not give the output of the kernel; nothing of this decode can be trusted."""


@dataclass
class Query:
    """One query of a call, with what it may see: the call as it would be for this query alone.

    query [row, head, 1, dim]; key, value [row, kv_head, column, dim]; mask bool or additive [row, 1 or head, 1, column]
    or None for everything; index : its place among the call's queries; first : the position in the sequence of column
    0, below it where columns of another sequence come first; total : how many positions the sequence has so far.
    """

    call: Call
    index: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    first: int
    total: int

    @classmethod
    def of(cls, call: Call, index: int, total: int) -> Query:
        """The query at ``index`` of a call whose last key is that of position ``total`` - 1."""
        length, columns = call.query.shape[2], call.key.shape[2]
        if call.crossing is not None:
            mask = call.mask if call.mask is None or call.mask.shape[2] == 1 else call.mask[:, :, index : index + 1]
            query = call.query[:, :, index : index + 1]
            return cls(call, index, query, call.key, call.value, mask, total - columns, total)
        # A window holds the newest columns only; a static cache has columns behind the newest, still to be filled.
        first = max(0, total - columns)
        seen = total - first
        if call.mask is None and call.causal:
            seen -= length - 1 - index
        mask = call.mask
        if mask is not None:
            line = index if mask.shape[2] == length else 0
            mask = mask[:, :, line : line + 1, :seen]
        key, value = (states[:, :, :seen] for states in (call.key, call.value))
        return cls(call, index, call.query[:, :, index : index + 1], key, value, mask, first, total)

    def logits(self) -> torch.Tensor:
        """Scaled dot products, float32 [row, head, column], -inf where masked."""
        return newest_logits(self.query, self.key, self.mask, self.call.scaling)

    def eager(self) -> torch.Tensor:
        """The row as the model's own eager function makes it: float [row, head, column]."""
        call, length, columns = self.call, self.call.query.shape[2], self.call.key.shape[2]
        mask = self.mask
        if mask is not None and mask.dtype == torch.bool:  # eager functions add their masks
            lowest = torch.finfo(self.query.dtype).min
            mask = torch.zeros_like(mask, dtype=self.query.dtype).masked_fill(~mask, lowest)

        def of_this_query(option: Any) -> Any:
            if not torch.is_tensor(option) or option.ndim != 4:
                return option
            option = option[:, :, self.index : self.index + 1] if option.shape[2] == length else option
            return option[..., : self.key.shape[2]] if option.shape[3] == columns else option

        options = {name: of_this_query(option) for name, option in call.options.items() if name != "is_causal"}
        _, weights = call.eager(call.module, self.query, self.key, self.value, mask, *call.rest, **options)
        if weights is None or weights.shape[:2] != self.query.shape[:2] or weights.shape[-1] != self.key.shape[2]:
            shape = None if weights is None else tuple(weights.shape)
            raise SelfCheckError(
                f"{_said(call)}: the model's own eager function gives weights of shape {shape} for "
                f"{self.key.shape[2]} keys and {self.query.shape[1]} heads; rows of this model cannot be recorded"
            )
        return weights[:, :, -1]

    @cached_property
    def wide(self) -> Query:
        """The same in float32."""
        return replace(self, query=self.query.float(), key=self.key.float(), value=self.value.float())

    def over_all(self, row: torch.Tensor, empty: float) -> torch.Tensor:
        """The row over all positions of the sequence, [row, head, total], ``empty`` at those outside of its columns."""
        behind = self.total - self.first - row.shape[2]
        return pad(row, (self.first, behind), value=empty) if self.first or behind else row


class RowReader:
    """Reads rows, plainly where a layer is plain; one for each generation.

    A layer is tried and checked on its first call of each kind: in prefill, and at the first step after it.
    """

    def __init__(self) -> None:
        self.own: dict[int, bool] = {}  # by layer: whether only the model's own function gives its rows
        self.memory: dict[Any, Any] = {}  # see LayerAttention.once
        self._tried: set[tuple[int, bool]] = set()
        self._checked: set[tuple[int, bool]] = set()

    @torch.no_grad()
    def is_plain(self, query: Query, prefill: bool) -> bool:
        """Whether the row of this query is a softmax over its scaled dot products."""
        layer = query.call.layer
        if (layer, prefill) not in self._tried:
            self._tried.add((layer, prefill))
            own = self.own.get(layer, False)
            if not own and query.call.plain and query.query.shape[1] % query.key.shape[1] == 0:
                plain, eager = torch.softmax(query.wide.logits(), dim=-1), query.wide.eager().float()
                own = not bool(((plain - eager).abs() <= Bound.of(query).of_weights(eager)).all())
            self.own[layer] = own
        return not self.own[layer] and query.call.plain

    @torch.no_grad()
    def read(self, query: Query, prefill: bool, output: tuple[Any, ...]) -> tuple[torch.Tensor, bool]:
        """One row, after the kernel ran: logits (True) or weights (False), float32 [row, head, total].

        Raises
        ------
        SelfCheckError
            The row times the values is not what the kernel put out.
        FloatingPointError
            The kernel put out NaN or infinity.
        """
        self.check(query, prefill, output)
        if query.call.kernel is query.call.eager and output[1] is not None:  # the model made the row itself
            row = output[1][:, :, query.index, : query.key.shape[2]]
            return query.over_all(row.float(), 0.0), False
        if self.is_plain(query, prefill):
            if query.first < 0:  # one softmax over two sequences, of which one is asked for
                return query.over_all(torch.softmax(query.logits(), dim=-1), 0.0), False
            return query.over_all(query.logits(), -torch.inf), True
        return query.over_all(query.eager().float(), 0.0), False

    @torch.no_grad()
    def check(self, query: Query, prefill: bool, output: tuple[Any, ...]) -> None:
        """Check the row of a layer against what the kernel put out, on its first call; raises as `read`."""
        if (query.call.layer, prefill) not in self._checked:
            self._check(query, output, self.is_plain(query, prefill))
            self._checked.add((query.call.layer, prefill))

    def unchecked(self, query: Query, prefill: bool) -> None:
        """Take the first call of a layer for checked, where the kernel was made to read other values than the row's."""
        self._checked.add((query.call.layer, prefill))

    def _check(self, query: Query, output: tuple[Any, ...], plain: bool) -> None:
        """Compare the row times the values with the kernel's output, in float32."""
        call, wide = query.call, query.wide
        kernel = output[0][:, query.index].float()  # [row, head, dim]
        if not bool(torch.isfinite(kernel).all()):
            raise FloatingPointError(BROKEN)
        row = torch.softmax(wide.logits(), dim=-1) if plain else wide.eager().float()
        rows, heads, _, dim = wide.value.shape
        if kernel.shape != (rows, query.query.shape[1], dim) or kernel.shape[1] % heads:
            raise SelfCheckError(
                f"{_said(call)}: the kernel put out {tuple(kernel.shape)} for values {tuple(wide.value.shape)}; rows "
                "of this model cannot be checked and are not recorded"
            )
        shared = row.view(rows, heads, -1, row.shape[2])
        found = torch.matmul(shared, wide.value).view_as(kernel)
        allowed = Bound.of(query).of_output(torch.matmul(shared, wide.value.abs()).view_as(kernel))
        gap = (found - kernel).abs()
        if not bool((gap <= allowed).all()):
            head = int((gap - allowed).amax(dim=(0, 2)).argmax())
            raise SelfCheckError(
                f"{_said(call)}, head {head}: the recorded row times the values differs from the kernel's output by "
                f"{float(gap[:, head].max()):.2g}, rounding explains {float(allowed[:, head].max()):.2g}; this model's "
                "rows are not what its kernel computes with. Load it with attn_implementation='eager', which shows its "
                "own rows, and report the model"
            )


@dataclass
class Bound:
    """How far two ways of one attention may differ by rounding alone, from the numbers at hand.

    A logit is a sum of ``dim`` products in float32: its error is at most ``dim`` units of float32 times the sum of the
    absolute products (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); where the kernel keeps
    logits in a shorter type, one unit of that comes on top. A weight is off by the factor exp of twice that (its own
    logit and the sum it is divided by), on both sides. Of the type of the values there are two roundings: a kernel
    rounds the weights before it sums values, and the sum.
    """

    logit: torch.Tensor  # [row, head, 1]: error of a logit, of one side
    unit: float  # of the type of the values
    sums: float  # of a sum over all keys in float32

    @classmethod
    def of(cls, query: Query) -> Bound:
        """For this query, as the kernel ran it."""
        rows, heads, _, dim = query.query.shape
        if heads % query.key.shape[1]:
            raise SelfCheckError(
                f"{_said(query.call)}: {heads} query heads cannot share {query.key.shape[1]} key heads evenly; rows of "
                "this model cannot be checked and are not recorded"
            )
        grouped = query.wide.query.abs().view(rows, query.key.shape[1], -1, dim)
        products = torch.matmul(grouped, query.wide.key.abs().transpose(2, 3)).amax(dim=-1).view(rows, heads, 1)
        single, unit = torch.finfo(torch.float32).eps / 2, torch.finfo(query.call.value.dtype).eps / 2
        if query.query.is_cuda and torch.backends.cuda.matmul.allow_tf32:
            single = 2.0**-11
        of_product, of_sum = dim * single, unit if query.call.kernel is query.call.eager else 0.0
        largest = products * query.call.scaling
        error, mask = largest * (of_product + of_sum), query.mask
        if mask is not None and mask.dtype != torch.bool:  # a bias, added in the type in which logits are kept
            lowest = torch.finfo(mask.dtype).min / 2
            error = error + mask.float().masked_fill(mask < lowest, 0).abs().amax(dim=3) * (of_sum + single)
        return cls(error, unit, query.key.shape[2] * single)

    def of_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """Of the weights [row, head, column]."""
        return (torch.expm1(4 * self.logit) + 2 * self.sums) * weights + torch.finfo(torch.float32).tiny

    def of_output(self, sizes: torch.Tensor) -> torch.Tensor:
        """Of the output, where ``sizes`` [row, head, dim] is what it would be with the absolute values."""
        return (torch.expm1(4 * self.logit) + 2 * self.unit + 2 * self.sums) * sizes + torch.finfo(torch.float32).tiny


def _said(call: Call) -> str:
    return f"layer {call.layer} ({type(call.module).__name__})"
