"""Which heads attend to pictures at all: YOPO's statistic, and the heads that it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from visionpulse_analysis.attention.routing import Call
from visionpulse_analysis.decoding.interventions.kinds import Intervention, Output, Run, Tokens
from visionpulse_analysis.decoding.interventions.passes import TeacherForced
from visionpulse_analysis.models.loading import VLM


def head_ratios(vlm: VLM, samples: Sequence[tuple[Any, str]]) -> np.ndarray:
    """Attention mass on pictures over mass on all else, summed over the queries of a prompt, by layer and head.

    YOPO (arXiv 2410.06169) and its code for LLaVA.

    Parameters
    ----------
    vlm : VLM
    samples : sequence of (images, question)

    Returns
    -------
    float64 [sample, model_layer, head], 0 or above
    """
    found = []
    for images, question in samples:
        prompt = vlm.prompt(images, question)
        mass = _Mass()
        TeacherForced(vlm, [prompt], [[len(prompt.ids) - 1]]).read(mass)
        found.append(np.stack([mass.ratios[layer] for layer in range(vlm.n_layers)]))
    return np.stack(found)


def active_heads(
    ratios: np.ndarray, share: float, *, votes: float = 0.4, exempt: Sequence[int] = (0,)
) -> tuple[tuple[bool, ...], ...]:
    """The heads to keep, so many that they are a share of all: [layer][head], as `Pattern.heads`.

    A head is kept if its ratio is above a threshold in more than ``votes`` of the samples, as in the authors' code; the
    threshold is the one that keeps the share.

    Parameters
    ----------
    ratios : float [sample, model_layer, head], of `head_ratios`
    share : float, in (0, 1]
    votes : float, in [0, 1)
        The authors' is 40 of 100.
    exempt : sequence of int
        Layers whose heads are all kept; in the authors' masks the first two of 32 or 40.

    Raises
    ------
    ValueError
        A share is out of range.
    """
    if not 0 < share <= 1 or not 0 <= votes < 1:
        raise ValueError(f"share must be in (0, 1] and votes in [0, 1), got {share} and {votes}")
    # The threshold lies below the value that more than so many reach; 0.29 of 100 is 28.999... in floats.
    needed = int(np.floor(votes * len(ratios) + 1e-9))
    score = np.sort(ratios, axis=0)[::-1][min(needed, len(ratios) - 1)]
    score[list(exempt)] = np.inf
    count = max(round(share * score.size), int(np.isinf(score).sum()))
    kept = np.zeros(score.size, dtype=bool)
    kept[np.argsort(-score.ravel(), kind="stable")[:count]] = True
    return tuple(tuple(layer) for layer in kept.reshape(score.shape).tolist())


class _Mass(Intervention):
    """Notes the ratio of every head, and changes nothing."""

    def __init__(self) -> None:
        self.ratios: dict[int, np.ndarray] = {}

    def attend(self, call: Call, run: Run, tokens: Tokens) -> Output:
        call.check_plain()
        _, heads, n, _ = call.query.shape
        key = call.key.repeat_interleave(heads // call.key.shape[1], dim=1)
        logits = (call.query @ key.transpose(2, 3)).float() * call.scaling
        mask = torch.ones(n, n, dtype=torch.bool, device=logits.device).tril() if call.mask is None else call.mask
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()
        images = tokens.layout.image_keys(n).to(logits.device)
        by_column = torch.softmax(logits, dim=-1).double().sum(dim=2)  # [row, head, key]
        seen = (by_column * images[:, None]).sum(dim=(0, 2))
        self.ratios[call.layer] = (seen / (by_column.sum(dim=(0, 2)) - seen)).cpu().numpy()
        return run(call)
