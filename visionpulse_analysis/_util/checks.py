"""Input checks that modules share: what was given, what was expected, what to do."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

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


def whole_number(value: Any, name: str, least: int | None = None, most: int | None = None) -> int:
    """Return an int; raise ValueError for anything else (also 5.0, "5" and True) or outside the limits."""
    number = value.item() if isinstance(value, np.integer) else value
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most}, got {value!r}")
    return number


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
    """Raise ValueError unless the fields of a dataclass are what its annotations say; NumPy's scalars become Python's.

    Numbers must be finite, and True is none. Annotations other than None, bool, int, float, str, Literal, tuples and
    unions of these are left to their owner.
    """
    for field in fields(given):
        name, kind = field.name, _kinds(type(given)).get(field.name, Any)
        value = getattr(given, name)
        if isinstance(value, np.generic):
            value = value.item()
            object.__setattr__(given, name, value)
        if not _fits(value, kind):
            raise ValueError(f"{name} must be {_words(kind)}, got {value!r}")


@cache
def _kinds(kind: type) -> dict[str, Any]:
    try:
        return get_type_hints(kind)
    except NameError:  # a class of the user whose annotations name something local
        return {}


_PLAIN = {NoneType: "None", bool: "True or False", int: "a whole number", float: "a finite number", str: "a text"}


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return any(value is word or (isinstance(value, str) and value == word) for word in inner)
    if origin is tuple:
        return isinstance(value, tuple | list | np.ndarray) and all(_fits(one, inner[0]) for one in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and -np.inf < value < np.inf
    if kind is int:
        return isinstance(value, int | np.integer) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in _PLAIN else True


def _words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_words(one) for one in inner)
    if origin is Literal:
        return " or ".join(repr(word) for word in inner)
    if origin is tuple:
        return f"a list, each {_words(inner[0])}"
    return _PLAIN.get(kind, str(kind))


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
