"""Small modules that are trained beside a frozen model, each for one model, and the files that their weights lie in.

They stand apart from the pruners that ask them, which are known by name and parameters without torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from visionpulse_analysis._util.files import write_whole
from visionpulse_analysis.pruners.heads import TRAINING, UNTRAINED, WEIGHTS, head_folder, read_training

__all__ = ["Head", "load_head", "save_head"]


class Head(nn.Module):
    """A module that knows the numbers it was built from, so that its weights can be loaded again.

    Parameters
    ----------
    **shape : int
        What a subclass is built from.
    """

    def __init__(self, **shape: int):
        super().__init__()
        self.shape = shape

    @classmethod
    def untrained(cls, *, seed: int = 0, **shape: int) -> Self:
        """A head of a `shape` with random weights, which `seed` fixes; the global generator stays where it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(**shape).eval()


HeadKind = TypeVar("HeadKind", bound=Head)


def load_head(kind: type[HeadKind], name: str, model: str) -> HeadKind:
    """Load a trained head for the model that it was trained beside.

    Parameters
    ----------
    kind : type
        Its class.
    name : str
        As in `head_folder`.
    model : str
        `VLM.weights_hash` of the model that it shall serve.

    Returns
    -------
    Head, in evaluation mode

    Raises
    ------
    ValueError
        There is no such head, it is of another kind, it belongs to another model, or its weights do not fit its shape.
    """
    training = read_training(name)
    if training["kind"] != kind.__name__:
        raise ValueError(f"the head {name!r} is a {training['kind']}, and a {kind.__name__} is asked for")
    if training["model"] != model:
        raise ValueError(
            f"the head {name!r} was trained beside the model whose weights have the hash {training['model']}, and this "
            f"one's have {model}: it means nothing here, also where only the dtype differs; train one for this model "
            f"(`visionpulse train --head`), or take head={UNTRAINED!r} as a control"
        )
    head = kind.untrained(**training["shape"])  # which draws from no generator of the process
    try:
        head.load_state_dict({key: value.float() for key, value in load_file(head_folder(name) / WEIGHTS).items()})
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"the weights of the head {name!r} cannot be read, or are of another shape: {error}"
        ) from error
    return head.eval().requires_grad_(False)


def save_head(head: Head, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write a `head` as `load_head` reads it, weights in float16, into a `folder`; `facts` of its training, JSON-ready.

    `facts` holds at least ``model``, the hash of the model that it belongs to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().half().contiguous() for name, value in head.state_dict().items()}
    write_whole(folder / WEIGHTS, save(weights))
    told = {"kind": type(head).__name__, "shape": head.shape, **facts}
    write_whole(folder / TRAINING, (json.dumps(told, indent=1) + "\n").encode())
