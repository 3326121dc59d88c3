"""Small modules that are trained beside a frozen model, each for one model, and the files that their weights lie in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from visionpulse_analysis._util.files import data_folder, write_whole
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.pruners.view import Layout

UNTRAINED = "untrained"
WEIGHTS, TRAINING = "head.safetensors", "training.json"


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


def head_folder(name: str) -> Path:
    """Where a head lies: a folder of that path, or of that name among those that come with the package."""
    return Path(name) if Path(name).is_dir() else data_folder() / "heads" / name


def read_training(name: str) -> dict[str, Any]:
    """What is stored of a head's training; ValueError where there is no head of that name or path."""
    folder = head_folder(name)
    try:
        return json.loads((folder / TRAINING).read_text())
    except (OSError, ValueError) as error:
        there = sorted(path.parent.name for path in (data_folder() / "heads").glob(f"*/{TRAINING}"))
        raise ValueError(
            f"no trained head {name!r}: expected a folder with {WEIGHTS} and {TRAINING}, or one of "
            f"{', '.join(there) or 'none'} (or {UNTRAINED!r}); train one with `visionpulse train --head`"
        ) from error


def load_head(kind: type[Head], name: str, model: str) -> Head:
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
    head = kind(**training["shape"])
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


@dataclass(frozen=True)
class Learned(Pruner):
    """Base of pruners that ask a trained head; a subclass states its ``head`` and what `Head` that is, ``kind``."""

    kind: ClassVar[type[Head]]
    prompt: ClassVar[str] = "question"  # whose words are asked for

    head: str

    def __post_init__(self) -> None:
        super().__post_init__()
        # Kept results go by what a pruner holds, and a head that is trained anew keeps its name.
        path = head_folder(self.head) / WEIGHTS
        held = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        object.__setattr__(self, "_weights", held)

    def serves(self, model: str) -> bool:
        """Whether there is such a head, and it belongs to the `model` with this `VLM.weights_hash`."""
        try:
            return self.head == UNTRAINED or read_training(self.head)["model"] == model
        except ValueError:
            return False

    def loaded(self, layout: Layout, **trained_for: Any) -> Head | None:
        """The head, for the model of a `layout`; None for an untrained one, whose shape the first view tells.

        trained_for : what its training must say, such as the layer whose states it reads; ValueError for another.
        """
        if self.head == UNTRAINED:
            return None
        stated = read_training(self.head)
        for name, value in trained_for.items():
            if stated.get(name) != value:
                raise ValueError(
                    f"the head {self.head!r} was trained for {name} {stated.get(name)}, and {self.name} asks it for "
                    f"{name} {value}; set {name}={stated.get(name)}, or name another head"
                )
        if layout.model is None:
            raise ValueError(f"{self.name} needs to know the model that its head belongs to: use it through decode")
        return load_head(self.kind, self.head, layout.model()).to(layout.device)
