"""Attention of the newest queries over listed columns of the cache, in GPU kernels that read them where they lie.

The columns are parted among programs, each with its own running softmax, and the parts joined by their sums (as flash
decoding does), so that also a single row is the work of many programs. Query heads that share a key head share one
reading of it.
"""

# Triton comes with the torch of a GPU machine, and its decorated functions are not what a type checker sees.
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

BLOCK = 64  # columns that a program reads at a time
SMALLEST = 16  # rows and columns of the smallest matrix that a tensor core multiplies
WAVES = 2  # programs per multiprocessor
PARTS = 64  # of the columns, at most, so that one program can join them


def attend_listed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    columns: torch.Tensor,
    hidden: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    """Output [row, 1, head, dim] of the newest queries [row, head, 1, dim], in the values' dtype.

    key, value : [row, kv_head, key, dim], the last axis contiguous. columns : int64 [row, column read]; hidden : bool
    [row, column read] or None, True for those not to be seen; every row sees at least one. Softmax and sums are
    float32.

    Raises
    ------
    ValueError
        Keys or values have another shape, or are laid out in another way.
    """
    rows, heads, _, dim = query.shape
    kv_heads, read = key.shape[1], columns.shape[1]
    if key.shape != value.shape or key.shape[3] != dim or key.stride(3) != 1 or value.stride(3) != 1:
        raise ValueError(
            f"keys and values must have one shape, with {dim} numbers a vector and the last axis contiguous; "
            f"got {tuple(key.shape)} and {tuple(value.shape)}"
        )
    query, columns, hides = query.contiguous(), columns.contiguous(), hidden is not None
    hidden = columns if hidden is None else hidden.contiguous()
    group = heads // kv_heads
    parts, per_part = _parts(rows * kv_heads, read, _multiprocessors(query.device))
    float32 = {"dtype": torch.float32, "device": query.device}
    sums, scales = torch.empty(rows, heads, parts, dim, **float32), torch.empty(2, rows, heads, parts, **float32)
    output = torch.empty(rows, 1, heads, dim, dtype=value.dtype, device=value.device)
    width = max(SMALLEST, triton.next_power_of_2(dim))
    # A kernel starts on the current device, which need not be that of this layer.
    with torch.cuda.device_of(query):
        _attend_part[(rows * kv_heads, parts)](
            *(query, key, value, columns, hidden, sums, scales, scaling, read, per_part),
            *(query.stride(0), query.stride(1), *key.stride()[:3], *value.stride()[:3], kv_heads),
            *(group, max(SMALLEST, triton.next_power_of_2(group)), dim, width, hides, BLOCK),
        )
        _join_parts[(rows * heads,)](sums, scales, output, parts, dim, width, PARTS)
    return output


def _parts(programs: int, read: int, multiprocessors: int) -> tuple[int, int]:
    """Into how many parts to cut the columns, and how many each part has: a multiple of `BLOCK`."""
    blocks = triton.cdiv(read, BLOCK)
    wanted = max(1, min(blocks, PARTS, WAVES * multiprocessors // programs))
    per_part = triton.cdiv(blocks, wanted)
    return triton.cdiv(blocks, per_part), per_part * BLOCK


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


# What changes from step to step must not have the kernel compiled anew.
@triton.jit(do_not_specialize=["read", "per_part"])
def _attend_part(
    query, key, value, columns, hidden, sums, scales, scaling, read, per_part,
    query_row, query_head, key_row, key_head, key_column, value_row, value_head, value_column, kv_heads,
    GROUP: tl.constexpr, QUERIES: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, HIDES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One part of the columns, for the queries of one key head of one row."""
    # Distances in memory can be beyond 32 bits.
    row, kv_head = (tl.program_id(0) // kv_heads).to(tl.int64), (tl.program_id(0) % kv_heads).to(tl.int64)
    part, parts = tl.program_id(1), tl.num_programs(1)
    # Axes are padded to powers of two: some heads and some numbers of a vector are not there.
    heads, numbers = kv_head * GROUP + tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    is_head, is_number = tl.arange(0, QUERIES) < GROUP, numbers < DIM
    queries = tl.load(
        query + row * query_row + heads[:, None] * query_head + numbers[None, :],
        mask=is_head[:, None] & is_number[None, :],
        other=0.0,
    )
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    summed = tl.zeros([QUERIES, WIDTH], tl.float32)
    end = tl.minimum((part + 1) * per_part, read)
    for first in range(part * per_part, end, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        seen = slot < end
        column = tl.load(columns + row * read + slot, mask=seen, other=0)
        if HIDES:
            seen = seen & (tl.load(hidden + row * read + slot, mask=seen, other=1) == 0)
        keys = tl.load(
            key + row * key_row + kv_head * key_head + column[None, :] * key_column + numbers[:, None],
            mask=seen[None, :] & is_number[:, None],
            other=0.0,
        )
        logits = tl.dot(queries, keys, input_precision="ieee") * scaling
        logits = tl.where(seen[None, :], logits, float("-inf"))
        higher = tl.maximum(highest, tl.max(logits, 1))
        # Where nothing has been seen yet, the highest is -inf, and -inf minus itself would be no number.
        reference = tl.where(higher == float("-inf"), 0.0, higher)
        weights, shrunk = tl.exp(logits - reference[:, None]), tl.exp(highest - reference)
        values = tl.load(
            value + row * value_row + kv_head * value_head + column[:, None] * value_column + numbers[None, :],
            mask=seen[:, None] & is_number[None, :],
            other=0.0,
        )
        total = total * shrunk + tl.sum(weights, 1)
        summed = summed * shrunk[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        highest = higher
    place = (row * kv_heads * GROUP + heads) * parts + part
    tl.store(scales + place, highest, mask=is_head)
    tl.store(scales + tl.num_programs(0).to(tl.int64) * GROUP * parts + place, total, mask=is_head)
    tl.store(
        sums + place[:, None] * DIM + numbers[None, :],
        summed,
        mask=is_head[:, None] & is_number[None, :],
    )


@triton.jit(do_not_specialize=["parts"])
def _join_parts(
    sums, scales, output, parts,
    DIM: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The output of one query head from its parts."""
    head, part, numbers = tl.program_id(0).to(tl.int64), tl.arange(0, PARTS), tl.arange(0, WIDTH)
    is_part, is_number = part < parts, numbers < DIM
    place = head * parts + part
    highest = tl.load(scales + place, mask=is_part, other=float("-inf"))
    total = tl.load(scales + tl.num_programs(0).to(tl.int64) * parts + place, mask=is_part, other=0.0)
    share = tl.exp(highest - tl.max(highest, 0))
    summed = tl.load(
        sums + place[:, None] * DIM + numbers[None, :], mask=is_part[:, None] & is_number[None, :], other=0.0
    )
    joined = tl.sum(summed * share[:, None], 0) / tl.sum(total * share, 0)
    tl.store(output + head * DIM + numbers, joined.to(output.dtype.element_ty), mask=is_number)
