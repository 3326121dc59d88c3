"""The language model with words and patches in two streams: what a pattern leaves out is not computed at all.

Patches that no later layer reads end where they are; frozen ones only give keys and values. Masked execution
(`attention.patterns`) computes every row and hides; the two agree but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

from visionpulse_analysis.pruners.pattern import Pattern
from visionpulse_analysis.testbed.training.packing import Batch

Rotary = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Pictures:
    """What the vision tower makes of the pictures of a batch: states [row, patch, width], and what layers add."""

    states: torch.Tensor
    deepstack: list[torch.Tensor]


def see(model: Any, batch: Batch) -> Pictures:
    """Run the vision tower, which is not trained here."""
    with torch.no_grad():
        found = model.model.visual(batch.pixels, grid_thw=batch.grid_thw)
    rows = len(batch.ids)
    states, *deepstack = (one.unflatten(0, (rows, -1)) for one in (found.pooler_output, *found.deepstack_features))
    return Pictures(states, deepstack)


def states_under(
    model: Any, batch: Batch, pattern: Pattern, pictures: Pictures | None = None, *,
    neighbours: torch.Tensor | None = None, last_neurons: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Last hidden states [row, L, width] of a packed batch under a pattern, 0 at the patches.

    Parameters
    ----------
    model : Qwen3VLForConditionalGeneration
    batch : Batch
        With pictures of one size, whose patches stand in the same columns of all rows.
    pattern : Pattern
    pictures : Pictures, optional
        Those of `see`, where they are known.
    neighbours : bool [patch, patch], optional
        Which patches each patch sees, in place of the pattern's window: a control.
    last_neurons : bool
        Whether pictures use the last neurons in place of the first: a control.
    """
    language = model.model.language_model
    pictures = see(model, batch) if pictures is None else pictures
    is_patch = batch.ids[0] == model.config.image_token_id
    columns, image = (~is_patch).nonzero()[:, 0], is_patch.nonzero()[:, 0]
    before, n = int(image[0]), len(image)
    words, patches = language.embed_tokens(batch.ids[:, columns]), pictures.states
    cos, sin = language.rotary_emb(words, batch.positions)
    at_words, at_patches = (cos[:, columns], sin[:, columns]), (cos[:, image], sin[:, image])
    among = batch.visible[:, :, columns]
    text, whole = among[..., columns], torch.cat([among[..., image], among[..., columns]], dim=-1)
    if batch.grid_thw is None:
        raise ValueError("expected a batch with pictures; drills have none")
    count = len(language.layers)
    working = [
        number not in pattern.frozen and any(later not in pattern.blind for later in range(number + 1, count))
        for number in range(count)
    ]
    own = neighbours
    if own is None and any(working):
        own = window_of(n, int(batch.grid_thw[0, 2]), pattern.window, patches.device)
    of_patches = None if own is None else torch.cat([own, own.new_ones(n, before)], dim=1)
    for number, block in enumerate(language.layers):
        seen = number not in pattern.blind
        works = working[number]
        active = torch.ones(block.self_attn.config.num_attention_heads, 1, 1, device=words.device)
        active[pattern.inactive(number)] = 0
        query, key, value = _projected(block, words, at_words)
        mask = text
        read_key, read_value = key, value
        if seen or works:
            its_query, its_key, its_value = _projected(block, patches, at_patches)
            if seen:
                read_key, mask = torch.cat([its_key, key], dim=2), whole
                read_value = torch.cat([its_value * active, value], dim=2)
            if works:
                keys, values = (torch.cat([a, b[:, :, :before]], 2) for a, b in ((its_key, key), (its_value, value)))
                mixed = active * scaled_dot_product_attention(its_query, keys, values, attn_mask=of_patches)
                patches = _leaving(block, patches, mixed, pattern.mlp_share, last_neurons)
        words = _leaving(block, words, scaled_dot_product_attention(query, read_key, read_value, attn_mask=mask))
        if number < len(pictures.deepstack):
            patches = patches + pictures.deepstack[number]
    whole_states = words.new_zeros(*batch.ids.shape, words.shape[2])
    return whole_states.index_copy(1, columns, language.norm(words))


def window_of(n: int, cols: int, window: int | None, device: Any) -> torch.Tensor:
    """Which of ``n`` patches in rows of ``cols`` each patch sees: bool [patch, patch], causal without a window."""
    if window is None:
        return torch.ones(n, n, dtype=torch.bool, device=device).tril()
    place = torch.arange(n, device=device)
    apart = [(one[:, None] - one).abs() for one in (place // cols, place % cols)]
    return torch.maximum(*apart) <= window // 2


def _projected(block: Any, states: torch.Tensor, at: Rotary) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value [row, query head, token, dim] of some tokens."""
    attention, entering = block.self_attn, block.input_layernorm(states)
    shape = (*states.shape[:2], -1, attention.head_dim)
    query = attention.q_norm(attention.q_proj(entering).view(shape)).transpose(1, 2)
    key = attention.k_norm(attention.k_proj(entering).view(shape)).transpose(1, 2)
    value = attention.v_proj(entering).view(shape).transpose(1, 2)
    query, key = apply_rotary_pos_emb(query, key, *at)
    shared = query.shape[1] // key.shape[1]
    return query, key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)


def _leaving(
    block: Any, states: torch.Tensor, mixed: torch.Tensor, share: float = 1.0, last: bool = False
) -> torch.Tensor:
    """The states after attention has put out ``mixed`` [row, head, token, dim], and after a share of the MLP."""
    states = states + block.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
    entering, mlp = block.post_attention_layernorm(states), block.mlp
    count = mlp.gate_proj.out_features
    used = slice(count - round(share * count), None) if last else slice(round(share * count))
    neurons = mlp.act_fn(entering @ mlp.gate_proj.weight[used].T) * (entering @ mlp.up_proj.weight[used].T)
    return states + neurons @ mlp.down_proj.weight[:, used].T
