"""Pruners: which image patches stay visible, and when. One dataclass per method, one file per family.

Every module of this folder is imported, so a file with a pruner in it is all that a new method needs.
"""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from functools import reduce
from importlib import import_module
from operator import or_
from pkgutil import iter_modules
from typing import Any

from visionpulse_analysis.pruners.base import KNOWN, FixedShare, Pruner, Redirect, Selection, as_text
from visionpulse_analysis.pruners.baselines import KeepAll, LastStepOnly, PrefillOnce, Random, Uniform
from visionpulse_analysis.pruners.divprune import DivPrune
from visionpulse_analysis.pruners.fastv import FastV
from visionpulse_analysis.pruners.pyramiddrop import PyramidDrop
from visionpulse_analysis.pruners.view import Layout, View
from visionpulse_analysis.pruners.visionpulse import VisionPulse
from visionpulse_analysis.pruners.vtw import VTW

__all__ = [
    "VTW",
    "DivPrune",
    "FastV",
    "FixedShare",
    "KeepAll",
    "LastStepOnly",
    "Layout",
    "PrefillOnce",
    "Pruner",
    "PyramidDrop",
    "Random",
    "Redirect",
    "Selection",
    "Uniform",
    "View",
    "VisionPulse",
    "as_text",
    "list_pruners",
    "make_pruner",
]

for module in iter_modules(__path__):
    if not module.ispkg:  # `networks` are of torch
        import_module(f"{__name__}.{module.name}")


def list_pruners() -> dict[str, type[Pruner]]:
    """All pruners, including those defined by the user as subclasses of :class:`Pruner`.

    Returns
    -------
    dict of str to class, sorted by name
    """
    return dict(sorted(KNOWN.items()))


def make_pruner(name: str, **parameters: Any) -> Pruner:
    """Build a pruner by name, or from text such as ``fastv(budget=0.2) | visionpulse:10``.

    Parameters
    ----------
    name : str
        One of `list_pruners`, perhaps with one of its presets after a colon, or one or more with their parameters in
        brackets, joined by ``|``. A parameter that is given counts more than the preset's.
    **parameters
        Those of a single name without brackets; the class's docstring explains them.

    Returns
    -------
    Pruner

    Raises
    ------
    ValueError
        An unknown name, preset or parameter (the message names those that exist), a value out of range, or text that
        cannot be read.

    Examples
    --------
    >>> make_pruner("fastv", budget=0.2) == make_pruner("fastv(budget=0.2)")
    True
    >>> make_pruner("visionpulse:10") == VisionPulse.ten_percent()
    True
    """
    if not isinstance(name, str):
        raise ValueError(f"a pruner is named by a text, one of {', '.join(list_pruners())}; got {name!r}")
    if name.partition(":")[0] in KNOWN and re.fullmatch(r"[\w:.-]+", name):
        return _make(name, parameters)
    parts = [_make(part, own) for part, own in parse(name)]
    if parameters:
        raise ValueError(f"write the parameters of {name!r} inside its brackets, got {', '.join(parameters)} beside it")
    return reduce(or_, parts)


def _make(name: str, parameters: dict[str, Any]) -> Pruner:
    known, (name, colon, preset) = list_pruners(), name.partition(":")
    if name not in known:
        raise ValueError(f"no pruner {name!r}; known: {', '.join(known)}")
    presets = known[name].presets
    if colon and preset not in presets:
        raise ValueError(f"pruner {name!r} has no preset {preset!r}; it has {', '.join(presets) or 'none'}")
    taken = [field.name for field in fields(known[name])]
    wrong = [parameter for parameter in parameters if parameter not in taken]
    if wrong:
        raise ValueError(
            f"pruner {name!r} has no parameter {', '.join(map(repr, wrong))}; it takes {', '.join(taken) or 'none'}"
        )
    return known[name](**{**(presets[preset] if colon else {}), **parameters})


_QUOTED_OR_PRESET = re.compile(r"""('[^']*'|"[^"]*")|(?<=\w)\s*:\s*(\w[\w.-]*)""")
_ATTRIBUTE = "preset_"  # and the preset's name in hexadecimal, which may hold dots and hyphens
_PRESET = re.compile(rf"\.{_ATTRIBUTE}([0-9a-f]+)")


def as_expression(text: str) -> str:
    """The text as Python reads it: ``name:preset`` becomes an attribute of the name; quoted text stays."""
    return _QUOTED_OR_PRESET.sub(lambda found: found[1] or f".{_ATTRIBUTE}{found[2].encode().hex()}", text.strip())


def from_expression(node: ast.expr) -> str:
    """The text of a part of such an expression."""
    return _PRESET.sub(lambda found: f":{bytes.fromhex(found[1]).decode()}", ast.unparse(node))


def parse(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Take a `text` such as ``a(x=1) | b:preset`` apart into names, with their presets, and parameters, in its order.

    Raises ValueError where the text is not of that form.
    """
    try:
        return _parts(ast.parse(as_expression(text), mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"a pruner is written name, name(parameter=value) or a | b, got {text!r}") from error


def parts_of(text: str) -> list[str]:
    """Take a `text` such as ``a(x=1, y=2), b | c`` apart at the commas outside of brackets.

    Raises ValueError where the text is not of that form, or names none.
    """
    try:  # commas inside brackets separate parameters: Python's own parser tells them apart
        parsed = ast.parse(f"[{as_expression(text)}]", mode="eval").body
    except (SyntaxError, ValueError):
        parsed = None
    if not isinstance(parsed, ast.List):
        raise ValueError(f"expected pruners separated by commas, such as fastv,random(budget=0.1); got {text!r}")
    if not parsed.elts:
        raise ValueError("no pruner named; name some, separated by commas: fastv,divprune | visionpulse")
    return [from_expression(part) for part in parsed.elts]


def _parts(node: ast.expr) -> list[tuple[str, dict[str, Any]]]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_parts(node.left), *_parts(node.right)]
    if isinstance(node, ast.Call) and not node.args:
        return [(_name(node.func), {str(word.arg): ast.literal_eval(word.value) for word in node.keywords})]
    return [(_name(node), {})]


def _name(node: ast.expr) -> str:
    """A name, or name and preset."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr.startswith(_ATTRIBUTE):
        return from_expression(node)
    raise ValueError(ast.unparse(node))
