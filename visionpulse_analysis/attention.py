"""The only file that touches the attention registry of transformers.

``route(model, function)`` sends every attention call of a model's language part through ``function`` for as long as the
``with`` block lasts, and puts everything back afterwards, also after an exception. Uses nest, and models do not disturb
one another, also in several threads; one model in two threads at once is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from visionpulse_analysis._interrupts import check_interrupt, interrupt_at_checks

NAME = "visionpulse"
SUPPORTED = ("sdpa", NAME)

AttentionFunction = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
# The routed functions of each module, innermost last, and the thread that they serve.
_routes: WeakKeyDictionary[torch.nn.Module, list[tuple[int, AttentionFunction]]] = WeakKeyDictionary()
# How many routes hold each switched configuration (by id), and what it said before: models may share one.
_switched: dict[int, tuple[int, str]] = {}
_lock = Lock()


def stock(module: torch.nn.Module, query, key, value, attention_mask, **options):
    """The library's own scaled-dot-product attention, unchanged."""
    return AttentionInterface._global_mapping["sdpa"](module, query, key, value, attention_mask, **options)


def newest(module: torch.nn.Module, query, key, value, attention_mask, *, scaling: float, **options):
    """Scaled-dot-product attention of the newest query alone, [row, head, 1, dim]: `stock`, arranged for speed.

    The query heads that share a key head become the queries of one head, so that each key is read once: the library
    reads it once per query head on a CPU, and on a GPU, where there is a mask, copies it for each of them.
    """
    rows, heads, length, dim = query.shape
    shared_by_library = query.device.type != "cpu" and attention_mask is None
    if length > 1 or heads == key.shape[1] or shared_by_library:
        return stock(module, query, key, value, attention_mask, scaling=scaling, **options)
    grouped = query.view(rows, key.shape[1], -1, dim)
    output = torch.nn.functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, scale=scaling
    )
    return output.view(rows, 1, heads, value.shape[3]), None


def _dispatch(module: torch.nn.Module, query, key, value, attention_mask, **options):
    """Call the innermost function that this thread routed for this module, else the library's own."""
    routes = _routes.get(module)
    if not routes or routes[-1][0] != get_ident():
        return stock(module, query, key, value, attention_mask, **options)
    check_interrupt()
    return routes[-1][1](module, query, key, value, attention_mask, **options)


# The mask function is registered under the same name: without it the padding mask would silently be lost.
AttentionInterface.register(NAME, _dispatch)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def route(model: PreTrainedModel, function: AttentionFunction) -> Iterator[None]:
    """Send the language model's attention through ``function`` inside the ``with`` block.

    Ctrl-C takes effect at the next call of a layer, so that it never meets a half-changed model.

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
    RuntimeError
        If the model is routed in another thread.
    """
    decoder: Any = model.get_decoder()
    modules = list(decoder.modules())
    with interrupt_at_checks():
        with _lock:
            _check_free(decoder)
            _switch(decoder.config)
            for module in modules:
                _routes.setdefault(module, []).append((get_ident(), function))
        try:
            if decoder.config._attn_implementation != NAME:
                raise ValueError(f"{type(model).__name__} does not take another attention function")
            yield
        finally:
            with _lock:
                _switch_back(decoder.config)
                for module in modules:
                    _routes[module].pop()
                    if not _routes[module]:
                        del _routes[module]


def _check_free(decoder: Any) -> None:
    """Raise unless the decoder runs under scaled-dot-product attention and no other thread uses it."""
    implementation = decoder.config._attn_implementation
    if implementation not in SUPPORTED:
        raise ValueError(
            f"the language model runs under {implementation!r} attention; recording needs 'sdpa': "
            "load it with attn_implementation='sdpa'"
        )
    routes = _routes.get(decoder)
    if routes and routes[-1][0] != get_ident():
        raise RuntimeError(
            "this model is decoding in another thread, and one model serves one decode at a time; "
            "wait for it, pass both questions to one decode, or load a second model"
        )


def _switch(config: Any) -> None:
    count, before = _switched.get(id(config), (0, config._attn_implementation))
    _switched[id(config)] = count + 1, before
    config._attn_implementation = NAME


def _switch_back(config: Any) -> None:
    count, before = _switched.pop(id(config))
    if count > 1:
        _switched[id(config)] = count - 1, before
    else:
        config._attn_implementation = before


def active_routes(model: PreTrainedModel) -> int:
    """How many routed functions the modules of a model hold in all; 0 outside ``route``."""
    return sum(len(_routes.get(module, ())) for module in model.modules())
