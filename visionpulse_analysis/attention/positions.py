"""Positions counted anew without what prefill has dropped, as in code that takes tokens out of the sequence.

A rotary position goes into queries and keys before the attention, and into the cache. So a layer is told the new
positions when it is entered; where a pruner chooses by looking at a layer with the old ones, that layer runs once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from visionpulse_analysis.attention.cache import GrowingLayer
from visionpulse_analysis.pruners.view import Layout

Positions = Callable[[int], torch.Tensor | None]


def check_one_dimensional(name: str, model: Any, mrope: bool, windows: Any) -> None:
    """Raise ValueError for a model in which positions cannot be counted anew.

    Parameters
    ----------
    name : of the model, for the error
    model : PreTrainedModel
    mrope : whether its positions have a time, a row and a column
    windows : layers that see a sliding window; empty if none does
    """
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    kind = str(getattr(rotary, "rope_type", "default"))
    if mrope:
        why = "its positions have a time, a row and a column (M-RoPE), and a patch left out has no place to close up"
    elif windows:
        why = f"layers {sorted(windows)} see a sliding window, which is counted over tokens that are there"
    elif rotary is None or kind in ("dynamic", "longrope"):
        why = f"its rotary embedding ({kind if rotary is not None else 'none'}) is not a function of the position alone"
    else:
        return
    raise ValueError(f"positions of {name} cannot be counted anew: {why}; say renumber=False")


def ranks(layout: Layout, moved: torch.Tensor | None, n_tokens: int) -> torch.Tensor:
    """The order of the tokens of a prompt: int64 [row, token], larger is later.

    moved : int64 [row, patch], 0 for patches in their places, or 1, 2 .. for those that stand behind the whole image,
        in that order.
    """
    places = torch.arange(n_tokens, device=layout.device).expand(len(layout.patches), -1)
    if moved is None or not moved.any():
        return places
    apart = int(moved.max()) + 1
    images = layout.image_keys(n_tokens)
    last = torch.where(images, places, -1).amax(dim=1, keepdim=True)
    order = places * apart
    rows, patches = ((moved > 0) & layout.patches).nonzero(as_tuple=True)
    order[rows, layout.places[rows, patches]] = last[rows, 0] * apart + moved[rows, patches]
    return order


def positions_of(layout: Layout, shown: torch.Tensor, moved: torch.Tensor | None, n_tokens: int) -> torch.Tensor:
    """Positions of a prompt's tokens when only the patches ``shown``, bool [row, patch], exist: int64 [row, token].

    What does not exist has the position of the token before it.
    """
    there = layout.real(n_tokens) & ~layout.hidden_keys(shown, n_tokens)
    by_rank = ranks(layout, moved, n_tokens).argsort(dim=1)
    counted = there.gather(1, by_rank).cumsum(dim=1) - 1
    return torch.empty_like(counted).scatter_(1, by_rank, counted).clamp(min=0)


@contextmanager
def renumbered(model: Any, positions: Positions, ran_with_old: Callable[[int], bool] = lambda layer: False) -> Iterator:
    """Tell each decoder layer where its tokens stand, for as long as the block lasts.

    Parameters
    ----------
    model : PreTrainedModel
    positions : layer -> int64 [row, token], added to the first position of the prompt, or None for those of the model
    ran_with_old : layer -> whether, after it has run, its tokens stand elsewhere than when it was entered; it then
        forgets what it has cached and runs again.
    """
    decoder = model.get_decoder()

    def moved(number: int, args: tuple, options: dict[str, Any]) -> dict[str, Any] | None:
        new = positions(number)
        if new is None:
            return None
        states = args[0] if args else options["hidden_states"]
        new = new.to(states.device)
        given = {"position_ids": new} if options.get("position_ids") is not None else {}
        return {**options, **given, "position_embeddings": decoder.rotary_emb(states, new)}

    def entering(number: int):
        def hook(block: Any, args: tuple, options: dict[str, Any]):
            new = moved(number, args, options)
            return None if new is None else (args, new)

        return hook

    def leaving(number: int):
        def hook(block: Any, args: tuple, options: dict[str, Any], output: Any) -> Any:
            if not ran_with_old(number):
                return None
            options["past_key_values"].layers[number] = GrowingLayer()
            return block.forward(*args, **(moved(number, args, options) or options))

        return hook

    handles = []
    try:
        for number, block in enumerate(decoder.layers):
            handles.append(block.register_forward_pre_hook(entering(number), with_kwargs=True))
            # Before whoever else looks at what leaves the layer.
            handles.append(block.register_forward_hook(leaving(number), with_kwargs=True, prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
