"""The module of `RelevanceCNN`: convolutions over what the patches are given."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from visionpulse_analysis.pruners.networks import Head


class Compressor(Head):
    """Depthwise-separable convolutions over the patches in reading order, the number of channels doubling.

    Parameters
    ----------
    first : int
        Channels after the first layer.
    layers, kernel : int
        How many layers, and how many neighbours each sees.
    """

    def __init__(self, first: int = 8, layers: int = 5, kernel: int = 3):
        super().__init__(first=first, layers=layers, kernel=kernel)
        widths = [1, *(first * 2**number for number in range(layers))]
        self.depth = nn.ModuleList(nn.Conv1d(n, n, kernel, padding=kernel // 2, groups=n) for n in widths[:-1])
        self.point = nn.ModuleList(nn.Conv1d(n, m, 1) for n, m in pairwise(widths))
        self.last = nn.Conv1d(widths[-1], 1, 1)

    def forward(self, attention: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Logarithm of the share of the relevance that each patch has: float32 [row, patch], -inf where absent.

        Parameters
        ----------
        attention : float32 [row, patch]
            What each patch is given, 0 or above; on whatever scale, for its logarithm over the mean is what is read.
        present : bool [row, patch]
            The patches that are there: none of them behind one that is not.
        """
        there = present[:, None].float()
        mean = (attention * present).sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True).clamp(min=1)
        x = (attention / mean.clamp(min=1e-12) + 1e-3).log()[:, None] * there
        for depth, point in zip(self.depth, self.point, strict=True):
            x = torch.relu(point(depth(x))) * there  # what is absent is as what lies beyond the edge
        return torch.log_softmax(self.last(x)[:, 0].masked_fill(~present, -torch.inf), dim=1)
