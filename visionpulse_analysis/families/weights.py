"""Whether all tensors of a checkpoint found their place in the model, and all of the model were in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SHOWN = 4  # names of each kind in the error


def check_arrived(name: str, loaded: Mapping[str, Any]) -> None:
    """Raise ValueError unless the checkpoint of the model called ``name`` and its configuration are of one model.

    The library fills what is missing with random numbers and leaves out what it does not know; a model like that
    answers, and its traces mean nothing. Tied weights, and names that the library itself lets be missing or left over
    for this kind of model, are none of these.

    Parameters
    ----------
    loaded : dict
        What `from_pretrained` tells with ``output_loading_info``.
    """
    shapes = {tensor: f"{tensor} {tuple(found)} for {tuple(wanted)}" for tensor, found, wanted in _mismatched(loaded)}
    faults = {
        "missing, so that the model would have random numbers there": loaded.get("missing_keys") or (),
        "of another shape": shapes.values(),
        "left over, with no place in the model": loaded.get("unexpected_keys") or (),
    }
    said = [f"{len(set(names))} {what}: {_some(names)}" for what, names in faults.items() if names]
    if said:
        raise ValueError(
            f"the weights of {name!r} do not fit its config.json: tensors {'; '.join(said)}; take a checkpoint and a "
            "configuration that belong together, and rename tensors as this version of transformers names them"
        )


def _mismatched(loaded: Mapping[str, Any]) -> list[tuple[str, Iterable[int], Iterable[int]]]:
    """Name, shape in the checkpoint and shape in the model of each."""
    return sorted((one[0], one[1], one[2]) for one in loaded.get("mismatched_keys") or ())


def _some(names: Iterable[str]) -> str:
    listed = sorted(set(names))
    return ", ".join(listed[:SHOWN]) + f" and {len(listed) - SHOWN} more" * (len(listed) > SHOWN)
