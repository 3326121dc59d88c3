"""The table of recorded quantities: what each is called, its axes and unit, and how it is computed.

Whatever records, writes, reads, exchanges or shows a trace asks this table. `quantity` puts a row into it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

# What a quantity of one attention call may have, besides steps and layers; the only axes that a user's may have.
CALL_AXES = [("step", "layer", *more) for more in ((), ("head",), ("patch",), ("head", "patch"))]
_ROUNDING = 1e-4  # relative: a softmax row in float16 may sum to a little more than 1


@dataclass(frozen=True)
class Quantity:
    """One row of the table; made by `quantity`.

    Parameters
    ----------
    name : str
        An identifier: the key in ``trace.data`` and the name of the array in a store.
    axes : tuple of str
        In order, "step" first. Where the mean over heads is recorded, "head" is averaged away.
    unit, how : str
        In words.
    range : (float or None, float or None)
        Smallest and largest value that it can have.
    undefined : str
        When it has no value (NaN), in words; empty where it always has one.
    dtype : str
        As which it is kept.
    compute : callable, optional
        Makes it of a `visionpulse_analysis.attention.LayerAttention`: float [row, (head), (patch)] by its axes.
    source : str
        The text of that function, which goes with the numbers.
    """

    name: str
    axes: tuple[str, ...]
    unit: str
    how: str
    range: tuple[float | None, float | None] = (None, None)
    undefined: str = ""
    dtype: str = "float32"
    compute: Callable[[Any], Any] | None = field(default=None, compare=False, repr=False)
    source: str = field(default="", compare=False, repr=False)

    def __call__(self, call: Any) -> Any:
        """What `compute` makes of one attention call."""
        if self.compute is None:
            raise TypeError(f"how {self.name} is computed came without its function; its source says what it did")
        return self.compute(call)

    @property
    def label(self) -> str:
        """Its name in words."""
        return self.name.replace("_", " ")

    @property
    def may_be_negative(self) -> bool:
        return self.range[0] is None or self.range[0] < 0

    def recorded_axes(self, heads: Sequence[int] | None) -> tuple[str, ...]:
        """Its axes where these heads are recorded one by one, or (None) their mean."""
        return self.axes if heads is not None else tuple(axis for axis in self.axes if axis != "head")

    @property
    def attrs(self) -> dict[str, Any]:
        """What an array of it says of itself: ``unit``, ``how``, ``range``, ``undefined``, where they say something."""
        said = {"unit": self.unit, "how": self.how, "range": list(self.range), "undefined": self.undefined}
        return {name: value for name, value in said.items() if value not in ("", [None, None])}

    def check(self, values: np.ndarray) -> None:
        """Raise ValueError for NaN where it always has a value, for infinity, and for values out of range."""
        if np.isinf(values).any() or (not self.undefined and np.isnan(values).any()):
            count, nan = int((~np.isfinite(values)).sum()), bool(np.isnan(values).any())
            hint = "; where NaN means that it has no value, say undefined='when'" if nan else ""
            raise ValueError(f"quantity {self.name!r} gave {count} of {values.size} values that are NaN or infinite, "
                             f"expected finite {self.unit}{hint}")  # fmt: skip
        low, high = self.range
        found = values[np.isfinite(values)]
        if found.size and (
            (low is not None and found.min() < low - _ROUNDING * max(1.0, abs(low)))
            or (high is not None and found.max() > high + _ROUNDING * max(1.0, abs(high)))
        ):
            raise ValueError(
                f"quantity {self.name!r} gave values from {found.min():.4g} to {found.max():.4g}, expected {low} to "
                f"{high} {self.unit}: correct how it is computed, or its range"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON values, all but the function."""
        given = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "compute"}
        return {**given, "axes": list(self.axes), "range": list(self.range)}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Quantity:
        """Undo `to_dict`; raises TypeError or ValueError for what it did not make."""
        row = cls(**{**given, "axes": tuple(given["axes"]), "range": tuple(given["range"])})
        _check(row)
        return row


_SHARE = "share of the softmax row"
BUILT_IN = {
    row.name: row
    for row in (
        Quantity(
            "attention",
            CALL_AXES[3],
            _SHARE,
            "softmax row of the newest query over all keys, at the patches; not renormalised over the image",
            (0, 1),
            dtype="float16",
            compute=lambda call: call.patch_weights,
        ),
        Quantity(
            "mass",
            CALL_AXES[1],
            _SHARE,
            "sum of the attention over all patches, before rounding: the image's mass",
            (0, 1),
            compute=lambda call: call.patch_weights.sum(-1),
        ),
        Quantity("token_id", ("step",), "place in the vocabulary", "the token generated", (0, None), dtype="int64"),
        Quantity("logprob", ("step",), "nats", "log probability of the token, by the model's own logits", (None, 0)),
        Quantity("kept", ("step", "patch"), "", "True = visible at the last layer", dtype="bool"),
        Quantity(
            "budget", ("step",), "share of the patches", "what the pruner aimed at", (0, 1), "where it had none"
        ),
        Quantity("k", ("step",), "patches", "number of patches kept; -1 for none", (-1, None), dtype="int32"),
        Quantity("pruner_mass", ("step",), _SHARE, "image mass that the pruner saw", (0, 1), "where it saw none"),
        Quantity(
            "k_per_layer",
            ("step", "model_layer"),
            "patches",
            "visible at each layer of the model",
            (0, None),
            dtype="int32",
        ),
        Quantity(
            "similarity",
            ("step", "similarity_layer", "similarity_layer_2"),
            "cosine",
            "between the layers' attention, of a trace imported without their rows",
            (-1, 1),
        ),
    )
}  # fmt: skip
# Those that a decode brings at every step; of the others it depends on the pruner, on the file imported, or on record=.
ALWAYS = ("attention", "mass", "token_id", "logprob")
CHOICE = ("kept", "budget", "k", "pruner_mass", "k_per_layer")

