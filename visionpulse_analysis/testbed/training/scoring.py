"""Loss and teacher-forced accuracy of a packed batch."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from visionpulse_analysis.attention.routing import Call, intercept
from visionpulse_analysis.testbed.training.batches import LANGUAGE
from visionpulse_analysis.testbed.training.packing import Batch, Language


def hidden_states(model, batch: Batch) -> torch.Tensor:
    """Last hidden states [row, L, width] of a packed batch."""
    return model.model(
        input_ids=batch.ids,
        attention_mask=batch.visible,
        position_ids=batch.positions,
        pixel_values=batch.pixels,
        image_grid_thw=batch.grid_thw,
        use_cache=False,
    ).last_hidden_state


def shared_prefix_attention(prefix: int):
    """Attention for packed rows that does not compute the prefix's masked half, nor prefix x conversations."""

    def attend(call: Call):
        query, key, value, mask, scaling = call.query, call.key, call.value, call.mask, call.scaling
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        first = scaled_dot_product_attention(
            query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], is_causal=True, scale=scaling
        )
        rest = scaled_dot_product_attention(
            query[:, :, prefix:], key, value, attn_mask=mask[:, :, prefix:], scale=scaling
        )
        return torch.cat([first, rest], dim=2).transpose(1, 2).contiguous(), None

    return attend


def scores(
    model, batch: Batch, language: Language = LANGUAGE, hidden: torch.Tensor | None = None
) -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
    """Loss (weighted mean cross-entropy over supervised tokens, nats) and teacher-forced (right, total).

    By kind of token, and by task over its answer tokens. hidden : the last states [row, L, width] of the batch, where
    they are not those of the model as it is.
    """
    if hidden is None:
        with intercept(model, shared_prefix_attention(batch.prefix)):
            hidden = hidden_states(model, batch)
    chosen = batch.target != -100
    logits, target, kind = model.lm_head(hidden[chosen]), batch.target[chosen], batch.kind[chosen]
    right = logits.argmax(-1) == target
    answers, task = kind == language.kinds.index("answer"), batch.task[chosen]
    groups = {name: kind == index for index, name in enumerate(language.kinds)}
    groups |= {name: answers & (task == index) for index, name in enumerate(language.tasks)}
    counts = {name: (int((right & members).sum()), int(members.sum())) for name, members in groups.items()}
    if not language.weights:
        return cross_entropy(logits.float(), target), counts
    weights = torch.tensor([language.weights.get(name, 1.0) for name in language.kinds], device=kind.device)[kind]
    each = cross_entropy(logits.float(), target, reduction="none")
    return (weights * each).sum() / weights.sum(), counts
