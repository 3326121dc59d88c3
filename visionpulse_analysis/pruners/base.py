"""What every pruner is: a frozen dataclass that opens one selection per run.

Decoding calls ``pruner.start(layout)`` once per batch and then ``selection.visible(view)`` at every layer of every
decode step. All state of a run lives in the selection, never in the pruner or the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch


@dataclass
class Layout:
    """What a pruner knows of a batch before decoding.

    patches : bool [row, patch], False where a row has fewer patches than the widest one.
    seeds : one per row, for pruners that draw.
    """

    patches: torch.Tensor
    n_layers: int
    default_anchor: int
    seeds: list[int]

    @property
    def counts(self) -> torch.Tensor:
        """Number of patches: int64 [row]."""
        return self.patches.sum(dim=1)


@dataclass
class View:
    """What a pruner sees at one layer of one decode step (step 1 is the first after prefill).

    logits() -> float32 [row, head, key] of the newest query over all cached positions, -inf where masked;
    patch_logits() -> float32 [row, head, patch], -inf at padding. Both are computed on demand.
    """

    step: int
    layer: int
    rows: torch.Tensor
    logits: Callable[[], torch.Tensor]
    patch_logits: Callable[[], torch.Tensor]


class Selection:
    """One run of a pruner. ``kept``, ``mass`` and ``budget`` describe the current step, one entry per row."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.kept: torch.Tensor | None = None
        self.mass: torch.Tensor | None = None
        self.budget: torch.Tensor | None = None

    def visible(self, view: View) -> torch.Tensor | None:
        """Patches visible at this layer and step: bool [row, patch], or None for all of them."""
        raise NotImplementedError

    def drop_rows(self, rows: torch.Tensor) -> None:
        """Keep only these rows of the batch, int64 [remaining]; the others have finished."""
        self.layout.patches = self.layout.patches[rows]
        self.layout.seeds = [self.layout.seeds[i] for i in rows.tolist()]
        for name in ("kept", "mass", "budget"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value[rows])


@dataclass(frozen=True)
class Pruner:
    """Base of all pruners. Subclasses are frozen dataclasses with a ``name`` and a ``start``."""

    name: ClassVar[str] = ""

    def start(self, layout: Layout) -> Selection:
        """Open a fresh selection for one batch."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Name and parameters, JSON-ready."""
        return {"name": self.name, **asdict(self)}

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in self.to_dict().items())
        return f"<table>{rows}</table>"


def resolve_anchor(anchor: int | None, layout: Layout) -> int:
    """The anchor layer: the given one, or the model's default. Raises ValueError when out of range."""
    layer = layout.default_anchor if anchor is None else anchor
    if not 0 <= layer < layout.n_layers:
        raise ValueError(
            f"anchor layer {layer} is out of range: the model has layers 0 to {layout.n_layers - 1}"
        )
    return layer


def top_k(scores: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Mark the k highest scores of each row, ties by lower index.

    scores : float [row, patch], -inf where there is no patch; k : int64 [row]. Returns bool [row, patch] with exactly
    ``k`` True per row (``k`` is at most the number of patches of the row).
    """
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    ranks = torch.arange(scores.shape[1], device=scores.device)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, ranks[None, :] < k[:, None])


def budget_to_k(budget: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """``floor(budget * n)``, at least 1 and at most n: int64 [row].

    Computed in float64 with a guard of 1e-9, so that a budget of 0.29 of 100 patches keeps 29.
    """
    k = torch.floor(budget.double() * counts.double() + 1e-9).long()
    return torch.minimum(k.clamp(min=1), counts)


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is in (0, 1]."""
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} is a share of the patches in (0, 1], got {value}")
