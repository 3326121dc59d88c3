"""Recorded quantities, worked out a second time and slowly, head by head, from one eager pass over a finished trace."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch


def slow_quantities(vlm, prompt, trace) -> dict[str, np.ndarray]:
    """``head_entropy`` [step, layer, head] and ``value_norm_attention`` [step, layer, head, patch] of all heads.

    Whatever the trace says was dropped (at all layers alike) is hidden by an explicit mask; values are what the layers'
    own ``v_proj`` puts out, and are multiplied by the whole of the head's columns of ``o_proj``.
    """
    ids = torch.from_numpy(trace.token_ids[:-1].copy())
    inputs = vlm.family.batch([prompt.answered(ids)], padding=0)
    position, places = vlm.family.positions(vlm.model, inputs), trace.grid.position
    length, first = inputs["input_ids"].shape[1], len(prompt.ids) - 1
    hidden = torch.ones(length, length).triu(1).bool()
    for step in range(1, len(trace) if trace.kept is not None else 0):
        hidden[first + step, places[~trace.kept.values[step]]] = True
    inputs["attention_mask"] = torch.zeros(1, 1, length, length).masked_fill(hidden, torch.finfo(torch.float32).min)
    attentions = [layer.self_attn for layer in vlm.model.get_decoder().layers]
    values: list[np.ndarray] = []
    vlm.model.set_attn_implementation({"text_config": "eager"})
    try:
        with ExitStack() as hooks, torch.no_grad():
            for one in attentions:
                hook = one.v_proj.register_forward_hook(lambda _, given, out: values.append(out[0].numpy()))
                hooks.callback(hook.remove)
            out = vlm.model(**inputs, position_ids=position, use_cache=False, output_attentions=True)
    finally:
        vlm.model.set_attn_implementation({"text_config": "sdpa"})
    heads, steps = vlm.n_heads, len(trace)
    entropy = np.zeros((steps, len(attentions), heads))
    norms = np.zeros((steps, len(attentions), heads, len(places)))
    for n, (one, value, rows) in enumerate(zip(attentions, values, out.attentions, strict=True)):
        matrix = one.o_proj.weight.detach().numpy().astype(float)
        dim = matrix.shape[1] // heads
        group = heads // (value.shape[1] // dim)  # query heads that share a value head
        for head in range(heads):
            own = head // group
            lengths = [
                np.linalg.norm(matrix[:, head * dim : (head + 1) * dim] @ value[place, own * dim : (own + 1) * dim])
                for place in places
            ]
            for step in range(steps):
                row = rows[0, head, first + step].numpy().astype(float)[places]
                norms[step, n, head] = row * lengths
                shares = row[row > 0] / row.sum()
                entropy[step, n, head] = -(shares * np.log(shares)).sum()
    return {"head_entropy": entropy, "value_norm_attention": norms}
