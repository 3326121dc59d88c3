"""Pruners that ask a small module trained beside a frozen model (`networks`), and where its files lie."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from visionpulse_analysis._util.files import data_folder
from visionpulse_analysis._util.later import torch
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.pruners.view import Layout

if TYPE_CHECKING:
    from visionpulse_analysis.pruners.networks import Head

UNTRAINED = "untrained"
WEIGHTS, TRAINING = "head.safetensors", "training.json"


def head_folder(name: str) -> Path:
    """Where a head lies: a folder of that path, or of that name among those that come with the package."""
    return Path(name) if Path(name).is_dir() else data_folder() / "heads" / name


Words = Literal["question", "text"]


def question_words(layout: Layout, words: Words) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the words of each question stand in its prompt, int64 [row, word], and which are there, bool [row, word].

    Or, for the `words` "text", all text of the prompt. Rows with fewer words are filled up with other places.
    """
    said = layout.question if words == "question" else layout.text
    counts = said.sum(dim=1)
    places = torch.argsort(~said, dim=1, stable=True)[:, : max(1, int(counts.max()))]
    return places, torch.arange(places.shape[1], device=counts.device)[None] < counts[:, None]


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


@dataclass(frozen=True)
class Learned(Pruner):
    """Base of pruners that ask a trained head; a subclass states its ``head`` and which `Head` that is, ``network``."""

    head: str

    def __post_init__(self) -> None:
        super().__post_init__()
        # Kept results go by what a pruner holds, and a head that is trained anew keeps its name.
        path = head_folder(self.head) / WEIGHTS
        held = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        object.__setattr__(self, "_weights", held)

    @staticmethod
    def network() -> type[Head]:
        """The class of the head, imported when it is asked for: with torch."""
        raise NotImplementedError

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
        from visionpulse_analysis.pruners.networks import load_head

        return load_head(self.network(), self.head, layout.model()).to(layout.device)
