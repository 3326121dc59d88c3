"""Choosing the next token: greedy, or sampled with one generator per row."""

from __future__ import annotations

from math import isfinite

import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from visionpulse_analysis._util.checks import BROKEN
from visionpulse_analysis.models.sample import Sample
from visionpulse_analysis.pruners.top_k import float64, sent

__all__ = ["Chooser", "Sample", "check_chosen"]


def check_chosen(logprob: float) -> None:
    """Raise FloatingPointError unless this can be the logarithmic probability of a chosen token.

    It is NaN where any logit of its row was NaN or +inf, or all were -inf. So a GPU is asked only for the number that
    is recorded anyway.

    Parameters
    ----------
    logprob : float, natural logarithm
    """
    if not isfinite(logprob):
        raise FloatingPointError(BROKEN)


class Chooser:
    """Chooses tokens for a batch. A row's draws depend on its own seed only, not on the rest of the batch.

    Parameters
    ----------
    sample : Sample, or None for greedy
    seeds : list of int [row]
    """

    def __init__(self, sample: Sample | None, seeds: list[int]):
        self.warpers = [] if sample is None else _warpers(sample)
        self.sample = sample
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Next tokens int64 [row] from float32 logits [row, word].

        Raises FloatingPointError for broken logits on a CPU; on a GPU, which would have to be waited for, their
        logarithmic probability says it (`check_chosen`).
        """
        if logits.device.type == "cpu":
            broken = torch.isnan(logits) | torch.isposinf(logits) | torch.isneginf(logits).all(dim=1, keepdim=True)
            if broken.any():
                raise FloatingPointError(BROKEN)
        if self.sample is None:
            return logits.argmax(dim=1)
        scores = logits
        for warper in self.warpers:
            scores = warper(None, scores)  # pyright: ignore[reportArgumentType]
        # Ordered, so that a draw moves little where the logits do.
        ordered, words = torch.sort(torch.softmax(float64(scores), dim=1), dim=1, descending=True, stable=True)
        levels = ordered.cumsum(dim=1)
        draws = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in self.generators])
        shares = sent(draws, levels.device) * levels[:, -1]
        ranks = torch.searchsorted(levels, shares[:, None], right=True)
        # Rows of NaN are noticed by their logarithmic probability; here they only must not break the others.
        ranks = ranks.clamp(max=(ordered > 0).sum(dim=1, keepdim=True) - 1).clamp(min=0)
        return words.gather(1, ranks)[:, 0].to(logits.device)

    def drop_rows(self, rows: torch.Tensor) -> None:
        """Keep only these `rows` of the batch, int64 [remaining]."""
        self.generators = [self.generators[i] for i in rows.tolist()]


def _warpers(sample: Sample) -> list[LogitsProcessor]:
    """The library's own: its rounding at the edge of a nucleus, and its order of ties, decide who is in it."""
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(float(sample.temperature))]
    if sample.top_k is not None:
        warpers.append(TopKLogitsWarper(int(sample.top_k)))
    if sample.top_p < 1:
        warpers.append(TopPLogitsWarper(float(sample.top_p)))
    return warpers
