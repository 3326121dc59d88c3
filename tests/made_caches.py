"""Batches of patches and text, and caches that have grown by some steps."""

from __future__ import annotations

import numpy as np
import torch
from slow_pruners import Batch, random_batch

from visionpulse_analysis.attention.cache import GrowingLayer

HEADS, KV_HEADS, DIM = 6, 2, 8


def many_images(rng, images: int) -> Batch:
    """Two rows with so many images of 5 patches each, with 1 to 4 tokens of text between them."""
    places, lengths = [], []
    for _ in range(2):
        gaps = rng.integers(1, 5, images)
        firsts = np.cumsum(gaps) + 5 * np.arange(images)
        places.append((firsts[:, None] + np.arange(5)).ravel())
        lengths.append(int(firsts[-1] + 5 + rng.integers(1, 9)))
    return Batch(places, lengths)


BATCHES = {
    "padded": lambda rng: random_batch(rng, 3),
    "alone": lambda rng: random_batch(rng, 1),
    "alike": lambda rng: Batch([np.arange(4, 30)] * 2, [40, 40]),
    "many images": lambda rng: many_images(rng, 9),
}


def cached(batch, steps, generator):
    """Keys and values of a cache that has grown by some steps, and the newest query."""
    layer, rows = GrowingLayer(), len(batch.places)
    for length in (batch.width, *[1] * steps):
        layer.update(*(torch.randn(rows, KV_HEADS, length, DIM, generator=generator) for _ in range(2)))
    return torch.randn(rows, HEADS, 1, DIM, generator=generator), layer.keys, layer.values


def mask_of(batch, columns):
    starts = batch.layout().starts
    real = torch.arange(columns)[None] >= starts[:, None]
    return real[:, None, None] if starts.any() else None


def choice(batch, rng, share=0.3):
    layout = batch.layout()
    return torch.from_numpy(rng.random(layout.patches.shape) < share) & layout.patches
