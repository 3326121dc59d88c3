"""A prefill and some fixed next tokens through the batches that `decode` uses: what the checks compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from visionpulse_analysis.attending import Execution
from visionpulse_analysis.attention import route
from visionpulse_analysis.collecting import Record
from visionpulse_analysis.decoding import Batch, Options
from visionpulse_analysis.families import Prompt
from visionpulse_analysis.models import VLM
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.pruners.logits import newest_logits


@torch.inference_mode()
def forced(
    vlm: VLM,
    prompt: Prompt,
    tokens: Sequence[int],
    *,
    layers: Sequence[int] = (),
    pruner: Pruner | None = None,
    execution: Execution = "masked",
    witness: Callable[[Callable], Callable] = lambda attend: attend,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode with given tokens in place of chosen ones, so that runs are compared on the same sequence.

    Returns
    -------
    logits, rows : float32 [step, word] and [step, layer, patch]
        Step 0 is prefill; there is one step more than tokens.
    """
    options = Options(list(layers), None, pruner, execution, max_new_tokens=len(tokens) + 1)
    batch = Batch(vlm, [Record(vlm, prompt, 0, {}, layers=list(layers))], options)
    logits, rows = [], []
    with route(vlm.model, witness(batch.attend)):
        for token in [None, *tokens]:
            if token is not None:
                batch.tokens = torch.tensor([token], device=vlm.model.device)
            logits.append((batch.prefill() if token is None else batch.step())[0])
            rows.append(batch.recorder.take()[0][0].float().cpu())
    return torch.stack(logits), torch.stack(rows)


class RowsTimesValues:
    """Looks on at attention: how far is the recorded row times the values from what the kernel put out?"""

    def __init__(self):
        self.worst = 0.0
        self.layers: set[int] = set()

    def __call__(self, attend: Callable) -> Callable:
        """Wrap an attention function."""

        def watched(module, query, key, value, mask, *, scaling=None, **options):
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            output, weights = attend(module, query, key, value, mask, scaling=scaling, **options)
            rows = torch.softmax(newest_logits(query, key, mask, scaling), dim=-1)  # [row, head, key]
            values = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).float()
            expected = torch.matmul(rows[:, :, None], values)[:, :, 0]
            kernel = output[:, -1].float().view_as(expected)
            self.worst = max(self.worst, float((kernel - expected).abs().max() / expected.abs().max()))
            self.layers.add(module.layer_idx)
            return output, weights

        return watched
