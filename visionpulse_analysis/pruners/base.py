"""What every pruner is: a frozen dataclass that opens one selection per batch.

Decoding calls ``pruner.start(layout)`` once per batch, ``selection.observe_prefill(view)`` at every layer of prefill,
and ``selection.visible(view)`` at every layer of every decode step. All state of a run lives in the selection, never
in the pruner or the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch


@dataclass(frozen=True)
class Layout:
    """What a pruner knows of a left-padded batch before decoding.

    patches : bool [row, patch], False where a row has fewer patches than the widest one.
    places : int64 [row, patch], the key position of each patch in the padded batch; any position where ``patches`` is
        False.
    starts : int64 [row], the key position of the first token that is not padding.
    seeds : one per row, for pruners that draw.
    """

    patches: torch.Tensor
    places: torch.Tensor
    starts: torch.Tensor
    n_layers: int
    default_anchor: int
    seeds: list[int]

    @property
    def counts(self) -> torch.Tensor:
        """Number of patches: int64 [row]."""
        return self.patches.sum(dim=1)

    def take(self, rows: torch.Tensor) -> Layout:
        """Only these rows, int64 [remaining]."""
        per_row = {name: getattr(self, name)[rows] for name in ("patches", "places", "starts")}
        return replace(self, **per_row, seeds=[self.seeds[i] for i in rows.tolist()])


@dataclass
class View:
    """What a pruner sees at one layer of one step: of prefill's last query at step 0, of the newest query afterwards.

    logits() -> float32 [row, head, key] over all cached positions, -inf where masked;
    patch_logits() -> float32 [row, head, patch], -inf at padding. Both are computed on demand, before anything is
    hidden.
    """

    step: int
    layer: int
    logits: Callable[[], torch.Tensor]
    patch_logits: Callable[[], torch.Tensor]


class Selection:
    """One run of a pruner over one batch. Tensors kept as attributes have one entry per row in front.

    ``kept`` bool [row, patch], ``mass`` and ``budget`` float [row] describe the current step and are recorded; None
    where there is nothing to say. A new choice is a new tensor, never a change of the old one.
    """

    def __init__(self, layout: Layout):
        self.layout = layout
        self.kept: torch.Tensor | None = None
        self.mass: torch.Tensor | None = None
        self.budget: torch.Tensor | None = None

    def observe_prefill(self, view: View) -> None:
        """Look at one layer of prefill, which itself stays dense. Does nothing unless a pruner needs it."""

    def visible(self, view: View) -> torch.Tensor | None:
        """Patches visible at this layer and step: bool [row, patch], or None for all of them."""
        raise NotImplementedError

    def drop_rows(self, rows: torch.Tensor) -> None:
        """Keep only these rows of the batch, int64 [remaining]; the others have finished."""
        self.layout = self.layout.take(rows)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value[rows])


@dataclass(frozen=True)
class Pruner:
    """Base of all pruners. A subclass is a frozen dataclass with a ``name`` of its own and a ``start``."""

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        register(cls)

    def start(self, layout: Layout) -> Selection:
        """Open a fresh selection for one batch."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Name and parameters, JSON-ready."""
        return {"name": self.name, **asdict(self)}

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in self.to_dict().items())
        return f"<table>{rows}</table>"


KNOWN: dict[str, type[Pruner]] = {}


def register(cls: type[Pruner]) -> None:
    """Enter a subclass under its name; without a name it is a base of others and not entered.

    A class defined anew, as when a notebook cell runs again, takes the place of the old one.

    Raises TypeError where the name is that of another pruner.
    """
    if not cls.name:
        return
    known = KNOWN.get(cls.name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise TypeError(
            f"{cls.__qualname__} is named {cls.name!r}, which is the name of {known.__module__}.{known.__qualname__}; "
            "give it a name of its own"
        )
    KNOWN[cls.name] = cls
