"""From an attention call of the model to the softmax row of one of its queries, checked against the kernel's output.

Most models compute a plain softmax over scaled dot products. There a row is a matrix product and a softmax, which is
what recording costs. Whether a layer is one of these is not believed but tried: on its first calls the model's own
eager function is asked for the same row. Where the two differ (capped logits, sinks, position biases), or the model
passes the kernel anything that a plain softmax does not take, the rows come from the eager function at every step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import pad

from visionpulse_analysis.attention import Call
from visionpulse_analysis.pruners.logits import newest_logits
from visionpulse_analysis.sampling import BROKEN

# What models pass on to a kernel that changes nothing for a plain softmax under a mask.
PLAIN = {
    "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "dropout", "is_causal", "is_first_iteration", "logits_to_keep",
    "max_length_k", "max_length_q", "mm_token_type_ids", "num_items_in_batch", "output_attentions",
    "output_hidden_states", "output_router_logits", "position_ids", "return_dict", "scaling", "sliding_window",
    "token_type_ids", "use_cache",
}  # fmt: skip


class SelfCheckError(RuntimeError):
    """A recorded row does not give the output of the kernel; nothing of this decode can be trusted."""


@dataclass
class Query:
    """One query of a call, with what it may see: the call as it would be for this query alone.

    query [row, head, 1, dim]; key, value [row, kv_head, column, dim]; mask bool or additive [row, 1 or head, 1, column]
    or None for everything; index : its place among the call's queries; first : the position in the sequence of column
    0; total : how many positions the sequence has so far.
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
        # A window holds the newest columns only; a static cache has columns behind the newest, still to be filled.
        first = max(0, total - columns)
        seen = total - first
        if call.mask is None and _causal(call):
            seen -= length - 1 - index
        mask = call.mask
        if mask is not None:
            line = index if mask.shape[2] == length else 0
            mask = mask[:, :, line : line + 1, :seen]
        key, value = (states[:, :, :seen] for states in (call.key, call.value))
        return cls(call, index, call.query[:, :, index : index + 1], key, value, mask, first, total)

    @property
    def scaling(self) -> float:
        given = self.call.options.get("scaling")
        return self.query.shape[-1] ** -0.5 if given is None else given

    def logits(self) -> torch.Tensor:
        """Scaled dot products, float32 [row, head, column], -inf where masked."""
        return newest_logits(self.query, self.key, self.mask, self.scaling)

    def eager(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The row as the model's own eager function makes it: float [row, head, column]."""
        call, length, columns = self.call, self.call.query.shape[2], self.call.key.shape[2]
        query, key, value = (states.to(dtype) if dtype else states for states in (self.query, self.key, self.value))
        mask = self.mask
        if mask is not None and mask.dtype == torch.bool:  # eager functions add their masks
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)

        def of_this_query(option: Any) -> Any:
            if not torch.is_tensor(option) or option.ndim != 4:
                return option
            option = option[:, :, self.index : self.index + 1] if option.shape[2] == length else option
            return option[..., : key.shape[2]] if option.shape[3] == columns else option

        options = {name: of_this_query(option) for name, option in call.options.items() if name != "is_causal"}
        _, weights = call.eager(call.module, query, key, value, mask, *call.rest, **options)
        if weights is None or weights.shape[:2] != query.shape[:2] or weights.shape[-1] != key.shape[2]:
            shape = None if weights is None else tuple(weights.shape)
            raise SelfCheckError(
                f"{_said(call)}: the model's own eager function gives weights of shape {shape} for {key.shape[2]} keys "
                f"and {query.shape[1]} heads; rows of this model cannot be recorded"
            )
        return weights[:, :, -1]

    def widened(self, row: torch.Tensor, empty: float) -> torch.Tensor:
        """The row over all positions of the sequence, [row, head, total], ``empty`` at those outside of its columns."""
        behind = self.total - self.first - row.shape[2]
        return pad(row, (self.first, behind), value=empty) if self.first or behind else row


