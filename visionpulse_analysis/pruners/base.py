"""What every pruner is: a frozen dataclass that opens one selection per batch.

Decoding calls ``pruner.start(layout)`` once per batch, then at every layer of prefill ``observe_prefill``,
``visible_prefill`` and ``redirect``, and ``rewrite`` after it, ``settle`` when prefill is over, and at every layer of
every decode step ``visible``. A
selection implements the few of them that its method needs. All state of a run lives in the selection, never in the
pruner or the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from visionpulse_analysis._util.checks import check_fields
from visionpulse_analysis._util.html import facts_table
from visionpulse_analysis.pruners.view import Layout, View


@dataclass(frozen=True)
class Redirect:
    """Whose value a query gets when it attends to a patch, at one layer of prefill; the weights stay as they are.

    Parameters
    ----------
    text, patches : int64 [row, patch], optional
        For the queries that are text and for those of a picture: the patch whose value is read in place of each, or -1
        for nothing, so that this part of the attention is lost. None changes nothing. Queries of a kind that is given
        read none of the other tokens of pictures.
    others : bool [row, other], optional
        Other tokens of pictures that text reads nevertheless.
    """

    text: torch.Tensor | None = None
    patches: torch.Tensor | None = None
    others: torch.Tensor | None = None

    def readers(self) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
        """For text and for pictures: whose values replace those of patches, and which other tokens are read.

        int64 [row, patch] and bool [row, other], or None.
        """
        return [(self.text, self.others), (self.patches, None)]


class Selection:
    """One run of a pruner over one batch. Tensors kept as attributes, also in lists, have one entry per row in front.

    ``kept`` bool [row, patch], ``mass`` and ``budget`` float [row] describe the current step; mass and budget are
    recorded, and so is what was really visible. None where there is nothing to say. A new choice is a new tensor, never
    a change of the old one.

    ``frozen_layers`` : layers of prefill that leave the hidden states of pictures as they were, though queries still
    read them there. ``forgets`` : whether what a decode step hides in a layer is gone from it for good.
    ``recomputes`` : whether the run has no cache: every step reads prompt and answer anew, a prefill of its own with a
    selection of its own.
    ``moved`` : int64 [row, patch], where it matters: 0 for patches in their places, 1, 2 .. for those that code which
    takes tokens out of the sequence puts behind the image, in that order.
    ``most`` : no row ever keeps more patches than this at a decode step, where that is known beforehand.

    Parameters
    ----------
    layout : Layout
        Of the batch.
    """

    frozen_layers: frozenset[int] = frozenset()
    forgets: bool = False
    recomputes: bool = False
    moved: torch.Tensor | None = None
    most: int | None = None

    def __init__(self, layout: Layout):
        self.layout = layout
        self.kept: torch.Tensor | None = None
        self.mass: torch.Tensor | None = None
        self.budget: torch.Tensor | None = None

    def observe_prefill(self, view: View) -> None:
        """Look at one layer of prefill by its `view`."""

    def visible_prefill(self, view: View) -> torch.Tensor | None:
        """Patches that stay, by the `view` of this layer of prefill, there and at all later steps: bool [row, patch].

        None drops nothing here. A dropped patch never comes back: at later layers only what is left counts.
        """

    def left_before(self, layer: int) -> torch.Tensor | None:
        """Patches that stay from a `layer` on, where that is known before it runs: bool [row, patch]; else None."""

    def redirect(self, view: View) -> Redirect | None:
        """Values that this layer of prefill (`view`) reads in place of others; None for its own."""

    def rewrite(self, layer: int, states: torch.Tensor) -> torch.Tensor | None:
        """New hidden `states` of the patches that leave a `layer` of prefill, [row, patch, width]; None keeps them."""

    def settle(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, left: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """New cached `keys` and `values` of a `layer` once prefill is over, [row, kv_head, key, dim]; None keeps them.

        `left` : bool [row, patch], what prefill has not dropped there.
        """

    def visible(self, view: View) -> torch.Tensor | None:
        """What the layer and decode step of `view` see of the patches; None for all that prefill left, as they are.

        Either the patches visible, bool [row, patch], or a bias that is added to their attention logits, float [row,
        patch] or [row, head, patch]: 0 leaves a patch as it is, -inf hides it, any other finite number weighs it anew.
        What is said of a patch that prefill has dropped does not count. A pruner that returns a finite bias other than
        0 says so (`Pruner.reweights`).
        """

    @property
    def settles(self) -> bool:
        """Whether the selection may change what prefill has cached."""
        return type(self).settle is not Selection.settle

    @property
    def dense_prefill(self) -> bool:
        """Whether prefill runs as it does without a pruner."""
        acts = ("visible_prefill", "redirect", "rewrite")
        return not self.frozen_layers and all(getattr(type(self), a) is getattr(Selection, a) for a in acts)

    def drop_rows(self, rows: torch.Tensor) -> None:
        """Keep only these `rows` of the batch, int64 [remaining]; the others have finished."""
        self.layout = self.layout.take(rows)
        for name, value in vars(self).items():
            setattr(self, name, _take(value, rows))


def _take(value: Any, rows: torch.Tensor) -> Any:
    if isinstance(value, torch.Tensor):
        return value[rows.to(value.device)]
    return [_take(item, rows) for item in value] if isinstance(value, list) else value


FirstTokens = Callable[["Pruner | None"], torch.Tensor]


@dataclass(frozen=True)
class Pruner:
    """Base of all pruners. A subclass is a frozen dataclass with a ``name`` of its own and a ``start``.

    ``a | b`` acts as both: usually one that acts in prefill, and one that acts at decode steps. ``presets`` are
    published settings, parameters by the name that stands after a colon: ``visionpulse:10``. ``reweights`` says that
    the attention to patches that stay visible is changed: such a method has no share of patches that it keeps, and
    comparisons at equal retention leave it out.
    """

    name: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    reweights: ClassVar[bool] = False

    @property
    def renumbers(self) -> bool:
        """Whether positions are counted anew without what prefill drops: ``renumber``, of those that have it."""
        return bool(getattr(self, "renumber", False))

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        register(cls)

    def __post_init__(self) -> None:
        """Raise ValueError for parameters that are not what their annotations say; a subclass adds its ranges."""
        check_fields(self)

    def start(self, layout: Layout) -> Selection:
        """Open a fresh selection for one batch, whose prompts `layout` describes."""
        raise NotImplementedError

    @classmethod
    def calibrated(cls, first_tokens: FirstTokens, n_layers: int, **options: Any) -> Pruner:
        """A pruner of this kind with parameters found on calibration samples; see `calibration.calibrate`.

        Parameters
        ----------
        first_tokens : callable, pruner or None -> float64 [sample, word]
            Natural log probabilities of the first generated token under a pruner, or dense for None.
        n_layers : int
            Of the model.
        **options
            Those of the subclass.

        Returns
        -------
        Pruner

        Raises
        ------
        ValueError
            There is nothing to calibrate, or an option is out of range.
        """
        raise ValueError(f"{cls.name or cls.__name__} has nothing to calibrate; make it with its parameters")

    def __or__(self, other: Pruner) -> Pruner:
        from visionpulse_analysis.pruners.combined import Combined

        return Combined(self, other) if isinstance(other, Pruner) else NotImplemented

    def to_dict(self) -> dict[str, Any]:
        """Name and parameters, JSON-ready."""
        return {"name": self.name, **asdict(self)}

    def _repr_html_(self) -> str:
        given = self.to_dict()
        does = (type(self).__doc__ or "").partition("\n")[0].replace("``", "")
        return facts_table({"pruner": given.pop("name"), "does": does, **given})


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
