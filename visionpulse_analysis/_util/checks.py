"""Input checks that modules share: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import ArrayLike

# What a temperature may be: logits of up to 1e8 divided by it neither overflow nor vanish in float32.
TEMPERATURES = (1e-30, 1e30)

BROKEN = (
    "no token can be chosen: the model returned NaN, +inf, or only -inf; its weights are damaged, or its numbers "
    "overflow in this dtype (try dtype='float32')"
)


class UnsupportedModelError(ValueError):
    """The model cannot be recorded exactly, and the message says why."""


@dataclass(frozen=True)
class Interval:
    """Bounds of a number, in its annotation: ``budget: Annotated[float, Interval(gt=0, le=1)]``.

    ``what`` says in words what is bounded, as in "a share of the patches in (0, 1]".
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    what: str = ""

    def __contains__(self, value: float) -> bool:
        return (
            (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )

    def __str__(self) -> str:
        low, high = self.ge if self.gt is None else self.gt, self.le if self.lt is None else self.lt
        if low is None:
            words = f"{'at most' if self.lt is None else 'below'} {high}"
        elif high is None:
            words = f"{'at least' if self.gt is None else 'above'} {low}"
        else:
            words = f"in {'[' if self.gt is None else '('}{low}, {high}{']' if self.lt is None else ')'}"
        return f"{self.what} {words}".strip()


PROSE = {NoneType: "None", bool: "True or False", int: "a whole number", float: "a finite number", str: "a text"}
NAMES = {NoneType: "None", object: "any literal", **{kind: kind.__name__ for kind in (bool, int, float, str)}}
_SEQUENCES = (list, tuple)


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The annotations of which one must hold: those of a union, or the one that was given."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is what an annotation says.

    Numbers are finite, True is no number, a whole number fits ``float``, and a list, a tuple and an array fit each
    other's annotation. None, bool, int, float, str, Literal, lists, tuples, dicts, unions of these and what `Interval`
    bounds are looked at; any other annotation is left to its owner and holds.
    """
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Annotated:
        bounds = [one for one in inner[1:] if isinstance(one, Interval)]
        return fits(value, inner[0]) and all(value is None or value in bound for bound in bounds)
    if origin is Literal:
        kind = str if isinstance(value, str) else type(value)  # compared as well, for True is equal to 1
        return any(kind is type(one) and value == one for one in inner)
    if origin in _SEQUENCES:
        return isinstance(value, (*_SEQUENCES, np.ndarray)) and all(fits(one, inner[0]) for one in value if inner)
    if origin is dict:
        pairs = value.items() if isinstance(value, dict) else ()
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in pairs if inner)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and -np.inf < value < np.inf
    if kind is int:
        return isinstance(value, int | np.integer) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in PROSE else True


def expected(kind: Any, words: Mapping[Any, str] = PROSE) -> str:
    """What an annotation asks for, in `words` for the plain kinds: "a whole number or None"."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(expected(one, words) for one in inner)
    if origin is Annotated:
        return " ".join([expected(inner[0], words), *(str(one) for one in inner[1:] if isinstance(one, Interval))])
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in _SEQUENCES:
        return f"a list{' of' if origin is list else ', each'} {expected(inner[0], words)}"
    return words.get(kind) or getattr(kind, "__name__", str(kind))


def checked(value: Any, kind: Any, name: str) -> Any:
    """The value, NumPy's scalars as Python's; raises ValueError unless it is what the annotation ``kind`` says.

    A number of the right kind is told the bounds that it breaks, any other value only the kinds.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if fits(value, kind):
        return value
    kinds = []
    for one in alternatives(kind):
        plain, *bounds = get_args(one) if get_origin(one) is Annotated else [one]
        if fits(value, plain):
            broken = next(bound for bound in bounds if isinstance(bound, Interval) and value not in bound)
            raise ValueError(f"{name} must be {broken}, got {value!r}")
        kinds.append(expected(plain))
    raise ValueError(f"{name} must be {' or '.join(kinds)}, got {value!r}")


def whole_number(value: Any, name: str, least: int | None = None, most: int | None = None) -> int:
    """Return an int; raise ValueError for anything else (also 5.0, "5" and True) or outside the limits."""
    bounds = [Interval(ge=least)] * (least is not None) + [Interval(le=most)] * (most is not None)
    return checked(value, Annotated[int, *bounds] if bounds else int, name)


def did_you_mean(given: Any, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`` Did you mean 'budget'?`` for the closest of the known names, to stand behind an error; else nothing."""
    close = difflib.get_close_matches(str(given), list(known), n=1, cutoff=cutoff)
    return f" Did you mean {close[0]!r}?" if close else ""


def plain_text(given: Any) -> Any:
    """NumPy's text, and pandas' columns of it, as Python's own: a str, or lists of str; anything else as it is."""
    given = given.to_numpy() if hasattr(given, "to_numpy") else given
    if isinstance(given, np.ndarray) and given.dtype.kind in "UOT":
        given = given.tolist()
    if isinstance(given, list | tuple):
        return type(given)([plain_text(one) for one in given]) if type(given) in (list, tuple) else given
    return str(given) if isinstance(given, np.str_) else given


def check_temperature(value: float, advice: str = "") -> None:
    """Raise ValueError unless softmax can be computed at this temperature."""
    low, high = TEMPERATURES
    if not low <= value <= high:
        raise ValueError(f"temperature must be above 0 (from {low} to {high}), got {value!r}{advice}")


def check_fields(given: Any) -> None:
    """Raise ValueError unless a dataclass's fields are what its annotations say; NumPy's scalars become Python's."""
    for field in fields(given):
        name = field.name
        object.__setattr__(given, name, checked(getattr(given, name), _kinds(type(given)).get(name, Any), name))


@cache
def _kinds(kind: type) -> dict[str, Any]:
    try:
        return get_type_hints(kind, include_extras=True)
    except NameError:  # a class of the user whose annotations name something local
        return {}


def attention_array(attention: ArrayLike, name: str = "attention", ndim: int = 1) -> np.ndarray:
    """Return attention as float64 [..., patch]; raise ValueError unless finite, >= 0, with >= `ndim` axes."""
    array = finite_array(attention, name)
    if array.ndim < ndim or array.shape[-1] == 0:
        raise ValueError(
            f"{name} needs at least {ndim} axes, the last one patches (1 or more); got shape {array.shape}"
        )
    if (array < 0).any():
        where, value = _first(array, array < 0)
        raise ValueError(f"{name} holds softmax weights, expected >= 0; got {value} at {where}. Logits need a softmax.")
    return array


def finite_array(values: ArrayLike, name: str) -> np.ndarray:
    """Return numbers as float64; raise ValueError at the first NaN or infinity."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be real numbers; got dtype {array.dtype}")
    array = array.astype(np.float64)
    bad = ~np.isfinite(array)
    if bad.any():
        where, value = _first(array, bad)
        raise ValueError(f"{name} must be finite; got {int(bad.sum())} NaN or infinite, the first {value} at {where}")
    return array


def bool_array(values: ArrayLike, name: str) -> np.ndarray:
    """Return a bool array [..., patch]; raise ValueError for any other dtype (indices are no mask)."""
    array = np.asarray(values)
    if array.dtype != bool or array.ndim < 1 or array.shape[-1] == 0:
        raise ValueError(
            f"{name} must be a bool mask [..., patch] with 1 or more patches; "
            f"got dtype {array.dtype}, shape {array.shape}"
        )
    return array


def same_patches(a: np.ndarray, b: np.ndarray, names: str) -> None:
    """Raise ValueError unless both arrays have the same number of patches and broadcastable leading axes."""
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"{names} must have the same patches on the last axis; got shapes {a.shape} and {b.shape}")
    try:
        np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ValueError(f"{names} must broadcast against each other; got shapes {a.shape} and {b.shape}") from None


def _first(array: np.ndarray, bad: np.ndarray) -> tuple[list[int], float]:
    where = tuple(np.argwhere(bad)[0])
    return [int(index) for index in where], float(array[where])
