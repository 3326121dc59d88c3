"""A pruner's parameters as fields of a form: names, kinds, bounds and meanings are read from its dataclass."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import ipywidgets

from visionpulse_analysis._util.checks import Interval, alternatives, checked
from visionpulse_analysis.pruners import Pruner

WIDE = {"description_width": "130px"}
_WORDS = {bool: "True or False", int: "whole number", float: "number", str: "text", NoneType: "empty"}


def read_field(text: str, kind: Any, name: str) -> Any:
    """The value that the `text` of a field stands for, by an annotation.

    Parameters
    ----------
    text : str
        A Python literal, a list without its brackets, or plain text. Empty is None.
    kind : annotation
        Such as ``Annotated[float, Interval(gt=0, le=1)] | None``.
    name : str
        Of the field, for the message.

    Returns
    -------
    Any

    Raises
    ------
    ValueError
        It is not of that kind, or out of bounds.
    """
    text = text.strip()
    if not text and NoneType not in alternatives(kind):
        raise ValueError(f"{name} is empty; expected {hint(kind)}")
    value: Any = text or None
    if text and str not in alternatives(kind):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if any(_is_list(one) for one in alternatives(kind)) and not isinstance(value, list | tuple | NoneType):
            value = tuple(part.strip(" '\"") for part in text.split(",")) if isinstance(value, str) else (value,)
    return checked(value, kind, name)


def write_field(value: Any) -> str:
    """The text by which `read_field` gives a value."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) + "," * (len(value) == 1)
    return str(value)


def hint(kind: Any) -> str:
    """What a field takes, in a few words: "a share of the patches in (0, 1], or empty"."""
    told = [_hint(one) for one in alternatives(kind)]
    return ", or ".join(told)


def _hint(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        plain, *bounds = get_args(kind)
        bound = next((one for one in bounds if isinstance(one, Interval)), None)
        return str(bound) if bound is not None and bound.what else f"{_hint(plain)} {bound or ''}".strip()
    if _is_list(kind):
        return f"{_hint(get_args(kind)[0])}s with commas between"
    return _WORDS.get(kind, str(kind))


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple)


def make_fields(kind: type[Pruner], given: Mapping[str, Any]) -> dict[str, ipywidgets.DOMWidget]:
    """One field for each parameter of a kind of pruner, with the values given, else its defaults."""
    kinds, meant = get_type_hints(kind, include_extras=True), _meanings(kind)
    return {
        one.name: _field(one.name, kinds[one.name], given.get(one.name, one.default), meant.get(one.name, ""))
        for one in fields(kind)
    }


def read_fields(kind: type[Pruner], made: Mapping[str, Any]) -> Pruner:
    """The pruner that the fields of `make_fields` say; ValueError where a value or their combination is not allowed."""
    kinds = get_type_hints(kind, include_extras=True)
    return kind(
        **{
            name: read_field(one.value, kinds[name], name) if isinstance(one, ipywidgets.Text) else one.value
            for name, one in made.items()
        }
    )


def _field(name: str, kind: Any, value: Any, meaning: str) -> Any:
    about = {"description": name, "style": WIDE, "tooltip": meaning, "description_allow_html": False}
    if kind is bool:
        return ipywidgets.Checkbox(value=value, indent=True, **about)
    if get_origin(kind) is Literal:
        return ipywidgets.Dropdown(options=get_args(kind), value=value, **about)
    return ipywidgets.Text(value=write_field(value), **about)


def _meanings(kind: type) -> dict[str, str]:
    """What the docstrings of a class and of its bases say of each parameter."""
    said: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        text = inspect.cleandoc(one.__dict__.get("__doc__") or "")
        for name, meaning in re.findall(r"^(\w+) : .*\n((?:    .*(?:\n|$))+)", text, re.MULTILINE):
            said[name] = " ".join(meaning.split())
    return said


def with_hints(kind: type[Pruner], made: Mapping[str, Any]) -> list[ipywidgets.Widget]:
    """The fields, and below each that is typed into what may stand there."""
    kinds = get_type_hints(kind, include_extras=True)
    return [hinted(one, hint(kinds[name]) if isinstance(one, ipywidgets.Text) else "") for name, one in made.items()]


def hinted(field: ipywidgets.DOMWidget, told: str) -> ipywidgets.VBox:
    """A field as wide as its place, and words below it."""
    field.layout.width = "auto"
    note = ipywidgets.HTML(f"<div class='vp-hint'>{escape(told)}</div>")
    return ipywidgets.VBox([field, note] if told else [field])


def side_by_side(fields: Sequence[ipywidgets.Widget]) -> ipywidgets.GridBox:
    """Fields in as many columns as there is room for."""
    columns = "repeat(auto-fill, minmax(min(300px, 100%), 1fr))"
    return ipywidgets.GridBox(fields, layout=ipywidgets.Layout(grid_template_columns=columns, grid_gap="0 16px"))
