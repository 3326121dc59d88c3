"""A prefill and some fixed next tokens, and how far attention on the way is off by rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from visionpulse_analysis.attention import Execution
from visionpulse_analysis.attention.routing import Call
from visionpulse_analysis.decoding.batch import Batch
from visionpulse_analysis.decoding.interventions.kinds import Intervention, Output, Run, Tokens
from visionpulse_analysis.decoding.interventions.passes import Steps, step_by_step
from visionpulse_analysis.decoding.options import Options
from visionpulse_analysis.decoding.trace_builder import Record
from visionpulse_analysis.models.families import Prompt
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.pruners.view import newest_logits


def forced(
    vlm: VLM,
    prompt: Prompt,
    tokens: Sequence[int],
    *,
    layers: Sequence[int] = (),
    pruner: Pruner | None = None,
    execution: Execution = "masked",
    watcher: Intervention | None = None,
) -> Steps:
    """Decode with given tokens in place of chosen ones, so that runs are compared on the same sequence.

    There is one step more than tokens; the axis of rows is left out.
    """
    options = Options(list(layers), None, pruner, execution, max_new_tokens=len(tokens) + 1)
    batch = Batch(vlm, [Record(vlm, prompt, 0, {}, layers=list(layers))], options)
    found = step_by_step(
        batch,
        [] if watcher is None else [watcher],
        lambda step, _: torch.tensor([tokens[step]]) if step < len(tokens) else None,
    )
    return Steps(found.logits[0], found.rows[0], found.mass[0])


class RowsTimesValues(Intervention):
    """Looks on at attention: how far is what it put out from softmax rows times values, written out in float32?

    Where a pruner hides patches, they are hidden from the rows. In units of rounding (`worst`): one of the output's
    dtype, relative to the largest output of the head and to the root of the summed squares of what is added up, since
    weights may be rounded too; and one of float32, in which kernels add up, relative to the largest value, times the
    depth of the sum over the keys (log2), and times the largest logit, because a logit that is off by so much of itself
    moves its weight by as many units.
    """

    def __init__(self):
        self.worst = 0.0
        self.layers: set[int] = set()

    def attend(self, call: Call, run: Run, tokens: Tokens) -> Output:
        query, key, value = call.query, call.key, call.value
        output, weights = run(call)
        logits = newest_logits(query.float(), key.float(), call.mask, call.scaling)  # [row, head, key]
        for group in tokens.groups:
            kept = group.shown[call.layer]
            if kept is not None:
                hidden = group.layout.keys_of(~kept, key.shape[2]).to(logits.device)
                logits = logits.masked_fill(hidden[:, None], -torch.inf)
            bias = group.biases[call.layer]
            if bias is not None:
                logits = logits + group.layout.at_keys(bias, key.shape[2]).to(logits.device)
        rows = torch.softmax(logits, dim=-1)
        values = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).float()
        added = rows[..., None] * values  # [row, head, key, dim]
        expected = added.sum(dim=2)
        kernel = output[:, -1].float().view_as(expected)
        of_dtype = expected.abs().amax(dim=-1) + added.square().sum(dim=2).sqrt().amax(dim=-1)
        steepest = 1 + logits.masked_fill(logits.isinf(), 0).abs().amax(dim=-1)
        of_sum = math.log2(2 + key.shape[2]) * steepest * values.abs().amax(dim=(2, 3))
        unit = torch.finfo(output.dtype).eps * of_dtype + torch.finfo(torch.float32).eps * of_sum
        off = (kernel - expected).abs().amax(dim=-1)
        self.worst = max(self.worst, float((off / unit.clamp(min=torch.finfo(torch.float32).tiny)).max()))
        self.layers.add(call.layer)
        return output, weights


class OneUnitOff(Intervention):
    """Moves every attention output by up to one unit of rounding of its dtype, relative to the largest of its head.

    No two ways of computing the same attention can be told to agree better than that: sums in another order, another
    kernel or other shapes of a batch differ by about so much. What it does to rows and logits further on is the noise
    floor of this model, whatever its depth, width and weights.
    """

    def __init__(self, seed: int):
        self.random = torch.Generator().manual_seed(seed)

    def attend(self, call: Call, run: Run, tokens: Tokens) -> Output:
        output, weights = run(call)  # [row, query, head, dim]
        unit = torch.finfo(output.dtype).eps * output.float().abs().amax(dim=-1, keepdim=True)
        sides = 2 * torch.rand(output.shape, generator=self.random) - 1
        return (output.float() + unit * sides.to(output.device)).to(output.dtype), weights
