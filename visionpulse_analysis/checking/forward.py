"""A prefill and some fixed next tokens, with any attention function or none at all: what the checks compare."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch

from visionpulse_analysis.attention import route, stock
from visionpulse_analysis.cache import make_cache
from visionpulse_analysis.families import Prompt
from visionpulse_analysis.models import VLM
from visionpulse_analysis.pruners.view import newest_logits


@torch.inference_mode()
def logits(vlm: VLM, prompt: Prompt, tokens: list[int], attend: Callable | None = None) -> torch.Tensor:
    """Logits of the newest token after the prompt and after each of ``tokens``: [step, word].

    ``attend`` is an attention function as `attention.route` takes it; without one the model runs as it is.
    """
    inputs = vlm.to_device(vlm.family.batch([prompt], padding=0))
    position = vlm.family.positions(vlm.model, inputs)
    inputs["position_ids"], mask, cache, rows = position, inputs["attention_mask"], make_cache(vlm.model), []
    with nullcontext() if attend is None else route(vlm.model, attend):
        for token in [*tokens, None]:
            out = vlm.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            rows.append(out.logits[0, -1])
            if token is not None:
                position, mask = position[..., -1:] + 1, torch.nn.functional.pad(mask, (0, 1), value=1)
                ids = torch.tensor([[token]], device=mask.device)
                inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position}
    return torch.stack(rows)


class RowsTimesValues:
    """Attention as it is, measuring how far the recorded row times the values is from the kernel's own output."""

    def __init__(self):
        self.worst = 0.0
        self.layers: set[int] = set()

    def __call__(self, module, query, key, value, mask, *, scaling=None, **options):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        output, weights = stock(module, query, key, value, mask, scaling=scaling, **options)
        rows = torch.softmax(newest_logits(query, key, mask, scaling), dim=-1)  # [row, head, key]
        values = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).float()
        expected = torch.matmul(rows[:, :, None], values)[:, :, 0]
        kernel = output[:, -1].float().view_as(expected)
        self.worst = max(self.worst, float((kernel - expected).abs().max() / expected.abs().max()))
        self.layers.add(module.layer_idx)
        return output, weights
