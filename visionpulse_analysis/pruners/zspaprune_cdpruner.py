"""Pruners that weigh relevance to the question against diversity of the kept patches, before the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from visionpulse_analysis._util.later import functional, torch
from visionpulse_analysis.pruners.base import BeforeModel, Fraction
from visionpulse_analysis.pruners.divprune import farthest, spread
from visionpulse_analysis.pruners.top_k import float64, nearest_k, top_k
from visionpulse_analysis.pruners.view import Layout, View


def prompt_states(view: View, layout: Layout, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of the prompt's tokens: float32 [row, token, width], and which of them count, bool [row, token]."""
    return view.states().float(), layout.question if prompt == "question" else layout.text


@dataclass(frozen=True)
class ZSPAPrune(BeforeModel):
    """Keep a core of patches like the prompt, and fill the budget with those least like any kept one.

    ZSPAPrune, arXiv 2510.17197, section 3. The core is the ``round(core * k)`` patches with the highest cosine to
    the mean embedding of the prompt; each next patch is the one that is least similar to the kept ones. No code was
    published: the core share, the words that are pooled and the similarity to several patches are not verified; the
    defaults are the documented reading.

    Parameters
    ----------
    budget : float
        Share kept in (0, 1], ``k = round(budget * n)``; the paper's headline is 0.1.
    core : float
        r of the paper, in 0..1: 0 is diversity alone (starting as DivPrune does), 1 relevance alone.
    prompt : "question" or "text"
        Words pooled: those of the question, or all text of the prompt with its template.
    similarity : "largest" or "sum"
        Of the cosines of a patch with the kept ones: the largest (max-min distance), or their sum.
    renumber : bool
        As in `BeforeModel`.
    """

    name: ClassVar[str] = "zspaprune"

    core: Fraction = 0.6
    prompt: Literal["question", "text"] = "question"
    similarity: Literal["largest", "sum"] = "largest"

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        states, words = prompt_states(view, layout, self.prompt)
        pooled = (states * words[..., None]).sum(dim=1) / words.sum(dim=1, keepdim=True).clamp(min=1)
        units = functional.normalize(view.patch_states(), dim=-1)
        like = (units @ functional.normalize(pooled, dim=-1)[..., None])[..., 0]
        like = like.masked_fill(~layout.patches, -torch.inf)
        size = torch.round(self.core * float64(k)).long().to(k.device)
        core = torch.where((size > 0)[:, None], top_k(like, size), farthest(units, layout.patches))
        return spread(units, core, k, layout.patches, total=self.similarity == "sum")


@dataclass(frozen=True)
class CDPruner(BeforeModel):
    """Keep the set that a determinantal point process, conditioned on the prompt, finds most probable (greedy MAP).

    CDPruner, arXiv 2506.10967, section 3. Kernel ``r_i S_ij r_j``: S the cosines of the patches' embeddings, r
    their relevance scaled to (0, 1]. The authors' relevance comes from CLIP's paired text tower, with its sign
    flipped; a language model has none, so relevance here is the mean cosine with the embeddings of the prompt's
    words, not flipped. As in their code, every picture, tile or frame that the vision tower reads by itself has a
    process of its own with the same share of its patches, while relevance is scaled over all of them.

    Parameters
    ----------
    budget : float
        Share kept in (0, 1], ``round(budget * n)`` of the n patches of each picture or tile, at least one.
    prompt : "question" or "text"
        Words compared with: those of the question, or all text of the prompt with its template.
    flip : bool
        Turn the sign of the relevance, as the authors do for CLIP.
    renumber : bool
        As in `BeforeModel`.
    """

    name: ClassVar[str] = "cdpruner"

    prompt: Literal["question", "text"] = "question"
    flip: bool = False

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        states, words = prompt_states(view, layout, self.prompt)
        # The mean of cosines with unit vectors is the product with their mean.
        summed = (functional.normalize(states, dim=-1) * words[..., None]).sum(dim=1)
        pooled = summed / words.sum(1, keepdim=True).clamp(min=1)
        units = functional.normalize(view.patch_states(), dim=-1)
        relevance = (units @ pooled[..., None])[..., 0] * (-1 if self.flip else 1)
        low = relevance.masked_fill(~layout.patches, torch.inf).amin(dim=1, keepdim=True)
        high = relevance.masked_fill(~layout.patches, -torch.inf).amax(dim=1, keepdim=True)
        weights, kept = (relevance - low + 1e-6) / (high - low + 1e-6), torch.zeros_like(layout.patches)
        for piece in range(int(layout.pieces.max()) + 1):
            own = layout.patches & (layout.pieces == piece)
            kept |= most_probable(units, weights, nearest_k(self.budget, own.sum(dim=1)), own)
        return kept


def most_probable(units: torch.Tensor, weights: torch.Tensor, k: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Greedy MAP of a determinantal point process with kernel ``weights_i cos_ij weights_j``: bool [row, patch].

    units float32 [row, patch, width] of length 1, weights float32 [row, patch], k int64 [row] to choose. After Chen,
    Zhang and Zhou (arXiv 1709.05135): ``left`` is what each patch would still add to the determinant.
    """
    rows, chosen = torch.arange(len(units), device=units.device), torch.zeros_like(patches)
    vectors = units * weights[..., None]
    left, made = (vectors**2).sum(dim=-1), []
    for _ in range(int(k.max())):
        open_to = patches & ~chosen
        pick = left.masked_fill(~open_to, -torch.inf).argmax(dim=1)
        new = (vectors @ vectors[rows, pick][..., None])[..., 0]
        for row_of in made:
            new = new - row_of * row_of[rows, pick][:, None]
        strength = left[rows, pick][:, None]
        # Beyond the rank of the kernel only rounding is left, which must not be divided by itself.
        new = torch.where(strength > 1e-7, new / strength.clamp(min=1e-7).sqrt(), 0.0)
        chosen[rows, pick] |= chosen.sum(dim=1) < k
        made.append(new)
        left = left - new**2
    return chosen
