"""What every pruner is: a frozen dataclass of parameters and rules; what one run of it remembers is a `Selection`.

Decoding opens a selection per batch by ``pruner.start(layout)``. At every layer of prefill it asks ``observe_prefill``,
``visible_prefill`` and ``redirect``, and ``rewrite`` after the layer, and once before the first; ``edit_cache`` when
prefill is over; and ``visible`` at every layer of every decode step. A pruner implements the few of these that its
method needs, each with the selection of the run as its last argument: nothing of a run is kept in the pruner or in the
model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, reduce
from operator import and_, or_
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from visionpulse_analysis._util.checks import Interval, check_fields
from visionpulse_analysis._util.html import facts_table
from visionpulse_analysis._util.later import torch
from visionpulse_analysis.pruners.top_k import budget_to_k, nearest_k, resolve_anchor, share_of_each
from visionpulse_analysis.pruners.view import Layout, View, as_bias

Share = Annotated[float, Interval(gt=0, le=1, what="a share of the patches")]
Fraction = Annotated[float, Interval(ge=0, le=1)]
LayerIndex = Annotated[int, Interval(ge=0, what="a zero-based layer index,")]
Count = Annotated[int, Interval(ge=1)]


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
    """One run of a pruner over one batch: its state, and what decoding asks it for.

    Any attribute may be set. Tensors, also in lists, have one entry per row in front, since rows that have finished are
    dropped from them; a new choice is a new tensor, never a change of the old one. The methods below ask the pruner's
    rules of these names; a selection of another kind overrides them.

    Parameters
    ----------
    layout : Layout
        Of the batch.
    pruner : Pruner, optional
        Whose rules are followed; without one, nothing acts.

    Attributes
    ----------
    kept : bool [row, patch]. mass, budget : float [row]. Of the current step, None where there is nothing to say. Mass
    and budget are recorded, and so is what was really visible.
    pattern : which computation pictures take part in; that of the model unless the pruner narrows it.
    evicts : whether what a decode step hides in a layer is gone from it for good.
    recomputes : whether the run has no cache: every step reads prompt and answer anew, a prefill of its own with a
    selection of its own.
    moved : int64 [row, patch], where it matters: 0 for patches in their places, 1, 2 .. for those that code which takes
    tokens out of the sequence puts behind the image, in that order.
    most : no row ever keeps more patches than this at a decode step, where that is known beforehand.
    by_place : why rows and columns of patches must be known, with what would do without; None where they need not.
    """

    evicts: bool = False
    recomputes: bool = False
    moved: torch.Tensor | None = None
    most: int | None = None
    by_place: str | None = None

    def __init__(self, layout: Layout, pruner: Pruner | None = None):
        self.layout, self.rules = layout, Pruner() if pruner is None else pruner
        self.pattern = layout.pattern
        self.kept: torch.Tensor | None = None
        self.mass: torch.Tensor | None = None
        self.budget: torch.Tensor | None = None

    if TYPE_CHECKING:  # what rules remember from call to call

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    def observe_prefill(self, view: View) -> None:
        """What the pruner's rule does at a `view`: see `Pruner.observe_prefill`."""
        self.rules.observe_prefill(view, self)

    def visible_prefill(self, view: View) -> torch.Tensor | None:
        """What the pruner's rule gives for a `view`, bool [row, patch]: see `Pruner.visible_prefill`."""
        return self.rules.visible_prefill(view, self)

    def left_before(self, layer: int) -> torch.Tensor | None:
        """What the pruner's rule gives for a `layer`, bool [row, patch]: see `Pruner.left_before`."""
        return self.rules.left_before(layer, self)

    def redirect(self, view: View) -> Redirect | None:
        """What the pruner's rule gives for a `view`: see `Pruner.redirect`."""
        return self.rules.redirect(view, self)

    def rewrite(self, layer: int, states: torch.Tensor) -> torch.Tensor | None:
        """What the rule makes of the `states` [row, patch, width] that leave a `layer`: see `Pruner.rewrite`."""
        return self.rules.rewrite(layer, states, self)

    def edit_cache(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, left: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What the rule makes of a `layer` of the cache: see `Pruner.edit_cache`.

        `keys`, `values` : [row, kv_head, key, dim], as returned. `left` : bool [row, patch].
        """
        return self.rules.edit_cache(layer, keys, values, left, self)

    def visible(self, view: View) -> torch.Tensor | None:
        """What the rule gives for a `view`, bool [row, patch] or a bias, float [.., patch]: see `Pruner.visible`."""
        return self.rules.visible(view, self)

    def has(self, rule: str) -> bool:
        """Whether anything is done under the name of a `rule`: "visible", "redirect" or another method above."""
        own = getattr(type(self), rule) is not getattr(Selection, rule)
        return own or getattr(type(self.rules), rule) is not getattr(Pruner, rule)

    @cached_property
    def edits_cache(self) -> bool:
        """Whether the selection may change what prefill has cached."""
        return self.has("edit_cache")

    @cached_property
    def dense_prefill(self) -> bool:
        """Whether prefill runs as it does without a pruner."""
        acts = any(map(self.has, ("visible_prefill", "redirect", "rewrite")))
        return self.pattern == self.layout.pattern and not acts

    def drop_rows(self, rows: torch.Tensor) -> None:
        """Keep only these `rows` of the batch, int64 [remaining]; the others have finished."""
        self.layout = self.layout.take(rows)
        for name, value in vars(self).items():
            setattr(self, name, _take(value, rows))


def _take(value: Any, rows: torch.Tensor) -> Any:
    if isinstance(value, torch.Tensor):
        return value[rows.to(value.device)]
    if isinstance(value, Selection):
        value.drop_rows(rows)
    return [_take(item, rows) for item in value] if isinstance(value, list) else value


FirstTokens = Callable[["Pruner | None"], "torch.Tensor"]


@dataclass(frozen=True)
class Pruner:
    """Base of all pruners. A subclass is a frozen dataclass with a ``name`` of its own and the rules that it needs.

    ``a | b`` acts as both: usually one that acts in prefill, and one that acts at decode steps. ``presets`` are
    published settings, parameters by the name that stands after a colon: ``visionpulse:10``. ``reweights`` says that
    the attention to patches that stay visible is changed: such a method has no share of patches that it keeps, and
    comparisons at equal retention leave it out.

    Parameters that are not what their annotations say, or are outside of the bounds there, raise ValueError. The rules
    (`observe_prefill` and so on) get the state of a run as their last argument.
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
        """Raise ValueError for parameters that are not what their annotations say; lists become the tuples they ask."""
        check_fields(self)
        for entry in fields(self):
            given = getattr(self, entry.name)
            if "tuple" in str(entry.type) and isinstance(given, list | np.ndarray):
                object.__setattr__(self, entry.name, tuple(given.tolist() if isinstance(given, np.ndarray) else given))

    def start(self, layout: Layout) -> Selection:
        """Open a fresh selection for one batch, whose prompts `layout` describes."""
        run = Selection(layout, self)
        self.begin(run)
        run.pattern.check(layout.n_layers)
        return run

    def begin(self, run: Selection) -> None:
        """Set what a `run` remembers from its beginning on; raises ValueError where the model is not fit for it."""

    def observe_prefill(self, view: View, run: Selection) -> None:
        """Look at one layer of prefill by its `view`; what is seen is kept in the `run`."""

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        """Patches that stay, by the `view` of this layer of prefill, there and at all later steps: bool [row, patch].

        None drops nothing here. A dropped patch never comes back: at later layers of the `run` only what is left
        counts.
        """

    def left_before(self, layer: int, run: Selection) -> torch.Tensor | None:
        """Patches that stay from a `layer` of the `run` on, where that is known before it: bool [row, patch], or None.

        Asked only where positions are counted anew (`renumbers`): a layer whose patches are known beforehand need not
        run twice.
        """

    def redirect(self, view: View, run: Selection) -> Redirect | None:
        """Values that this layer (`view`) of prefill reads in place of others, in this `run`; None for its own."""

    def rewrite(self, layer: int, states: torch.Tensor, run: Selection) -> torch.Tensor | None:
        """New hidden `states` of the patches that leave a `layer` of prefill, [row, patch, width]; None keeps them.

        The embeddings, which enter layer 0, are those of ``layer`` -1.

        run : Selection. What is dropped in this layer has its state here for the last time: `run` may merge it.
        """

    def edit_cache(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, left: torch.Tensor, run: Selection
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """New cached `keys` and `values` of a `layer` once prefill is over, [row, kv_head, key, dim]; None keeps them.

        `left` : bool [row, patch], what prefill of the `run` has not dropped there.
        """

    def visible(self, view: View, run: Selection) -> torch.Tensor | None:
        """What the layer and decode step of `view` see of the patches; None for all that prefill left, as they are.

        Either the patches visible, bool [row, patch], or a bias that is added to their attention logits, float [row,
        patch] or [row, head, patch]: 0 leaves a patch as it is, -inf hides it, any other finite number weighs it anew.
        What is said of a patch that prefill has dropped does not count. A pruner that returns a finite bias other than
        0 says so (`reweights`). What later steps need is kept in the `run`.
        """

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


@dataclass(frozen=True)
class BeforeModel(Pruner):
    """Base of pruners that choose ``round(budget * n)`` patches by their embeddings, before the language model.

    A subclass says which, in ``keep``. Dropped patches are never seen by any layer or step.

    Parameters
    ----------
    budget : float
        Share kept, in (0, 1]; ValueError for any other.
    renumber : bool
        Count positions anew without the dropped patches, as the authors' code does, which published numbers come from;
        False keeps every token where the model put it. For models with one-dimensional positions that see the whole
        prompt in every layer; others raise ValueError when they decode.
    """

    budget: Share = 0.1
    renumber: bool = field(default=False, kw_only=True)

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        """The patches of `layout` to keep, bool [row, patch], `k` int64 [row] of them; `view` is of layer 0."""
        raise NotImplementedError

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        if view.layer > 0:
            return None
        run.kept = self.keep(view, run.layout, nearest_k(self.budget, run.layout.counts))
        return run.kept


@dataclass(frozen=True)
class FixedShare(Pruner):
    """Base of pruners that keep the same share of the patches at every step: a subclass says which, in ``keep``.

    They choose once per decode step, at an anchor layer, for that layer and all later ones; those before see all.

    Parameters
    ----------
    budget : float
        Share of the patches kept, in (0, 1]; rounded down, at least one.
    anchor_layer : int, optional
        Zero-based; the model's default anchor if left out.
    """

    budget: Share = 0.05
    anchor_layer: LayerIndex | None = None

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        """The patches of `layout` to keep by `view`, bool [row, patch], exactly `k` int64 [row] of them."""
        raise NotImplementedError

    def choose(self, view: View, run: Selection) -> torch.Tensor | None:
        """What the step of `view`, which is of the anchor layer, keeps in this `run`: bool [row, patch]."""
        return self.keep(view, run.layout, run.k)

    def begin(self, run: Selection) -> None:
        run.anchor = resolve_anchor(self.anchor_layer, run.layout)
        run.budget = share_of_each(self.budget, run.layout.counts)
        run.k = budget_to_k(run.budget, run.layout.counts)
        run.most = int(run.k.max())

    def visible(self, view: View, run: Selection) -> torch.Tensor | None:
        if view.layer == run.anchor:
            run.kept = self.choose(view, run)
        return run.kept if view.layer >= run.anchor else None


@dataclass(frozen=True)
class Combined(Pruner):
    """What ``first | second`` makes: a patch stays visible where both leave it so, and biases are added.

    At each layer the second one sees what the first one has left; shares keep counting from the whole image, so that
    of what is left the second keeps its best, as many as its share of the whole image says.

    Parameters
    ----------
    first, second : Pruner
    """

    first: Pruner
    second: Pruner

    @property
    def renumbers(self) -> bool:
        return self.first.renumbers or self.second.renumbers

    @property
    def reweights(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether either weighs patches anew."""
        return self.first.reweights or self.second.reweights

    def begin(self, run: Selection) -> None:
        run.parts = parts = [self.first.start(run.layout), self.second.start(run.layout)]
        for part, other, pruner in zip(parts, reversed(parts), (self.second, self.first), strict=True):
            if part.recomputes and not other.recomputes and other.has("visible"):
                raise ValueError(
                    f"{pruner.name} acts at decode steps on a cache, which a run that computes everything anew has not "
                    "(fastv with per_step=True); leave one of them out"
                )
        run.pattern = reduce(or_, (part.pattern for part in parts))
        run.recomputes = any(part.recomputes for part in parts)
        run.by_place = next((part.by_place for part in parts if part.by_place), None)
        # A part that does nothing at decode steps has nothing to hold on to there.
        run.evicts = all(part.evicts or not part.has("visible") for part in parts)
        run.edits_cache = any(part.edits_cache for part in parts)
        run.dense_prefill = all(part.dense_prefill for part in parts)

    def observe_prefill(self, view: View, run: Selection) -> None:
        for part in run.parts:
            part.observe_prefill(view)

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        return _narrow(view, *(part.visible_prefill for part in run.parts))

    def left_before(self, layer: int, run: Selection) -> torch.Tensor | None:
        known = [left for part in run.parts if (left := part.left_before(layer)) is not None]
        return reduce(and_, known) if known else None

    def redirect(self, view: View, run: Selection) -> Redirect | None:
        first, second = (part.redirect(view) for part in run.parts)
        return second if first is None else first

    def rewrite(self, layer: int, states: torch.Tensor, run: Selection) -> torch.Tensor | None:
        new = None
        for part in run.parts:
            again = part.rewrite(layer, states if new is None else new)
            new = new if again is None else again
        run.moved = next((part.moved for part in run.parts if part.moved is not None), None)
        return new

    def edit_cache(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, left: torch.Tensor, run: Selection
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        new = None
        for part in run.parts:
            new = part.edit_cache(layer, *(new or (keys, values)), left) or new
        return new

    def visible(self, view: View, run: Selection) -> torch.Tensor | None:
        kept = _narrow(view, *(part.visible for part in run.parts))
        for name in ("budget", "mass"):
            said = [getattr(part, name) for part in reversed(run.parts) if getattr(part, name) is not None]
            setattr(run, name, said[0] if said else None)
        return kept

    def to_dict(self) -> dict[str, Any]:
        """A name that `make_pruner` takes apart again."""
        return {"name": f"{as_text(self.first)} | {as_text(self.second)}"}


def _narrow(view: View, choose_first: Any, choose_second: Any) -> torch.Tensor | None:
    """What is left of the patches when the second chooses among what the first one leaves."""
    first = choose_first(view)
    second = choose_second(view if first is None else view.only(first))
    if first is None or second is None:
        return second if first is None else first
    if first.dtype == second.dtype == torch.bool:
        return first & second
    first, second = as_bias(first), as_bias(second)
    # What the first one hides is hidden, whatever the second one says of it.
    both = torch.where(first == -torch.inf, first, first + second)
    return both[:, 0] if both.shape[1] == 1 else both


def as_text(pruner: Pruner) -> str:
    """Write a pruner as ``name(parameter=value, ...)``, which `make_pruner` reads back.

    Parameters
    ----------
    pruner : Pruner

    Returns
    -------
    str
    """
    name, *parameters = pruner.to_dict().items()
    inside = ", ".join(f"{key}={value!r}" for key, value in parameters)
    return f"{name[1]}({inside})" if inside else name[1]
