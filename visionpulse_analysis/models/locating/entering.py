"""Where pictures come into a language model: at its input, into states of its layers, or by cross-attention."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

# Under which names the library hands a module of cross-attention the states of another sequence.
OTHER_SEQUENCE = ("key_value_states", "encoder_hidden_states", "cross_attention_states")


class _Reached(Exception):
    """What was looked for is known; the rest of the forward pass is not needed."""

    def __init__(self, states: torch.Tensor):
        super().__init__()
        self.states = states


def can_cross(part: Any) -> bool:
    """Whether a module of attention can be handed the states of another sequence."""
    return hasattr(part, "layer_idx") and any(name in OTHER_SEQUENCE for name in parameters(part))


def parameters(part: Any) -> list[str]:
    """The names under which a module's `forward` is given what it is given."""
    forward: Callable[..., Any] = part.forward
    return list(inspect.signature(forward).parameters)


def other_sequence(part: Any, args: tuple, options: dict[str, Any]) -> torch.Tensor | None:
    """The states [row, token, width] of another sequence among what a module is given; None without."""
    given = {**dict(zip(parameters(part), args, strict=False)), **options}
    return next((given[name] for name in OTHER_SEQUENCE if torch.is_tensor(given.get(name))), None)


def entered(model: Any, inputs: dict[str, Any], late: bool) -> torch.Tensor | None:
    """What a model knows of each token of its first prompt once pictures have come in: [token, width].

    The states that cross-attention reads, where there is any; else the embeddings at the decoder's input, or with
    ``late`` the states behind its last layer, for pictures that are put into the states between layers. None where
    the decoder is given nothing of the kind.
    """
    decoder, found = model.get_decoder(), list[torch.Tensor]()
    crossing = [part for part in decoder.modules() if can_cross(part)]

    def at_input(module: Any, args: Any, options: dict[str, Any]) -> None:
        given = options.get("inputs_embeds")
        if given is not None:
            note(given)

    def at_layer(module: Any, args: Any, options: dict[str, Any]) -> None:
        given = args[0] if args else options.get("hidden_states")
        if not found and torch.is_tensor(given):
            note(given)

    def behind(module: Any, args: Any, output: Any) -> None:
        found[:] = [output[0] if isinstance(output, tuple) else output]

    def note(states: torch.Tensor) -> None:
        found.append(states)
        if not crossing and not late:
            raise _Reached(states)

    def across(module: Any, args: Any, options: dict[str, Any]) -> None:
        states = other_sequence(module, args, options)
        if states is not None:
            raise _Reached(states)

    if getattr(model.config, "is_encoder_decoder", False):
        rows = len(next(iter(inputs.values())))
        inputs = {**inputs, "decoder_input_ids": torch.zeros(rows, 1, dtype=torch.long, device=model.device)}
    with ExitStack() as stack:
        hooks = [decoder.register_forward_pre_hook(at_input, with_kwargs=True)]
        hooks += [part.register_forward_pre_hook(across, with_kwargs=True) for part in crossing]
        layers = getattr(decoder, "layers", None)
        if layers is not None:
            hooks += [layers[0].register_forward_pre_hook(at_layer, with_kwargs=True)]
            hooks += [layers[-1].register_forward_hook(behind)] if late else []
        for hook in hooks:
            stack.callback(hook.remove)
        try:
            model(**inputs, use_cache=False)
        except _Reached as reached:
            return reached.states[0]
    return found[-1][0] if found else None
