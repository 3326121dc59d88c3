"""Choosing whole blocks of the sequence, as the authors' GPU code of VisionPulse does (their ``visionpulse/triton``).

The sequence of a row, without its padding, is cut into blocks of ``size`` tokens. Only blocks that consist of image
tokens can be dropped (of which the patches then are); blocks that mix text and image are always kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch

from visionpulse_analysis.pruners.top_k import float64, top_k
from visionpulse_analysis.pruners.view import Layout


@dataclass
class Blocks:
    """The blocks of a batch at one step.

    shares : float32 [row, head, block], softmax over all blocks of the largest logit inside each, at a temperature.
    prunable : bool [row, block], blocks that consist of patches, and perhaps other tokens of pictures.
    owner : int64 [row, patch], the block that each patch is in.
    """

    shares: torch.Tensor
    prunable: torch.Tensor
    owner: torch.Tensor
    size: int

    @classmethod
    def of(cls, logits: torch.Tensor, layout: Layout, size: int, temperature: float) -> Blocks:
        """Cut float32 logits [row, head, key], -inf where masked, into blocks."""
        keys = torch.arange(logits.shape[2], device=logits.device)
        block = ((keys[None] - layout.starts[:, None]) // size).clamp(min=0)
        owner = ((layout.places - layout.starts[:, None]) // size).clamp(min=0)
        n_blocks = -(-logits.shape[2] // size)
        largest = logits.new_full((*logits.shape[:2], n_blocks), -torch.inf)
        largest.scatter_reduce_(2, block[:, None].expand_as(logits), logits, "amax")
        return cls(torch.softmax(largest / temperature, dim=-1), _pure(layout, owner, size, n_blocks), owner, size)

    @property
    def mass(self) -> torch.Tensor:
        """Share of the prunable blocks, maximum over heads: float32 [row] in 0..1."""
        return (self.shares * self.prunable[:, None]).sum(dim=-1).amax(dim=1).clamp(0.0, 1.0)

    @staticmethod
    def most(share: float, layout: Layout, size: int) -> tuple[int, int]:
        """No row keeps more prunable blocks than this, and more patches, with at most such a share as budget."""
        blocks = ceil(share * layout.patches.shape[1] / size)
        owner = ((layout.places - layout.starts[:, None]) // size).clamp(min=0)
        inside = torch.zeros(len(owner), int(owner.max()) + 1, dtype=torch.int64, device=owner.device)
        inside.scatter_add_(1, owner, layout.patches.long())
        mixed = int((inside * ~_pure(layout, owner, size, inside.shape[1])).sum(dim=1).max())
        return blocks, min(layout.patches.shape[1], blocks * size + mixed)

    def keep(
        self,
        budget: torch.Tensor,
        layout: Layout,
        previous: torch.Tensor | None,
        bonus: float,
        most: int | None = None,
    ) -> torch.Tensor:
        """Patches kept, bool [row, patch]: those of the best blocks by head-mean share, and of all mixed blocks.

        ``ceil(budget * n / size)`` of the prunable blocks, at least 1, at most all; ties by lower index. The share of
        a block in ``previous`` (patches kept before, bool [row, patch]) counts ``exp(bonus)`` times. most : no row
        keeps more prunable blocks, where that is known without asking the device.
        """
        wanted = torch.ceil(float64(budget) * float64(layout.counts) / self.size - 1e-9).long().clamp(min=1)
        wanted = wanted.to(layout.device)
        scores = self.shares.mean(dim=1)
        if previous is not None and bonus:
            again = torch.zeros_like(scores).scatter_reduce(1, self.owner, previous.float(), "amax")
            scores = scores * torch.exp(bonus * again)
        wanted = torch.minimum(wanted, self.prunable.sum(dim=1))
        best = top_k(scores.masked_fill(~self.prunable, -torch.inf), wanted, most)
        return (best | ~self.prunable).gather(1, self.owner) & layout.patches


def _pure(layout: Layout, owner: torch.Tensor, size: int, n_blocks: int) -> torch.Tensor:
    """Which blocks consist of tokens of pictures and have patches, given each patch's ``owner``: bool [row, block]."""
    patches, images = (torch.zeros(len(owner), n_blocks, dtype=torch.int64, device=owner.device) for _ in range(2))
    patches.scatter_add_(1, owner, layout.patches.long())
    others = ((layout.other_places - layout.starts[:, None]) // size).clamp(0, n_blocks - 1)
    images.scatter_add_(1, others, layout.others.long())
    return (patches > 0) & (patches + images == size)
