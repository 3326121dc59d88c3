"""Whether all tensors of a checkpoint found their place in the model, and all of the model were in the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)

SHOWN = 4  # names of each kind in the error
# What models work out for themselves, and scales of caches in 8 bits, which are not used here.
NOT_WEIGHTS = {
    *("inv_freq", "original_inv_freq", "cos_cached", "sin_cached", "position_ids", "relative_position_index"),
    *("masked_bias", "num_batches_tracked", "k_scale", "v_scale"),
}


def check_arrived(name: str, model: Any, loaded: Mapping[str, Any]) -> None:
    """Raise ValueError unless the checkpoint of the model called ``name`` and its configuration are of one model.

    The library fills what is missing with random numbers and leaves out what it does not know; a model like that
    answers, and its traces mean nothing. Tied weights, and names that the library itself lets be missing or left over
    for this kind of model, are none of these. Nor are parts of published checkpoints that this model has none of
    (a talker, layers that predict further tokens, the pooling of an image encoder): the log names them, level WARNING.

    Parameters
    ----------
    model : PreTrainedModel, as it was made
    loaded : dict
        What `from_pretrained` tells with ``output_loading_info``.
    """
    shapes = {tensor: f"{tensor} {tuple(found)} for {tuple(wanted)}" for tensor, found, wanted in _mismatched(loaded)}
    missing, left_over = loaded.get("missing_keys") or (), loaded.get("unexpected_keys") or ()
    # Beside missing ones, all that is left over may be what they are called in this checkpoint.
    if not missing:
        aside = [tensor for tensor in left_over if not _completes(model, tensor)]
        left_over = set(left_over) - set(aside)
        if aside:
            logger.warning("%s: %d tensors of parts that the model does not have: %s", name, len(aside), _some(aside))
    faults = {
        "missing, so that the model would have random numbers there": missing,
        "of another shape": shapes.values(),
        "left over, with no place in the model": left_over,
    }
    said = [f"{len(set(names))} {what}: {_some(names)}" for what, names in faults.items() if names]
    if said:
        raise ValueError(
            f"the weights of {name!r} do not fit its config.json: tensors {'; '.join(said)}; take a checkpoint and a "
            "configuration that belong together, and rename tensors as this version of transformers names them"
        )


def _completes(model: nn.Module, tensor: str) -> bool:
    """Whether the model, without this tensor, lacks a piece of something that it runs.

    That is a layer of a list, anything within such a layer, or one more weight of a module that has weights (a bias).
    """
    *path, last = tensor.split(".")
    if last in NOT_WEIGHTS:
        return False
    module, within = model, False
    for step in path:
        if isinstance(module, nn.ModuleList):
            if step not in module._modules:
                return not _predicts_further(model, step)
            within = True
        if step not in module._modules:
            return within
        module = module.get_submodule(step)
    return within or any(True for _ in module.parameters(recurse=False))


def _predicts_further(model: Any, layer: str) -> bool:
    """Whether a layer behind the last is one of those that predict several tokens at once, as GLM and DeepSeek do."""
    text = model.config.get_text_config()
    first, count = text.num_hidden_layers, getattr(text, "num_nextn_predict_layers", None) or 0
    return layer.isdecimal() and first <= int(layer) < first + count


def _mismatched(loaded: Mapping[str, Any]) -> list[tuple[str, Iterable[int], Iterable[int]]]:
    """Name, shape in the checkpoint and shape in the model of each."""
    return sorted((one[0], one[1], one[2]) for one in loaded.get("mismatched_keys") or ())


def _some(names: Iterable[str]) -> str:
    listed = sorted(set(names))
    return ", ".join(listed[:SHOWN]) + f" and {len(listed) - SHOWN} more" * (len(listed) > SHOWN)
