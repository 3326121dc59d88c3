"""The only file that touches the attention registry of transformers.

``route(model, function)`` sends every attention call of a model's language part through ``function`` for as long as the
``with`` block lasts, and puts everything back afterwards, also after an exception. Uses nest, and models do not disturb
one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

NAME = "visionpulse"
SUPPORTED = ("sdpa", NAME)

AttentionFunction = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
_routes: WeakKeyDictionary[torch.nn.Module, list[AttentionFunction]] = WeakKeyDictionary()


def stock(module: torch.nn.Module, query, key, value, attention_mask, **options):
    """The library's own scaled-dot-product attention, unchanged."""
    return AttentionInterface._global_mapping["sdpa"](module, query, key, value, attention_mask, **options)


def _dispatch(module: torch.nn.Module, query, key, value, attention_mask, **options):
    """Call the innermost function routed for this module; two models of one config may share this name."""
    routes = _routes.get(module)
    function = routes[-1] if routes else stock
    return function(module, query, key, value, attention_mask, **options)


# The mask function is registered under the same name: without it the padding mask would silently be lost.
AttentionInterface.register(NAME, _dispatch)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def route(model: PreTrainedModel, function: AttentionFunction) -> Iterator[None]:
    """Send the language model's attention through ``function`` inside the ``with`` block.

    Parameters
    ----------
    model : PreTrainedModel
        A vision-language model whose language part runs under "sdpa" (the vision tower is left alone).
    function : callable
        Called as ``function(module, query, key, value, attention_mask, **options)`` with query [batch, head, q, dim],
        key and value [batch, kv_head, kv, dim] after rotary embedding and cache update; returns what
        :func:`stock` returns.

    Raises
    ------
    ValueError
        If the language part does not run under "sdpa", or does not take the switch.
    """
    decoder = model.get_decoder()
    config = decoder.config
    before = config._attn_implementation
    if before not in SUPPORTED:
        raise ValueError(
            f"the language model runs under {before!r} attention; recording needs 'sdpa': "
            "load it with attn_implementation='sdpa'"
        )
    modules = list(decoder.modules())
    for module in modules:
        _routes.setdefault(module, []).append(function)
    try:
        config._attn_implementation = NAME
        if decoder.config._attn_implementation != NAME:
            raise ValueError(f"{type(model).__name__} does not take another attention function")
        yield
    finally:
        config._attn_implementation = before
        for module in modules:
            _routes[module].pop()
            if not _routes[module]:
                del _routes[module]


def active_routes(model: PreTrainedModel) -> int:
    """How many routed functions the modules of a model hold in all; 0 outside ``route``."""
    return sum(len(_routes.get(module, ())) for module in model.modules())
