"""Inside a model: its attention calls go through functions of ours, and its layers tell what enters and leaves them.

The only file that touches the attention lookup of transformers.

A model asks `AttentionInterface.get_interface` at every layer for the kernel under which it runs, and hands it its own
eager function, which would do in place of it. While anything is intercepted, that lookup is ours: what it finds goes
through a function of ours, module by module. Nothing is registered or renamed, since some models branch on the name of
their attention (an indexer that is folded into the mask under "sdpa" only), and so compute the same inside as outside.
Everything is put back afterwards, also after an exception. Uses nest, and models do not disturb one another, also in
several threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock, get_ident
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import AttentionInterface

from visionpulse_analysis._util.interrupts import check_interrupt, interrupt_at_checks
from visionpulse_analysis._util.torch_settings import own_settings

KERNELS = ("sdpa", "eager")
# What models pass on to a kernel that changes nothing for a plain softmax under a mask.
PLAIN = {
    "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "dropout", "is_causal", "is_first_iteration", "logits_to_keep",
    "max_length_k", "max_length_q", "mm_token_type_ids", "num_items_in_batch", "output_attentions",
    "output_hidden_states", "output_router_logits", "position_ids", "return_dict", "scaling", "sliding_window",
    "token_type_ids", "use_cache",
}  # fmt: skip

Kernel = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


@dataclass
class Call:
    """One attention call of a model, on its way to the kernel.

    kernel : the function in force. eager : the model's own eager function, which also returns the weights
    [row, head, q, key]. query [row, head, q, dim], key and value [row, kv_head, key, dim] after rotary embedding and
    cache update; mask : what the model made of its attention mask for this kernel. rest, options : whatever else the
    model passes. crossing : the layer of a call whose last keys, or all, are those of another sequence (an encoder's, a
    picture's), which is seen whole; None for others.
    """

    kernel: Kernel
    eager: Kernel
    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: Any
    rest: tuple[Any, ...]
    options: dict[str, Any]
    crossing: int | None = None

    def run(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the kernel makes of it: output [row, q, head, dim], and weights where it has them."""
        return self.kernel(self.module, self.query, self.key, self.value, self.mask, *self.rest, **self.options)

    def run_newest(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same, arranged for speed where it is scaled-dot-product attention of one query.

        The query heads that share a key head become the queries of one head, so that each key is read once: the library
        reads it once per query head on a CPU, and on a GPU, where there is a mask, copies it for each of them.
        """
        rows, heads, length, dim = self.query.shape
        shared_by_library = self.query.device.type != "cpu" and self.mask is None
        stock = self.kernel is AttentionInterface._global_mapping["sdpa"] and self.plain
        if not stock or length > 1 or heads == self.key.shape[1] or shared_by_library:
            return self.run()
        grouped, mask = self.query.view(rows, self.key.shape[1], -1, dim), self.mask
        if mask is not None and mask.shape[1] == heads:  # a bias of each head
            mask = mask.view(rows, self.key.shape[1], -1, mask.shape[3])
        output = torch.nn.functional.scaled_dot_product_attention(
            grouped, self.key, self.value, attn_mask=mask, scale=self.scaling
        )
        return output.view(rows, 1, heads, self.value.shape[3]), None

    def under(self, mask: torch.Tensor | None) -> Call:
        """The same call under another mask."""
        return replace(self, mask=mask)

    def hiding(self, hidden: torch.Tensor, bias: torch.Tensor | None = None) -> Call:
        """The same call without some of its keys, bool [row, key], the same for all queries.

        bias : float [row, head or 1, key], added to the logits of the keys that are left, in the dtype of the queries,
        as kernels take it.
        """
        hidden, mask = hidden[:, None, None].to(self.key.device), self.mask
        mask = None if mask is None else mask[..., : self.key.shape[2]]
        # Eager functions add their masks.
        added = bias is not None or (self.kernel is self.eager if mask is None else mask.dtype != torch.bool)
        if not added:
            return self.under(~hidden if mask is None else mask & ~hidden)
        if mask is None or mask.dtype == torch.bool:
            zeros = torch.zeros(
                hidden.shape if mask is None else mask.shape, dtype=self.query.dtype, device=hidden.device
            )
            mask = zeros if mask is None else zeros.masked_fill(~mask, torch.finfo(zeros.dtype).min)
        lowest = torch.finfo(mask.dtype).min  # not -inf: some kernels make NaN of it
        if bias is not None:
            mask = mask + bias[:, :, None].clamp(min=lowest).to(mask.device, mask.dtype)
        return self.under(mask.masked_fill(hidden, lowest))

    @property
    def layer(self) -> int:
        """Which layer of the language model calls; -1 for a module that does not say."""
        if self.crossing is not None:
            return self.crossing
        layer: Any = getattr(self.module, "layer_idx", None)
        return -1 if layer is None else layer

    @property
    def scaling(self) -> float:
        """By what the dot products are multiplied."""
        given = self.options.get("scaling")
        return self.query.shape[-1] ** -0.5 if given is None else given

    @property
    def causal(self) -> bool:
        """Whether a query sees, without a mask, no key behind its own."""
        given = False if self.crossing is not None else self.options.get("is_causal")
        return bool(getattr(self.module, "is_causal", True) if given is None else given)

    @property
    def plain(self) -> bool:
        """Whether the model passes nothing that a plain softmax does not take (sinks, caps, biases)."""
        return not self.rest and not self.unknown

    @property
    def unknown(self) -> list[str]:
        """What the model passes beside what a plain softmax takes, by name."""
        given = ((name, option) for name, option in self.options.items() if name not in PLAIN)
        return [name for name, option in given if option is not None and option is not False]

    def check_plain(self) -> None:
        """Raise ValueError where more than a plain softmax over scaled dot products is asked for."""
        if not self.plain:
            raise ValueError(
                f"layer {self.layer} ({type(self.module).__name__}) passes its kernel "
                f"{', '.join(self.unknown) or 'more'} (sinks, caps or biases of its softmax), which is not followed "
                "here; use a model without"
            )


Interceptor = Callable[[Call], tuple[torch.Tensor, torch.Tensor | None]]
# The interceptors of each module, innermost last, and the thread that they serve, None for all.
_interceptors: WeakKeyDictionary[torch.nn.Module, list[tuple[int | None, Interceptor]]] = WeakKeyDictionary()
_library_lookup: Callable[..., Kernel] | None = None  # while the lookup below stands in for it
_lock = Lock()


def _lookup(self: AttentionInterface, attn_implementation: str, default: Kernel) -> Kernel:
    """The library's lookup; what it finds goes through the interceptor of the module that calls it, if there is one."""
    lookup = _library_lookup
    if lookup is None:  # a model of another thread asked just as the last interception ended
        return AttentionInterface.get_interface(self, attn_implementation, default)
    kernel = lookup(self, attn_implementation, default)

    def attend(module: torch.nn.Module, query, key, value, attention_mask=None, *rest: Any, **options: Any):
        thread = get_ident()
        for serves, interceptor in reversed(_interceptors.get(module, ())):
            if serves is None or serves == thread:
                return interceptor(Call(kernel, default, module, query, key, value, attention_mask, rest, options))
        return kernel(module, query, key, value, attention_mask, *rest, **options)

    return attend


@contextmanager
def intercept(model: PreTrainedModel, function: Interceptor) -> Iterator[None]:
    """Hand the attention calls of the language part that this thread makes to ``function`` inside the ``with`` block.

    Ctrl-C takes effect at the next call of a layer, so that it never meets a half-changed model.

    Parameters
    ----------
    model : PreTrainedModel
        A vision-language model whose language part runs under "sdpa" or "eager" (the vision tower is left alone).
    function : callable
        Gets the :class:`Call`, and returns what its ``run`` returns.

    Raises
    ------
    ValueError
        If the language part runs under another kernel.
    RuntimeError
        If another thread intercepts the model.
    """

    def interruptible(call: Call):
        check_interrupt()
        return function(call)

    with interrupt_at_checks(), own_settings(), _intercepted(model, interruptible, get_ident()):
        yield


@contextmanager
def overhear(model: PreTrainedModel, function: Interceptor) -> Iterator[None]:
    """The same for the calls of all threads, and of whatever runs the model; raises RuntimeError if that is done yet.

    Parameters
    ----------
    model, function
        As in :func:`intercept`, which goes before it where both are in force.
    """
    with _intercepted(model, function, None):
        yield


@contextmanager
def _intercepted(model: PreTrainedModel, function: Interceptor, thread: int | None) -> Iterator[None]:
    global _library_lookup
    modules, entry = list(model.get_decoder().modules()), (thread, function)
    check_kernel(model)
    with _lock:
        _check_free(model, thread)
        if _library_lookup is None:
            _library_lookup = AttentionInterface.get_interface
            AttentionInterface.get_interface = _lookup
        for module in modules:
            _interceptors.setdefault(module, []).append(entry)
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                _interceptors[module].remove(entry)
                if not _interceptors[module]:
                    del _interceptors[module]
            # Whoever patched the lookup after us keeps it, and finds the library's behind ours.
            if not _interceptors and AttentionInterface.get_interface is _lookup:
                AttentionInterface.get_interface, _library_lookup = _library_lookup, None


def check_kernel(model: PreTrainedModel) -> str:
    """The attention under which the language part runs; ValueError unless it is one whose calls say what is seen."""
    kernel = model.get_decoder().config._attn_implementation
    if kernel not in KERNELS:
        raise ValueError(
            f"the language part of {type(model).__name__} runs under {kernel!r} attention, whose masks do not say what "
            "the newest query may see; load the model with attn_implementation='sdpa' (which also runs flash kernels), "
            "or call model.set_attn_implementation('sdpa')"
        )
    return kernel


def _check_free(model: PreTrainedModel, thread: int | None) -> None:
    """Raise RuntimeError where the model is watched twice, or decodes in two threads."""
    serving = [serves for serves, _ in _interceptors.get(model.get_decoder(), ())]
    if thread is None and None in serving:
        raise RuntimeError("this model is watched already; leave that `with` block first, or use its traces")
    if thread is not None and any(serves not in (None, thread) for serves in serving):
        raise RuntimeError(
            "this model is decoding in another thread, and one model serves one decode at a time; "
            "wait for it, pass both questions to one decode, or load a second model"
        )


def active_interceptors(model: PreTrainedModel) -> int:
    """How many interceptors the modules of a model hold in all; 0 outside of the ``with`` blocks."""
    return sum(len(_interceptors.get(module, ())) for module in model.modules())


class Watcher(Protocol):
    """What is told of every layer: states [row, token, width] that enter it, and those that leave it."""

    def enter(self, layer: int, block: Any, states: torch.Tensor) -> torch.Tensor | None:
        """New states to read instead, or None."""
        ...

    def leave(self, layer: int, states: torch.Tensor) -> torch.Tensor | None:
        """New states to hand on instead, or None."""
        ...


@contextmanager
def watch_layers(model: Any, watcher: Watcher, needed: bool = True) -> Iterator[None]:
    """Tell ``watcher`` what enters and leaves each decoder layer inside the ``with`` block.

    Raises ValueError for a model whose language part does not list its ``layers``, unless that is not ``needed``.
    """
    layers = getattr(model.get_decoder(), "layers", None if needed else ())
    if layers is None:
        raise ValueError(f"{type(model).__name__} does not list its decoder layers; decode without a prefill pruner")
    handles = []
    try:
        for number, block in enumerate(layers):
            handles.append(block.register_forward_pre_hook(_entering(watcher, number), with_kwargs=True))
            handles.append(block.register_forward_hook(_leaving(watcher, number)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _entering(watcher: Watcher, number: int):
    def hook(block: Any, args: tuple, options: dict[str, Any]) -> Any:
        states = watcher.enter(number, block, args[0] if args else options["hidden_states"])
        if states is None:
            return None
        return ((states, *args[1:]), options) if args else (args, {**options, "hidden_states": states})

    return hook


def _leaving(watcher: Watcher, number: int):
    def hook(block: Any, args: tuple, output: Any) -> Any:
        bare = not isinstance(output, tuple)
        states = watcher.leave(number, output if bare else output[0])
        return None if states is None else states if bare else (states, *output[1:])

    return hook
