"""What the library's own eager attention gives for a finished trace."""

from __future__ import annotations

import torch


def eager_run(vlm, picture, trace) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the prompt and all tokens of a dense trace through the model at once, under eager attention.

    Returns
    -------
    attention : float32 [step, layer, head, key]
        Rows of the queries that produced the tokens; keys beyond a step's own have weight 0.
    logits : float32 [step, word]
    """
    prompt = vlm.prompt(picture, trace.question)
    whole = prompt.answered(torch.from_numpy(trace.token_ids[:-1].copy()))
    vlm.model.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.inference_mode():
            out = vlm.model(**vlm.family.batch([whole], padding=0), output_attentions=True)
    finally:
        vlm.model.set_attn_implementation({"text_config": "sdpa"})
    first = len(prompt.ids) - 1
    return torch.stack(out.attentions, dim=1)[0][:, :, first:].permute(2, 0, 1, 3), out.logits[0, first:]