class RowReader:
    """Which layers are plain, and whether their rows were checked; one for each generation.

    A layer is checked on its first call of each kind: in prefill and at the first decode step.
    """

    def __init__(self) -> None:
        self.own: dict[int, bool] = {}  # by layer: whether only the model's own function gives its rows
        self.checked: set[tuple[int, bool]] = set()

    def read(
        self, layer: int, prefill: bool, query: Query, output: tuple[Any, ...], check: bool = True
    ) -> tuple[torch.Tensor, bool]:
        """One row after the kernel ran: logits (True) or weights (False), float32 [row, head, total].

        ``check`` is False where the kernel was made to read other values than the row's.

        Raises
        ------
        SelfCheckError
            The row times the values is not what the kernel put out.
        FloatingPointError
            The kernel put out NaN or infinity.
        """
        if (layer, prefill) not in self.checked:
            self._check(layer, query, output, check)
            self.checked.add((layer, prefill))
        if query.call.kernel is query.call.eager and output[1] is not None:  # the model made the row itself
            row = output[1][:, :, query.index, : query.key.shape[2]]
            return query.widened(row.float(), 0.0), False
        if self.own[layer] or not _plainly_called(query.call):
            return query.widened(query.eager().float(), 0.0), False
        return query.widened(query.logits(), -torch.inf), True

    @torch.no_grad()
    def _check(self, layer: int, query: Query, output: tuple[Any, ...], compare: bool) -> None:
        """Find out whether the layer is plain, and compare its row with the kernel's output; in float32 throughout."""
        call = query.call
        kernel = output[0][:, query.index].float()  # [row, head, dim]
        if not bool(torch.isfinite(kernel).all()):
            raise FloatingPointError(BROKEN)
        wide = replace(query, query=query.query.float(), key=query.key.float(), value=query.value.float())
        eager, row = wide.eager(torch.float32).float(), None
        bound = Bound.of(wide, call.value.dtype)
        if _plainly_called(call) and query.query.shape[1] % query.key.shape[1] == 0:
            row = torch.softmax(wide.logits(), dim=-1)
        plain = row is not None and bool(((row - eager).abs() <= bound.of_weights(eager)).all())
        self.own[layer] = self.own.get(layer, False) or not plain
        row = eager if row is None or self.own[layer] else row
        if not compare:
            return
        rows, heads, _, dim = wide.value.shape
        if kernel.shape != (rows, query.query.shape[1], dim) or kernel.shape[1] % heads:
            raise SelfCheckError(
                f"{_said(call)}: the kernel put out {tuple(kernel.shape)} for values {tuple(wide.value.shape)}; rows "
                "of this model cannot be checked and are not recorded"
            )
        found = torch.matmul(row.view(rows, heads, -1, row.shape[2]), wide.value).view_as(kernel)
        sizes = torch.matmul(row.view(rows, heads, -1, row.shape[2]), wide.value.abs()).view_as(kernel)
        excess = (found - kernel).abs() - bound.of_output(sizes)
        if not bool((excess <= 0).all()):
            head = int(excess.amax(dim=(0, 2)).argmax())
            gap = float((found - kernel)[:, head].abs().max())
            allowed = float(bound.of_output(sizes)[:, head].max())
            raise SelfCheckError(
                f"{_said(call)}, head {head}: the recorded row times the values differs from the kernel's output by "
                f"{gap:.2g}, rounding explains {allowed:.2g}; this model's rows are not what its kernel computes with. "
                "Load it with attn_implementation='eager', which shows its own rows, and report the model"
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
    def of(cls, query: Query, dtype: torch.dtype) -> Bound:
        """query : in float32; dtype : in which the kernel ran."""
        rows, heads, _, dim = query.query.shape
        grouped = query.query.abs().view(rows, query.key.shape[1], -1, dim) if heads % query.key.shape[1] == 0 else None
        if grouped is None:
            raise SelfCheckError(
                f"{_said(query.call)}: {heads} query heads do not share {query.key.shape[1]} key heads"
            )
        products = torch.matmul(grouped, query.key.abs().transpose(2, 3)).amax(dim=-1).view(rows, heads, 1)
        single, unit = torch.finfo(torch.float32).eps / 2, torch.finfo(dtype).eps / 2
        if query.query.is_cuda and torch.backends.cuda.matmul.allow_tf32:
            single = 2.0**-11
        of_product = dim * single + (unit if query.call.kernel is query.call.eager else 0.0)
        return cls(products * query.scaling * of_product, unit, query.key.shape[2] * single)

    def of_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """Of the weights [row, head, column]."""
        return (torch.expm1(4 * self.logit) + 2 * self.sums) * weights + torch.finfo(torch.float32).tiny

    def of_output(self, sizes: torch.Tensor) -> torch.Tensor:
        """Of the output, where ``sizes`` [row, head, dim] is what it would be with the absolute values."""
        return (torch.expm1(4 * self.logit) + 2 * self.unit + 2 * self.sums) * sizes + torch.finfo(torch.float32).tiny


def _causal(call: Call) -> bool:
    given = call.options.get("is_causal")
    return bool(getattr(call.module, "is_causal", True) if given is None else given)


def _plainly_called(call: Call) -> bool:
    extra = (name for name, option in call.options.items() if name not in PLAIN and option is not None)
    return not call.rest and not any(call.options[name] is not False for name in extra)


def _said(call: Call) -> str:
    return f"layer {getattr(call.module, 'layer_idx', '?')} ({type(call.module).__name__})"
