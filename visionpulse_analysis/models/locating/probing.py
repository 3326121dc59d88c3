"""What the decoder of a model is given for pictures made up here, with the patches of the vision tower kept apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from visionpulse_analysis._util.checks import UnsupportedModelError
from visionpulse_analysis.models.locating.entering import entered

KERNELS = ("sdpa", "eager")  # those that `Apart` silences
NO_ID = -1  # of tokens of another sequence, which have none
# Builds the inputs of a model from some pictures, uint8 [row_px, col_px, 3] each.
Inputs = Callable[[Sequence[np.ndarray]], dict[str, Any]]


class Apart(TorchFunctionMode):
    """Silences self-attention, so that what is made of a patch shows its own pixels and no others.

    Of whatever tower, in the library or not: caught are torch's kernel, and the softmax of those that write attention
    out. Queries of another number than keys are learned ones, and do attend. Only what comes before the decoder may run
    inside the ``with`` block.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention and len(args) >= 3:
            query, key, value = args[:3]
            if query.shape[-2] == key.shape[-2] > 1:
                return query.new_zeros(*query.shape[:-1], value.shape[-1])
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "softmax" and result.ndim >= 3 and result.shape[-1] == result.shape[-2] > 1:
            return torch.zeros_like(result)
        return result


def check_kernels(model: Any) -> None:
    """Raise ValueError where the vision part runs under a kernel that cannot be silenced."""
    language = set(model.get_decoder().modules())
    configs = (getattr(module, "config", None) for module in model.modules() if module not in language)
    other = {getattr(config, "_attn_implementation", None) for config in configs} - {None, *KERNELS}
    if other:
        raise ValueError(
            f"the vision part of {type(model).__name__} runs under {', '.join(sorted(map(str, other)))} attention, in "
            "which patches cannot be told apart; load the model with attn_implementation='sdpa', or call "
            "model.set_attn_implementation('sdpa')"
        )


class Probe:
    """Shows pictures to a model and reads what reaches its decoder.

    Attributes
    ----------
    forwards : int, how often the vision tower ran
    ids : int64 [token], the prompt; NO_ID for each token of another sequence that cross-attention reads
    silent : bool, whether patches are kept apart. late : bool, whether the states behind the last layer are read.
    """

    def __init__(self, model: Any, inputs: Inputs):
        check_kernels(model)
        self.model, self.inputs, self.forwards, self.silent, self.late = model, inputs, 0, True, False
        self.ids = np.zeros(0, np.int64)

    def __call__(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Embeddings of the prompt, float32 [token, width], words and image tokens."""
        inputs = self.inputs(pictures)
        states = embeddings(self.model, inputs, apart=self.silent, late=self.late)
        given = inputs.get("input_ids")
        ids = np.full(len(states), NO_ID) if given is None or given.shape[1] != len(states) else given[0].cpu().numpy()
        if self.forwards and not np.array_equal(ids, self.ids):
            raise ValueError("the processor made another prompt of another picture of the same size; its tokens cannot "
                             "be compared, and no map is measured")  # fmt: skip
        self.ids, self.forwards = ids, self.forwards + 1
        return states


@torch.inference_mode()
def embeddings(model: Any, inputs: dict[str, Any], *, apart: bool = True, late: bool = False) -> torch.Tensor:
    """What a model knows of the tokens of its first prompt once pictures have come in: float32 [token, width].

    With patches kept ``apart``; where, and what ``late`` means, says `entered`. Raises UnsupportedModelError where its
    decoder is given nothing.
    """
    with Apart() if apart else nullcontext():
        states = entered(model, inputs, late)
    if states is None:
        raise UnsupportedModelError(
            f"the decoder of {type(model).__name__} was given no embeddings: image tokens are put nowhere into its "
            "sequence, and no map can be measured"
        )
    return states.float()
