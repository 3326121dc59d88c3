"""What a decode step must read at least, and how many times as fast that lets a pruned one be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from visionpulse_analysis._util.checks import whole_number
from visionpulse_analysis.decoding import Batch
from visionpulse_analysis.experiments.bench.synthetic import AFTER, BEFORE, random_language_model
from visionpulse_analysis.experiments.bench.variants import check_names, pruner_of
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import VisionPulse
from visionpulse_analysis.pruners.top_k import budget_to_k

BOUNDED = ("gathered_5", "gathered_10", "reuse_5")


def cache_bytes(vlm: VLM, tokens: int, rows: int) -> int:
    """Bytes of the keys and values of so many tokens in every layer."""
    text = vlm.model.config.get_text_config()
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    return per_token * tokens * rows * vlm.model.dtype.itemsize


def weight_bytes(vlm: VLM) -> int:
    """Bytes of the weights that a step reads: the layers and the output, not the embeddings."""
    read = [*vlm.model.get_decoder().layers.parameters(), *vlm.model.lm_head.parameters()]
    return sum(weight.numel() * weight.element_size() for weight in read)


def bytes_read(batch: Batch, gathered: bool) -> int:
    """Bytes that the step just taken must read: see `step_bytes`."""
    [group] = batch.groups or [None]
    shown = group.shown if group is not None and gathered else [None] * batch.vlm.n_layers
    kept = [None if layer is None else int(layer.sum()) for layer in shown]
    anchor = None if group is None else getattr(group.selection, "anchor", None)
    rows, columns = len(batch.records), batch.width + 1
    patches = 0 if group is None else group.layout.patches.shape[1]
    return step_bytes(batch.vlm, rows, columns, patches, kept, anchor)


def step_bytes(
    vlm: VLM, rows: int, columns: int, patches: int, kept: Sequence[int | None], anchor: int | None = None
) -> int:
    """Bytes that a decode step must read: weights, and the keys and values that it uses.

    Of ``columns`` keys in each row ``patches`` are patches. ``kept``: how many patches each layer reads, of all rows
    together; None for a layer that reads everything. At the ``anchor`` also all other keys are read, without their
    values, since they are ranked.
    """
    text = vlm.model.config.get_text_config()
    per_key = text.num_key_value_heads * text.head_dim * vlm.model.dtype.itemsize
    total = weight_bytes(vlm)
    for layer, count in enumerate(kept):
        used = rows * columns if count is None else rows * (columns - patches) + count
        keys = rows * columns if layer == anchor else used
        total += (keys + used) * per_key
    return total


def bounds(
    size: str, visual_tokens: Sequence[int], rows: int, variants: Sequence[str] = BOUNDED
) -> list[dict[str, Any]]:
    """How many times as fast as a dense step a pruned one can be, by the bytes that both must read; nothing is run.

    A step that keeps fewer patches than its budget allows can be faster still.

    Parameters
    ----------
    size : one of `SIZES`, in bfloat16
    visual_tokens : list of int
    rows : int
        Per step.
    variants : list of str
        Gathered ones, as in `pruner_of`, at the default anchor; all of the budget is kept.

    Returns
    -------
    list of dict
        visual_tokens, batch, variant, bound_over_dense.

    Raises
    ------
    ValueError
        For a size or a name that is not known, a variant that reads everything, or numbers below 1.
    """
    check_names(size)
    for name, values in {"visual_tokens": visual_tokens, "rows": [rows]}.items():
        for value in values:
            whole_number(value, name, least=1)
    vlm = random_language_model(size, "meta", torch.bfloat16)
    found = []
    for tokens in visual_tokens:
        columns = BEFORE + tokens + AFTER + 1
        dense = step_bytes(vlm, rows, columns, tokens, [None] * vlm.n_layers)
        for name in variants:
            pruner, execution = pruner_of(name)
            if not isinstance(pruner, VisionPulse) or execution != "gathered":
                raise ValueError(f"variant {name!r} reads what a dense step reads; expected a gathered one or reuse_5")
            share = pruner.budget_max if pruner.budget is None else pruner.budget
            most = rows * int(budget_to_k(torch.tensor(share, dtype=torch.float64), torch.tensor(tokens)))
            anchor = vlm.default_anchor
            below = most if pruner.reuse_previous else None
            kept = [most if layer >= anchor else below for layer in range(vlm.n_layers)]
            bound = dense / step_bytes(vlm, rows, columns, tokens, kept, anchor)
            found.append({"visual_tokens": tokens, "batch": rows, "variant": name, "bound_over_dense": bound})
    return found
