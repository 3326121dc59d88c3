"""Which tokens of a prompt a change in the picture reaches, through the model's own processor and vision tower."""

from __future__ import annotations

import numpy as np
import torch

from visionpulse_analysis.models.families import Prompt
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.models.locating import probing
from visionpulse_analysis.models.locating.light import way_gone


def embeddings(vlm: VLM, prompt: Prompt) -> torch.Tensor:
    """What the language model reads, every patch by itself: float32 [token, width], words and patches."""
    inputs = vlm.to_device(vlm.family.batch([prompt], padding=0))
    return probing.embeddings(vlm.model, {**inputs, "position_ids": vlm.family.positions(vlm.model, inputs)}).cpu()


def changes(vlm: VLM, before: Prompt, after: Prompt) -> np.ndarray:
    """How much each token's embedding differs between two prompts of one layout: float32 [token]."""
    one, other = (embeddings(vlm, prompt) for prompt in (before, after))
    return (one - other).norm(dim=1).numpy()


def lit(vlm: VLM, dark: Prompt, after: Prompt, bright: Prompt) -> np.ndarray:
    """How far each token has gone from a dark picture to a bright one, of three prompts of one layout: `way_gone`."""
    return way_gone(*(embeddings(vlm, prompt) for prompt in (dark, after, bright)))


def brighten(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A copy of a picture uint8 [row_px, col_px, 3] with the inside of a box white."""
    left, top, right, bottom = np.clip(box, 0, [picture.shape[1], picture.shape[0]] * 2)
    rows = slice(int(np.ceil(top)), max(int(np.ceil(top)) + 1, int(bottom)))
    cols = slice(int(np.ceil(left)), max(int(np.ceil(left)) + 1, int(right)))
    bright = picture.copy()
    bright[rows, cols] = 255
    return bright
