"""CoViPAL: a small trained module reads patches and question, and says which patches the answer will need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from visionpulse_analysis.pruners.base import BeforeModel, LayerIndex, Selection
from visionpulse_analysis.pruners.heads import Head, Learned
from visionpulse_analysis.pruners.top_k import check_layer, nearest_k, top_k
from visionpulse_analysis.pruners.view import Layout, View


class Scorer(Head):
    """Scores patches by their hidden states and those of the question's words, which attend to one another.

    Parameters
    ----------
    width : int
        Of the hidden states.
    inner, heads, blocks : int
        Width, attention heads and number of the blocks.
    """

    def __init__(self, width: int, inner: int = 64, heads: int = 4, blocks: int = 2):
        super().__init__(width=width, inner=inner, heads=heads, blocks=blocks)
        self.read_patches = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU())
        self.read_words = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU())
        self.blocks = nn.ModuleList(Block(inner, heads) for _ in range(blocks))
        self.score = nn.Sequential(
            nn.LayerNorm(inner), nn.Linear(inner, inner // 2), nn.GELU(), nn.Linear(inner // 2, 1)
        )

    def forward(
        self, patches: torch.Tensor, words: torch.Tensor, present: torch.Tensor, asked: torch.Tensor
    ) -> torch.Tensor:
        """Scores of the patches: float32 [row, patch].

        Parameters
        ----------
        patches, words : float32 [row, patch, width] and [row, word, width]
        present, asked : bool [row, patch] and [row, word]
            Which of them are there.
        """
        said = self.read_words(words)
        tokens = torch.cat([self.read_patches(patches), said + places(said.shape[1], said.shape[2]).to(said)], dim=1)
        there = torch.cat([present, asked], dim=1)
        for block in self.blocks:
            tokens = block(tokens, there)
        seen = tokens[:, : patches.shape[1]]
        # Half of the channels are told of the picture as a whole, as in Dynamic-LLaVA's predictor.
        own, whole = seen.chunk(2, dim=2)
        whole = (whole * present[..., None]).sum(dim=1, keepdim=True) / present.sum(dim=1)[:, None, None].clamp(min=1)
        return self.score(torch.cat([own, whole.expand_as(own)], dim=2))[..., 0]


class Block(nn.Module):
    """Attention among all tokens that are there, and a perceptron."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """Tokens [row, token, width] after the block, of which those ``there``, bool [row, token], are seen."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.mix(self.before(tokens)).chunk(3, 2)
        )
        seen = scaled_dot_product_attention(query, key, value, attn_mask=there[:, None, None])
        tokens = tokens + self.out(seen.transpose(1, 2).flatten(2))
        return tokens + self.down(gelu(self.up(self.between(tokens))))


def places(count: int, width: int) -> torch.Tensor:
    """Sines and cosines that tell the order of ``count`` words: float32 [word, width]."""
    rates = 10_000 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(count, dtype=torch.float32)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


def words_of_question(states: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """The states of the question's words, float32 [row, word, width], and which are there, bool [row, word]."""
    counts = layout.question.sum(dim=1)
    order = torch.argsort(~layout.question, dim=1, stable=True)[:, : max(1, int(counts.max()))]
    asked = torch.arange(order.shape[1], device=counts.device)[None] < counts[:, None]
    return states.gather(1, order[..., None].expand(-1, -1, states.shape[2])).float() * asked[..., None], asked


@dataclass(frozen=True)
class CoViPAL(Learned, BeforeModel):
    """Keep the patches that a trained scorer ranks highest by patches and question, at one layer, for good.

    CoViPAL (EMNLP 2025 findings; "layer-wise contextualised visual token pruning", arXiv 2508.17243): a plug-in pruning
    module scores every patch by the hidden states of patches and text, and the ``round(budget * n)`` best go on; the
    model stays frozen. It is trained in two stages: to predict how much attention each patch will receive at a guidance
    layer, then end to end, the scores as a soft choice (`heads.guidance`, `heads.soft_choice` of the test bed).

    Unverified, since no code could be read: the layers of the module (here those of Dynamic-LLaVA's predictor, with the
    words of the question among the tokens that attend to one another), and how budgets are drawn in the second stage.
    Both are parameters of the head's training, and stand in its ``training.json``. Heads belong to one model; the
    bundled ones to "scenes".

    Parameters
    ----------
    budget : float
        Share kept, in (0, 1], any of them with the same head.
    renumber : bool
        As in `BeforeModel`.
    head : str
        A bundled head ("covipal"; "covipal-stage1" and "covipal-stage2" had one stage only), a folder with one, or
        "untrained": random weights, a control for any model.
    layer : int
        The layer of prefill whose entering states are scored, and the first that sees what is left; 0 is before the
        model. A head is trained for one layer.

    Raises
    ------
    ValueError
        When decoding begins: the head belongs to another model or layer, or there is none.
    """

    name: ClassVar[str] = "covipal"
    kind: ClassVar[type[Head]] = Scorer

    head: str = "covipal"
    layer: LayerIndex = 0

    def begin(self, run: Selection) -> None:
        check_layer("layer", self.layer, run.layout)
        run.head = self.loaded(run.layout, layer=self.layer)

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        if view.layer != self.layer:
            return None
        layout, patches = run.layout, view.patch_states()
        present = layout.patches if view.shown is None else view.shown
        scorer = Scorer.untrained(width=patches.shape[2]).to(patches) if run.head is None else run.head
        words, asked = words_of_question(view.states(), layout)
        scores = scorer(patches, words, present, asked)
        run.kept = top_k(scores.masked_fill(~layout.patches, -torch.inf), nearest_k(self.budget, layout.counts))
        return run.kept
