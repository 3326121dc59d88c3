"""LOOK-M: one cut of the cache after prefill, text first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from visionpulse_analysis._util.later import functional, torch
from visionpulse_analysis.pruners.base import Fraction, Pruner, Selection, Share
from visionpulse_analysis.pruners.top_k import float64, nearest_k, top_k
from visionpulse_analysis.pruners.view import Layout, View


@dataclass(frozen=True)
class LookM(Pruner):
    """After prefill, each layer keeps the patches that the whole prompt attended to most, where text leaves room.

    In the style of LOOK-M, arXiv 2406.18139, section 3. Of the prompt's T tokens the last ``floor(recent * T)``
    stay, and ``floor(heavy * T)`` of the others: text first, all of which stays in any case, then patches by their
    score, the sum of the softmax weights that all prompt queries give them. What is cut is merged into what is kept
    (pivot merging): with its most similar kept key, by the cosine, each cut key makes a pair, whose mean joins in the
    mean that takes the place of the kept key; values follow the keys. Keys are those of the cache, after rotary
    embedding. The authors choose per head; here the heads of a layer choose together, by the sum of their scores, and
    each head merges for itself. Prefill is dense.

    Parameters
    ----------
    heavy, recent : float
        Shares of the prompt's tokens, in 0..1; both 0.1 in the code.
    budget : float, optional
        Ours, for comparisons, in place of ``heavy``: the share of the patches that stay, in (0, 1], ``round(budget *
        n)`` of them with those among the last tokens, however long the text is.
    merge : "pivot" or "none"
        "none" forgets what is cut. The paper's averaged and weighted merging are left out.
    """

    name: ClassVar[str] = "lookm"

    heavy: Fraction = 0.1
    recent: Fraction = 0.1
    budget: Share | None = None
    merge: Literal["pivot", "none"] = "pivot"

    def begin(self, run: Selection) -> None:
        run.evicts, run.edits_cache = True, self.merge != "none"
        run.per_layer = []  # what each layer keeps, bool [row, patch]

    def observe_prefill(self, view: View, run: Selection) -> None:
        layout, width = run.layout, run.layout.text.shape[1]
        lengths = width - layout.starts
        recent, heavy = (
            torch.floor(share * float64(lengths) + 1e-9).long().to(lengths.device)
            for share in (self.recent, self.heavy)
        )
        old_text = layout.text & (torch.arange(width, device=recent.device) < width - recent[:, None])
        late = layout.patches & (layout.places >= width - recent[:, None])
        early = layout.patches & ~late
        # The other tokens of pictures stay as long as a patch does, and take their part of what text leaves.
        others = layout.others & (layout.other_places < width - recent[:, None])
        room = heavy - old_text.sum(dim=1) - others.sum(dim=1)
        if self.budget is not None:
            room = nearest_k(self.budget, layout.counts) - late.sum(dim=1)
        room = torch.minimum(room.clamp(min=0), early.sum(dim=1))
        run.per_layer.append(late | top_k(column_sums(view, layout).masked_fill(~early, -torch.inf), room))

    def edit_cache(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, left: torch.Tensor, run: Selection
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        layout, stay, length = run.layout, left & run.per_layer[layer], keys.shape[2]
        kept = layout.real(length) & ~layout.hidden_keys(stay, length)
        cut = layout.real(length) & ~layout.hidden_keys(left, length) & ~kept
        return merge_cut(keys, values, kept.to(keys.device), cut.to(keys.device)) if bool(cut.any()) else None

    def visible(self, view: View, run: Selection) -> torch.Tensor | None:
        return run.per_layer[view.layer]


def merge_cut(
    keys: torch.Tensor, values: torch.Tensor, kept: torch.Tensor, cut: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge the positions ``cut`` into those that are ``kept``, both bool [row, key].

    keys and values [row, kv_head, key, dim], as returned. Of equally similar positions the lower one is taken. 1024
    positions at a time, since all pairs take much memory.
    """
    units = functional.normalize(keys.float(), dim=-1)
    sums = [held.to(torch.float32, copy=True) for held in (keys, values)]
    counts = torch.ones_like(keys[..., :1], dtype=torch.float32)
    for columns in cut.any(dim=0).nonzero()[:, 0].split(1024):
        taken = cut[:, None, columns, None].float()
        similar = (units[:, :, columns] @ units.transpose(2, 3)).masked_fill(~kept[:, None, None], -torch.inf)
        # A position that is not cut in this row adds nothing to whatever it is most similar to.
        pivot = similar.argmax(dim=-1, keepdim=True)
        counts.scatter_add_(2, pivot, taken.expand_as(pivot).contiguous())
        for total, old in zip(sums, (keys, values), strict=True):
            wide = pivot.expand(-1, -1, -1, old.shape[3])
            pairs = (old[:, :, columns].float() + old.gather(2, wide).float()) / 2
            total.scatter_add_(2, wide, pairs * taken)
    return (sums[0] / counts).to(keys.dtype), (sums[1] / counts).to(values.dtype)


def column_sums(view: View, layout: Layout) -> torch.Tensor:
    """Attention that each patch gets from all prompt tokens and heads together: float32 [row, patch].

    256 queries at a time, since all pairs take much memory.
    """
    width = layout.text.shape[1]
    total = torch.zeros(layout.patches.shape, device=layout.patches.device)
    for start in range(0, width, 256):
        queries = torch.arange(start, min(start + 256, width), device=total.device).expand(len(total), -1)
        weights = (
            torch.softmax(view.query_logits(queries), dim=-1) * (queries >= layout.starts[:, None])[:, None, :, None]
        )
        # Padding sees nothing, which softmax makes NaN.
        total += weights.nan_to_num().sum(dim=(1, 2)).gather(1, layout.places)
    return total * layout.patches
