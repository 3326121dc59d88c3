"""SparseVLM: the words that look at the image rate its patches, and what is dropped is recycled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from visionpulse_analysis._util.checks import Interval
from visionpulse_analysis._util.later import torch
from visionpulse_analysis.pruners.base import Fraction, Pruner, Selection
from visionpulse_analysis.pruners.density_peaks import density_peaks
from visionpulse_analysis.pruners.top_k import check_layer, top_k
from visionpulse_analysis.pruners.view import Layout, View

# Patches kept after layers 2, 6 and 15, by the mean number that a layer sees (`score.py` of the code, version 1.5).
SHARES_OF_576 = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}


@dataclass(frozen=True)
class SparseVLM(Pruner):
    """After some layers of prefill, keep the patches that rater words attend to most, and merge a part of the others.

    SparseVLM, arXiv 2410.04417, section 3, as in versions 1 and 1.5 of the code. Raters are the text tokens after the
    image whose share, ``softmax over text of E_v E_t`` of the input embeddings, mean over patches, is above average. A
    pruning layer runs as usual; a patch's score is its softmax weight, mean over heads and raters. Of the dropped
    patches, the best ``floor(recycled * dropped) + 1`` are gathered in ``floor(that / 10) + 1`` clusters (DPC-kNN on
    hidden states) and come back as one token each: the mean, at the place of the cluster's centre. The code appends
    them behind the image and numbers all positions anew: so does ``renumber=True``.

    Version 2.0 ("SparseVLM+") is left out: it divides the weights by those of queries and keys of ones under rotary
    embedding, for positions in one dimension, and counts the 14 of LLaVA's 32 heads with the most weight from text to
    the image. What else it does can be set: ``recycled=0``, its own shares, and positions stay as they were.

    Parameters
    ----------
    layers : tuple of int, optional
        Zero-based layers after which patches go; the code's 2, 6 and 15 of 32 if left out, scaled (version
        1.0 prunes after 19 as well).
    amount : "shares", "rank" or "paper"
        "shares" keeps a fixed number (1.5); "rank" ``floor(scale * rank + bias)`` (1.0), where rank is that of the
        matrix of weights [rater, patch]; "paper" drops ``floor(scale * (patches - rank))``. The last two never keep
        all, and do nothing where the rank is full.
    shares : tuple of float
        One per layer: share of the image kept, the code's 300, 200 and 110 of 576, which make 192 tokens a layer on
        average; `published` knows its other lists.
    scale : float
        For "rank" and "paper". Version 1.0 has 13.5 for 192 tokens on average, 9 with a bias of 6 for 128.
    bias : float
        For "rank": patches added to ``scale * rank``, in patches, 0 or above.
    recycled : float
        Share of the dropped patches that is recycled, in 0..1; 0.3 in the code. 0 recycles nothing.
    renumber : bool
        Count positions anew without the dropped patches, and put what is recycled behind the image, as versions 1.0
        and 1.5 of the code do, which published numbers come from; False keeps every token where the model put it. For
        models with one-dimensional positions that see the whole prompt in every layer; others raise ValueError when
        they decode.
    """

    name: ClassVar[str] = "sparsevlm"

    layers: tuple[int, ...] | None = None
    amount: Literal["shares", "rank", "paper"] = "shares"
    shares: tuple[float, ...] = (300 / 576, 200 / 576, 110 / 576)
    scale: Annotated[float, Interval(ge=0)] = 13.5
    bias: Annotated[float, Interval(ge=0)] = 0.0
    recycled: Fraction = 0.3
    renumber: bool = False

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        str(tokens): {"shares": tuple(kept / 576 for kept in counts)} for tokens, counts in SHARES_OF_576.items()
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"expected shares in (0, 1], got {self.shares}")
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers are rising layer indices, got {self.layers}")
        if self.amount == "shares" and len(self.shares) != (3 if self.layers is None else len(self.layers)):
            raise ValueError(f"expected one share per layer, got {self.shares} for {self.layers or 'three layers'}")

    @classmethod
    def published(cls, tokens: int = 192) -> SparseVLM:
        """The shares of version 1.5 of the code for LLaVA-1.5 and its 576 patches.

        Parameters
        ----------
        tokens : 192, 128, 96 or 64
            Patches that a layer sees on average.

        Returns
        -------
        SparseVLM

        Raises
        ------
        ValueError
            There is no list for that number.
        """
        if tokens not in SHARES_OF_576:
            raise ValueError(f"the authors give shares for {', '.join(map(str, SHARES_OF_576))} tokens, got {tokens!r}")
        return cls(**cls.presets[str(tokens)])

    def pruning_layers(self, n_layers: int) -> tuple[int, ...]:
        """Layers after which patches go, in a model of ``n_layers``."""
        scaled = sorted({max(1, round(layer / 32 * n_layers)) for layer in (2, 6, 15)})
        return tuple(scaled) if self.layers is None else self.layers

    def begin(self, run: Selection) -> None:
        run.layers = self.pruning_layers(run.layout.n_layers)
        for layer in run.layers:
            check_layer("layer", layer, run.layout)
        run.raters = None  # bool [row, token]
        run.left = run.layout.patches
        run.dropped = run.scores = None  # by the layer that is just running

    def left_before(self, layer: int, run: Selection) -> torch.Tensor | None:
        return run.left

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        if view.layer == 0:
            run.raters = find_raters(view, run.layout)
        now, run.dropped = run.left, None
        if view.layer in run.layers:
            self._rate(view.only(now), now, run)
        return now

    def _rate(self, view: View, now: torch.Tensor, run: Selection) -> None:
        """Score the patches left, bool [row, patch], and choose who stays after this layer."""
        if run.raters is None:
            raise RuntimeError("layer 0 was not seen before a pruning layer")
        scores, k = torch.zeros(now.shape, device=now.device), now.sum(dim=1)
        counts = run.raters.sum(dim=1).tolist()
        queries = torch.argsort(~run.raters, dim=1, stable=True)[:, : max(counts)]  # raters first
        rated = torch.softmax(view.query_logits(queries), dim=-1).mean(dim=1)
        for row, count in enumerate(counts):
            weights = rated[row, :count][:, run.layout.places[row]] * now[row]
            scores[row] = weights.mean(dim=0)
            k[row] = self._amount(weights[:, now[row]], int(run.layout.counts[row]), run.layers.index(view.layer))
        kept = top_k(scores.masked_fill(~now, -torch.inf), k)
        run.scores, run.dropped, run.left = scores, now & ~kept, kept

    def _amount(self, weights: torch.Tensor, whole: int, at: int) -> int:
        """How many of the patches left stay; weights float32 [rater, patch left], ``whole`` patches to begin with."""
        n = weights.shape[1]
        if self.amount == "shares":
            return min(n, max(1, round(self.shares[at] * whole)))
        rank = int(torch.linalg.matrix_rank(weights.float())) if n else 0
        if rank == n:
            return n
        kept = self.scale * rank + self.bias if self.amount == "rank" else n - int(self.scale * (n - rank))
        return max(0, min(n - 1, int(kept)))

    def rewrite(self, layer: int, states: torch.Tensor, run: Selection) -> torch.Tensor | None:
        if run.dropped is None or self.recycled == 0:
            return None
        states, left = states.clone(), run.left.clone()
        moved = torch.zeros_like(run.layout.places) if run.moved is None else run.moved.clone()
        for row in range(len(states)):
            dropped = run.dropped[row].nonzero()[:, 0]
            if len(dropped) == 0:
                continue
            count = min(len(dropped), int(self.recycled * len(dropped)) + 1)
            best = torch.argsort(run.scores[row, dropped], descending=True, stable=True)[:count]
            members = dropped[best]
            centres, owner = cluster(states[row, members].float(), count // 10 + 1)
            for number, centre in enumerate(centres.tolist()):
                states[row, members[centre]] = states[row, members[owner == number]].float().mean(0).to(states.dtype)
            left[row, members[centres]] = True
            moved[row, members[centres]] = moved[row].max() + 1 + torch.arange(len(centres), device=moved.device)
        run.left, run.moved = left, moved
        return states


def find_raters(view: View, layout: Layout) -> torch.Tensor:
    """The words that speak of the image, all of them where none stands out: bool [row, token]; a view of layer 0."""
    states, width = view.states().float(), layout.text.shape[1]
    # What ends a picture behind its last patch is no text, so this is the end of the whole image.
    last = layout.places.masked_fill(~layout.patches, -1).amax(dim=1, keepdim=True)
    words = layout.text & (torch.arange(width, device=last.device) > last)
    logits = (view.patch_states() @ states.transpose(1, 2)).masked_fill(~words[:, None], -torch.inf)
    shares = (torch.softmax(logits, dim=-1) * layout.patches[..., None]).sum(dim=1) / layout.counts[:, None]
    # The shares of a row's words sum to 1: their mean is one over the number of words.
    raters = words & (shares * words.sum(dim=1, keepdim=True) > 1)
    return torch.where(raters.any(dim=1, keepdim=True), raters, words)


def cluster(points: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find ``count`` clusters by density peaks with k nearest neighbours (DPC-kNN, Du, Ding and Jia 2016).

    A point is a centre if the product of its density and separation (`density_peaks`) is among the ``count`` largest.
    Every point belongs to its nearest centre, a centre to itself.

    Parameters
    ----------
    points : float32 [point, width]
    count : int
        1 to the number of points; also the number of neighbours.

    Returns
    -------
    centres : int64 [count]
        Indices of points.
    owner : int64 [point]
        Index into ``centres``.
    """
    distances, density, separation = density_peaks(points, count, tie="neither")
    centres = torch.argsort(density * separation, descending=True, stable=True)[:count]
    owner = distances[:, centres].argmin(dim=1)
    owner[centres] = torch.arange(count, device=points.device)
    return centres, owner
