"""Which patches an answer depends on: attention weighted by its gradient, followed back through the layers."""

from __future__ import annotations

import torch

from visionpulse_analysis.attention.routing import Call, intercept
from visionpulse_analysis.models.families import Prompt
from visionpulse_analysis.models.loading import VLM


def relevance(vlm: VLM, prompt: Prompt, answer: torch.Tensor) -> torch.Tensor:
    """Mean relevance of each patch to the tokens of an answer (arXiv 2506.01097, section 3).

    For each token y: ``R = I``, then ``R <- R + E_h[(A * dA)^+] R`` from the first layer to the last, with A the
    attention of a layer and dA the gradient of y's logit with respect to it (that of its probability, which would do as
    well, vanishes where the model is sure); the row of the position that predicts y, at the patches. All tokens share
    one teacher-forced pass; memory grows with layers x heads x tokens squared.

    Parameters
    ----------
    vlm : VLM
    prompt : Prompt
        Of one question, as `VLM.prompt` builds it.
    answer : int64 [token]
        At least one token.

    Returns
    -------
    float32 [patch]
        0 or above, on the CPU.
    """
    vlm.check_ordinary("gradients of its attention are followed through all layers")
    n, weights = len(prompt.ids), _Weights()
    with torch.inference_mode(False), torch.enable_grad(), intercept(vlm.model, weights):
        # Made here, because the gradient does not take tensors of the inference mode around it.
        inputs = vlm.to_device(vlm.family.batch([prompt.answered(answer[:-1])], 0))
        position = vlm.family.positions(vlm.model, inputs)
        total = torch.zeros(len(prompt.grid))
        out = vlm.model(**inputs, position_ids=position, use_cache=False, logits_to_keep=len(answer))
        for number, token in enumerate(answer.tolist()):
            logit = out.logits[0, number, token]
            gradients = torch.autograd.grad(logit, weights.layers, retain_graph=True)
            # Only one row of R is asked for: it goes through the layers from the last one to the first.
            row = torch.zeros(n + len(answer) - 1, device=logit.device)
            row[n - 1 + number] = 1.0
            for attention, gradient in zip(reversed(weights.layers), reversed(gradients), strict=True):
                row = row + row @ (attention * gradient).clamp(min=0)[0].mean(dim=0).detach()
            total += row.cpu()[torch.tensor(prompt.grid.position)]
    return total / len(answer)


class _Weights:
    """An attention function that shows the weights of every layer, [1, head, query, key], to the gradient."""

    def __init__(self) -> None:
        self.layers: list[torch.Tensor] = []

    def __call__(self, call: Call):
        call.check_plain()
        query, key, value, attention_mask = call.query, call.key, call.value, call.mask
        group, n = query.shape[1] // key.shape[1], query.shape[2]
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        logits = (query @ key.transpose(2, 3)).float() * call.scaling
        if attention_mask is None:
            attention_mask = torch.ones(n, n, dtype=torch.bool, device=query.device).tril()
        boolean = attention_mask.dtype == torch.bool
        logits = logits.masked_fill(~attention_mask, -torch.inf) if boolean else logits + attention_mask.float()
        weights = torch.softmax(logits, dim=-1)
        if not weights.requires_grad:  # a model whose parameters are frozen
            weights = weights.requires_grad_()
        self.layers.append(weights)
        return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None
