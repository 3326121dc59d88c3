"""The module of CoViPAL: scores of patches by their states and those of the question's words."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from visionpulse_analysis.pruners.networks import Head


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
