"""A twin of a bundled model: a folder that holds a language model only, and takes everything else from its origin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

LANGUAGE_MODEL = "language_model.safetensors"  # bfloat16; the model computes in the dtype of its origin
VISION = "model.visual."


def origin_of(config: Any) -> dict[str, str] | None:
    """What a configuration says of the model that it is a twin of: ``name`` and ``weights``; None for others."""
    return getattr(config, "visionpulse_twin", None)


def language_of(model: Any) -> dict[str, torch.Tensor]:
    """The parameters of the language model by name: all but those of the vision tower."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith(VISION)}


def become_twin(model: Any, folder: Path, config: Any, hash_of: Callable[[Any], str]) -> None:
    """Put the language model of a twin's `folder` in place of that of its origin, `model`.

    Raises ValueError where that is not the model whose twin was trained, or the file is not that of its language model.
    """
    origin, path = origin_of(config), folder / LANGUAGE_MODEL
    if origin is None:
        return
    found = hash_of(model)
    if found != origin["weights"]:
        raise ValueError(
            f"{folder.name} is a twin of {origin['name']!r} with weights {origin['weights']}, and these are {found}: "
            f"train it anew with `visionpulse train --twin {folder.name}`"
        )
    try:
        given = load_file(path)
    except Exception as error:  # of many types: missing, cut short, not of this format
        raise ValueError(f"the language model of {folder.name} cannot be read from {path}: {error}") from error
    own = language_of(model)
    wrong = set(given.keys() ^ own.keys())
    wrong |= {name for name in given.keys() & own.keys() if given[name].shape != own[name].shape}
    if wrong:
        said = ", ".join(sorted(wrong)[:3])
        raise ValueError(f"{path} does not hold the language model of {origin['name']!r}: {said}")
    model.load_state_dict(given, strict=False)
