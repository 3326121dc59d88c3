"""The only file that touches the attention registry of transformers.

``route(model, function)`` sends every attention call of a model's language part through ``function`` for as long as the
``with`` block lasts, and puts everything back afterwards, also after an exception. Uses nest, and models do not disturb
one another, also in several threads; one model in two threads at once is refused.

``intercept(model, function)`` does it without the model noticing: its configuration keeps the name of its attention,
on which some models branch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from visionpulse_analysis._interrupts import check_interrupt, interrupt_at_checks
from visionpulse_analysis.torch_settings import own_settings

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
    with interrupt_at_checks(), own_settings():
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
            f"the language model runs under {implementation!r} attention; recording needs 'sdpa', as vpa.load sets it: "
            "say model.set_attn_implementation('sdpa') before you decode (vlm.model is the model)"
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


def kernel_name(model: Any) -> str | None:
    """The attention under which the language part of a model runs, such as "sdpa"."""
    return model.get_decoder().config._attn_implementation


@dataclass
class Call:
    """One attention call of a model, on its way to the kernel.

    kernel : the function in force. eager : the model's own eager function, which also returns the weights
    [row, head, q, key]. query [row, head, q, dim], key and value [row, kv_head, key, dim] after rotary embedding and
    cache update; mask : what the model made of its attention mask for this kernel. rest, options : whatever else the
    model passes.
    """

    kernel: AttentionFunction
    eager: AttentionFunction
    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: Any
    rest: tuple[Any, ...]
    options: dict[str, Any]

    def run(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the kernel makes of it: output [row, q, head, dim], and weights where it has them."""
        return self.kernel(self.module, self.query, self.key, self.value, self.mask, *self.rest, **self.options)


Interceptor = Callable[[Call], tuple[torch.Tensor, torch.Tensor | None]]
_interceptors: WeakKeyDictionary[torch.nn.Module, Interceptor] = WeakKeyDictionary()
_library_lookup: Callable[..., AttentionFunction] | None = None  # while the lookup below stands in for it


def _lookup(self: AttentionInterface, attn_implementation: str, default: AttentionFunction) -> AttentionFunction:
    """The library's lookup; what it finds goes through the interceptor of the module that calls it, if there is one."""
    lookup = _library_lookup
    if lookup is None:  # a model of another thread asked just as the last interception ended
        return AttentionInterface.get_interface(self, attn_implementation, default)
    kernel = lookup(self, attn_implementation, default)

    def attend(module: torch.nn.Module, query, key, value, attention_mask=None, *rest: Any, **options: Any):
        interceptor = _interceptors.get(module)
        if interceptor is None:
            return kernel(module, query, key, value, attention_mask, *rest, **options)
        return interceptor(Call(kernel, default, module, query, key, value, attention_mask, rest, options))

    return attend


@contextmanager
def intercept(modules: Iterable[torch.nn.Module], function: Interceptor) -> Iterator[None]:
    """Hand the attention calls of these modules to ``function`` inside the ``with`` block, and rename nothing.

    Raises
    ------
    RuntimeError
        The calls of one of the modules are intercepted already.
    """
    global _library_lookup
    mine = list(modules)
    with _lock:
        if any(module in _interceptors for module in mine):
            raise RuntimeError("this model is watched already; leave that `with` block first, or use its traces")
        if _library_lookup is None:
            _library_lookup = AttentionInterface.get_interface
            AttentionInterface.get_interface = _lookup
        _interceptors.update(dict.fromkeys(mine, function))
    try:
        yield
    finally:
        with _lock:
            for module in mine:
                del _interceptors[module]
            # Whoever patched the lookup after us keeps it, and finds the library's behind ours.
            if not _interceptors and AttentionInterface.get_interface is _lookup:
                AttentionInterface.get_interface, _library_lookup = _library_lookup, None
