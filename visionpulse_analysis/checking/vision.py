"""Which tokens of a prompt a change in the picture reaches, through the model's own processor and vision tower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from visionpulse_analysis.families import Prompt
from visionpulse_analysis.models import VLM


class _Reached(Exception):
    """The language model was about to run; carries what it was given."""

    def __init__(self, embeddings: torch.Tensor):
        super().__init__()
        self.embeddings = embeddings


@contextmanager
def local_vision(vlm: VLM) -> Iterator[None]:
    """Silence attention in the vision tower, so that each patch shows its own pixels and no others."""

    def nothing(module: Any, given: Any, output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    def attends(module: torch.nn.Module) -> bool:
        return "Attention" in type(module).__name__

    language = set(vlm.model.get_decoder().modules())
    attention = [module for module in vlm.model.modules() if module not in language and attends(module)]
    # Of a whole block named after its attention, the attention inside.
    innermost = [module for module in attention if not any(map(attends, list(module.modules())[1:]))]
    handles = [module.register_forward_hook(nothing) for module in innermost]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def embeddings(vlm: VLM, prompt: Prompt) -> torch.Tensor:
    """What the language model reads: float32 [token, width], words and patches."""

    def stop(module: Any, args: Any, options: dict[str, Any]) -> None:
        raise _Reached(options["inputs_embeds"])

    inputs = vlm.to_device(vlm.family.batch([prompt], padding=0))
    position = vlm.family.positions(vlm.model, inputs)
    handle = vlm.model.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
    try:
        vlm.model(**inputs, position_ids=position, use_cache=False)
    except _Reached as reached:
        return reached.embeddings[0].float().cpu()
    finally:
        handle.remove()
    raise RuntimeError(f"the language model of {type(vlm.model).__name__} was never called")


def changes(vlm: VLM, before: Prompt, after: Prompt) -> np.ndarray:
    """How much each token's embedding differs between two prompts of one layout: float32 [token]."""
    with local_vision(vlm):
        one, other = (embeddings(vlm, prompt) for prompt in (before, after))
    return (one - other).norm(dim=1).numpy()


def lit(vlm: VLM, dark: Prompt, after: Prompt, bright: Prompt) -> np.ndarray:
    """How far each token has gone from how it looks in a dark picture to how it looks in a bright one.

    float32 [token] in [0, 1], of three prompts of one layout; 0 where the two look alike. The way gone, and not its
    length: a tower with few or random weights may answer to half the light of a patch with a longer step than to all.
    """
    with local_vision(vlm):
        here, there, now = (embeddings(vlm, prompt) for prompt in (dark, bright, after))
    gone, left = (now - here).norm(dim=1), (there - now).norm(dim=1)
    return (gone / (gone + left).clamp(min=torch.finfo(torch.float32).tiny)).numpy()


def brighten(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A copy of a picture uint8 [row_px, col_px, 3] with the inside of a box white."""
    left, top, right, bottom = np.clip(box, 0, [picture.shape[1], picture.shape[0]] * 2)
    rows = slice(int(np.ceil(top)), max(int(np.ceil(top)) + 1, int(bottom)))
    cols = slice(int(np.ceil(left)), max(int(np.ceil(left)) + 1, int(right)))
    bright = picture.copy()
    bright[rows, cols] = 255
    return bright
