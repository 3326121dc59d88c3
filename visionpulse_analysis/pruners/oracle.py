"""A reference that no method can have: the patches that the dense answer is known to depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from visionpulse_analysis.pruners.base import Selection
from visionpulse_analysis.pruners.divprune import BeforeModel, BeforeModelSelection
from visionpulse_analysis.pruners.top_k import top_k
from visionpulse_analysis.pruners.view import Layout, View


@dataclass(frozen=True)
class Oracle(BeforeModel):
    """Keep the patches that the model's own dense answer is most relevant to, before the language model.

    The oracle of arXiv 2506.01097 (section 3; gradient-weighted attention relevance, see `relevance.relevance`): it
    decodes each prompt densely and greedily, then follows every answered token back to the image. A reference for
    comparisons, many times as costly as dense decoding, and not a way to save anything; no upper bound either: it is
    chosen once before the model, from the dense answer, and a pruner that chooses at each step can beat it.

    Parameters
    ----------
    budget : float
        Share kept in (0, 1], ``round(budget * n)`` patches.
    tokens : int
        The relevance is the mean over so many tokens from the beginning of the answer, or all it has.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    name: ClassVar[str] = "oracle"

    tokens: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens}")

    def start(self, layout: Layout) -> Selection:
        if layout.relevance is None:
            raise ValueError("the oracle needs the model: use it through decode")
        return _OracleSelection(self, layout, layout.relevance(self.tokens))


class _OracleSelection(BeforeModelSelection):
    def __init__(self, pruner: Oracle, layout: Layout, relevance: torch.Tensor):
        super().__init__(pruner, layout)
        self.relevance = relevance

    def keep(self, view: View, k: torch.Tensor) -> torch.Tensor:
        return top_k(self.relevance.masked_fill(~self.layout.patches, -torch.inf), k)
