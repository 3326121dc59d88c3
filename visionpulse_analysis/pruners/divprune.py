"""Pruners that spread the kept patches apart, before the language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from visionpulse_analysis._util.later import functional, torch
from visionpulse_analysis.pruners.base import BeforeModel, Share
from visionpulse_analysis.pruners.view import Layout, View


@dataclass(frozen=True)
class DivPrune(BeforeModel):
    """Keep the patches whose smallest cosine distance to one another is largest, greedily (max-min diversity).

    DivPrune, arXiv 2503.02175, section 3. The first patch is the one farthest from its nearest neighbour; each
    next one is the farthest from all chosen so far. No prompt, no attention. All patches of all pictures and tiles are
    one set; the authors' code does so for the tiles of a picture, their line breaks among the candidates, and leaves
    every picture after the first as it is.

    Parameters
    ----------
    budget : float
        Share kept, in (0, 1]; the authors' 0.098 by default.
    renumber : bool
        As in `BeforeModel`.
    """

    name: ClassVar[str] = "divprune"

    budget: Share = 0.098

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        units = functional.normalize(view.patch_states(), dim=-1)
        return spread(units, farthest(units, layout.patches), k, layout.patches)


def farthest(units: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Mark the patch of each row whose nearest other one is farthest away: bool [row, patch].

    units : float32 [row, patch, width] of length 1.
    """
    own = torch.eye(units.shape[1], dtype=torch.bool, device=units.device)
    nearest = _in_blocks(units, lambda similar, at: similar.masked_fill(~patches[:, None] | own[at], -torch.inf))
    first = nearest.masked_fill(~patches, torch.inf).argmin(dim=1)
    return torch.zeros_like(patches).scatter_(1, first[:, None], True)


def _in_blocks(units: torch.Tensor, hide: Callable[[torch.Tensor, slice], torch.Tensor]) -> torch.Tensor:
    """Largest similarity of each patch after ``hide``; 1024 patches at a time, since all pairs take much memory."""
    parts = [slice(start, start + 1024) for start in range(0, units.shape[1], 1024)]
    return torch.cat([hide(units[:, at] @ units.transpose(1, 2), at).amax(dim=2) for at in parts], dim=1)


def spread(
    units: torch.Tensor, chosen: torch.Tensor, k: torch.Tensor, patches: torch.Tensor, *, total: bool = False
) -> torch.Tensor:
    """Add to ``chosen``, bool [row, patch], the patch least similar to all of it, until each row has ``k`` int64 [row].

    Similarity to a set is the largest cosine with any of its members (max-min distance, not max-max), or, where
    ``total``, the sum of the cosines with all of them. Ties go to the lower index.
    """
    if total:
        near = (units @ (units * chosen[..., None]).sum(dim=1)[..., None])[..., 0]
    else:
        near = _in_blocks(units, lambda similar, at: similar.masked_fill(~chosen[:, None], -torch.inf))
    rows, chosen = torch.arange(len(units), device=units.device), chosen.clone()
    for _ in range(int((k - chosen.sum(dim=1)).max())):
        pick = near.masked_fill(chosen | ~patches, torch.inf).argmin(dim=1)
        chosen[rows, pick] |= chosen.sum(dim=1) < k
        new = (units @ units[rows, pick][..., None])[..., 0]
        near = near + new if total else torch.maximum(near, new)
    return chosen
