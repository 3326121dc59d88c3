"""Whether pictures are of the kind that a model was trained on, where its configuration states the kind.

A model of drawn pictures answers a photograph as fluently as anything else, with words that are not about it. The
bundled models state what their pictures are made of: a light grey paper and things in few colours on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PAPER, INK = 24, 40  # of 255, by how much pixels of noise, of edges and of JPEG may be off
LEAST_PAPER, LEAST_INK, LEAST_KNOWN = 0.3, 0.002, 0.9  # shares of the pixels


def unlike_training(stated: Mapping[str, Any] | None, images: Sequence[np.ndarray]) -> str | None:
    """Say that a model knows nothing of such pictures; None where it may, or does not state what it was trained on.

    Parameters
    ----------
    stated : mapping or None
        ``config.visionpulse_pictures``: what they are (``what``), the lightness of their paper (``paper``, lowest and
        highest, 0 to 255) and the ``colours`` of what stands on it (0 to 255 each).
    images : sequence of uint8 [row_px, col_px, 3]

    Returns
    -------
    str or None
        One sentence.
    """
    if not stated:
        return None
    odd = [number for number, image in enumerate(images, 1) if not _alike(np.asarray(image), **_look(stated))]
    if not odd:
        return None
    which = "The picture" if len(images) == 1 else f"Of the pictures, number {', '.join(map(str, odd))}"
    return f"{which} is not of the kind that this model was trained on ({stated['what']}): its words are not about it."


def _look(stated: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(stated[name], float) for name in ("paper", "colours")}


def _alike(image: np.ndarray, paper: np.ndarray, colours: np.ndarray) -> bool:
    pixels = image.reshape(-1, 3).astype(float)
    grey = pixels.mean(axis=1, keepdims=True).clip(*paper)
    blank = (abs(pixels - grey) < PAPER).all(axis=1)
    # Pixels at the edge of a thing, or of a faint one, are mixtures of its colour and the paper.
    middle = paper.mean()
    off, lines = pixels[~blank] - middle, colours - middle
    along = (off @ lines.T / (lines**2).sum(axis=1)).clip(0, 1)
    nearest = np.linalg.norm(off[:, None] - along[..., None] * lines, axis=2).min(axis=1, initial=np.inf)
    known = blank.sum() + (nearest < INK).sum()
    return blank.mean() >= LEAST_PAPER and (~blank).mean() >= LEAST_INK and known >= LEAST_KNOWN * len(pixels)