# What else a dataset, a store or a step on its way calls by name.
RESERVED = {
    *"step layer head patch token steps patches pixels box position image frame row col side byte".split(),
    *"model_layer similarity_layer similarity_layer_2 attributes meta".split(),
}

_registered: dict[str, Quantity] = {}


def quantity(
    *,
    axes: Sequence[str],
    unit: str,
    range: tuple[float | None, float | None] = (None, None),
    undefined: str = "",
    how: str = "",
    name: str = "",
) -> Callable[[Callable[[Any], Any]], Quantity]:
    """Put a quantity of attention calls into the table: a decorator of the function that computes it.

    The function is given one attention call of a step, a :class:`visionpulse_analysis.attention.LayerAttention`
    (``query``, ``key``, ``value``, ``weights``, ``output``, ``patch_weights``, ``patch_values``, ...), and gives a
    tensor with the axes named, a row of the batch in place of step and layer. ``decode(..., record=[name])`` and
    ``watch(..., record=[name])`` then record it, and it is kept as float32.

    Parameters
    ----------
    axes : sequence of str
        "step", "layer", and perhaps "head", "patch", in this order. Give heads one by one: where their mean is
        recorded, it is taken afterwards.
    unit : str
        Such as "nats".
    range : (float or None, float or None)
        Smallest and largest possible value; others are refused.
    undefined : str
        When the function gives NaN, in words; without it NaN is refused.
    how : str
        How it is computed, in words; left out, the first paragraph of the function's docstring.
    name : str
        Left out, the function's.

    Returns
    -------
    decorator, which gives the Quantity; this can be called as the function was, and stand in ``record`` itself

    Raises
    ------
    ValueError
        The name is taken or none, the axes are others, the unit is missing, or nothing says how it is computed.

    Examples
    --------
    >>> @quantity(axes=("step", "layer", "head"), unit="share of the softmax row", range=(0, 1))
    ... def strongest(call):
    ...     "The weight of the most attended patch."
    ...     return call.patch_weights.amax(dim=-1)
    >>> strongest.name, strongest.attrs["how"]
    ('strongest', 'The weight of the most attended patch.')
    """

    def register(compute: Callable[[Any], Any]) -> Quantity:
        words = how or " ".join((inspect.getdoc(compute) or "").split("\n\n")[0].split())
        try:
            source = inspect.getsource(compute)
        except (OSError, TypeError):  # typed at a prompt, or not written in Python
            source = ""
        low, high = range
        row = Quantity(
            name or compute.__name__, tuple(axes), unit, words, (low, high), undefined, compute=compute, source=source
        )
        _check(row)
        old = _registered.get(row.name)
        if row.name in BUILT_IN or (old is not None and _place(old.compute) != _place(compute)):
            raise ValueError(f"a quantity named {row.name!r} is there already ({(old or BUILT_IN[row.name]).how}); "
                             "choose another name")  # fmt: skip
        _registered[row.name] = row
        return row

    return register


def _place(function: Any) -> tuple[str, str]:
    """Where a function was defined: a cell of a notebook that is run again may replace what it defined before."""
    return getattr(function, "__module__", ""), getattr(function, "__qualname__", "")


def _check(row: Quantity) -> None:
    """Raise ValueError for a row that is none."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", row.name) or row.name in RESERVED:
        raise ValueError(f"a quantity is named by lower-case letters, digits and _ (at most 64, and no word that a "
                         f"trace uses itself), got {row.name!r}; choose another name")  # fmt: skip
    if row.axes not in CALL_AXES:
        known = ", ".join(f"({', '.join(known)})" for known in CALL_AXES)
        raise ValueError(f"the axes of quantity {row.name!r} must be one of {known}, got {list(row.axes)}")
    if not row.unit or not row.how:
        raise ValueError(f"quantity {row.name!r} needs a unit and words that say how it is computed (how=, or a "
                         f"docstring), got unit {row.unit!r} and how {row.how!r}")  # fmt: skip


def registered() -> dict[str, Quantity]:
    """All rows of the table by name: what is always recorded or comes with a pruner, then what ``record`` can name."""
    return {**BUILT_IN, **_registered}


def quantities_of(record: Any) -> tuple[Quantity, ...]:
    """The rows that ``record`` names, a list of names or quantities; ValueError for anything else."""
    if isinstance(record, str | Quantity):
        record = [record]
    if not isinstance(record, list | tuple | set):
        raise ValueError(f"record must be a list of names or quantities, got {record!r}")
    rows: list[Quantity] = []
    for given in record:
        name = given.name if isinstance(given, Quantity) else given if isinstance(given, str) else repr(given)
        if name in BUILT_IN:
            raise ValueError(f"record names {name!r}, which is recorded without being asked for; leave it out")
        row = given if isinstance(given, Quantity) else _registered.get(name)
        if row is None or row.compute is None:
            raise ValueError(f"record names {name!r}, and there is no such quantity to compute; there are "
                             f"{', '.join(sorted(_registered))}: define it first, see vpa.quantity")  # fmt: skip
        rows.append(row)
    if len({row.name for row in rows}) < len(rows):
        raise ValueError(f"record names a quantity twice: {[row.name for row in rows]}")
    return tuple(rows)
