"""Two pruners at once, and pruners written as text: ``fastv(budget=0.2) | visionpulse``."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any

import torch

from visionpulse_analysis.pruners.base import Pruner, Redirect, Selection
from visionpulse_analysis.pruners.view import Layout, View, as_bias


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

    def start(self, layout: Layout) -> Selection:
        parts = [self.first.start(layout), self.second.start(layout)]
        for part, other, pruner in zip(parts, reversed(parts), (self.second, self.first), strict=True):
            if part.recomputes and not other.recomputes and type(other).visible is not Selection.visible:
                raise ValueError(
                    f"{pruner.name} acts at decode steps on a cache, which a run that computes everything anew has not "
                    "(fastv with per_step=True); leave one of them out"
                )
        return _CombinedSelection(layout, parts)

    def to_dict(self) -> dict[str, Any]:
        """A name that `make_pruner` takes apart again."""
        return {"name": f"{as_text(self.first)} | {as_text(self.second)}"}


class _CombinedSelection(Selection):
    def __init__(self, layout: Layout, parts: list[Selection]):
        super().__init__(layout)
        self.parts = parts
        self.frozen_layers = frozenset().union(*(part.frozen_layers for part in parts))
        self.recomputes = any(part.recomputes for part in parts)
        # A part that does nothing at decode steps has nothing to hold on to there.
        self.forgets = all(part.forgets or type(part).visible is Selection.visible for part in parts)

    @property
    def settles(self) -> bool:
        return any(part.settles for part in self.parts)

    @property
    def dense_prefill(self) -> bool:
        return all(part.dense_prefill for part in self.parts)

    def observe_prefill(self, view: View) -> None:
        for part in self.parts:
            part.observe_prefill(view)

    def visible_prefill(self, view: View) -> torch.Tensor | None:
        return self._narrow([part.visible_prefill for part in self.parts], view)

    def left_before(self, layer: int) -> torch.Tensor | None:
        known = [left for part in self.parts if (left := part.left_before(layer)) is not None]
        return reduce(and_, known) if known else None

    @property
    def moved(self) -> torch.Tensor | None:
        return next((part.moved for part in self.parts if part.moved is not None), None)

    def redirect(self, view: View) -> Redirect | None:
        first, second = (part.redirect(view) for part in self.parts)
        return second if first is None else first

    def rewrite(self, layer: int, states: torch.Tensor) -> torch.Tensor | None:
        new = self.parts[0].rewrite(layer, states)
        again = self.parts[1].rewrite(layer, states if new is None else new)
        return new if again is None else again

    def settle(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, left: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        first = self.parts[0].settle(layer, keys, values, left)
        return self.parts[1].settle(layer, *(first or (keys, values)), left) or first

    def visible(self, view: View) -> torch.Tensor | None:
        kept = self._narrow([part.visible for part in self.parts], view)
        numbers = [[part.budget for part in self.parts], [part.mass for part in self.parts]]
        self.budget, self.mass = (next((n for n in reversed(pair) if n is not None), None) for pair in numbers)
        return kept

    def _narrow(self, choose: list[Any], view: View) -> torch.Tensor | None:
        first = choose[0](view)
        second = choose[1](view if first is None else view.only(first))
        if first is None or second is None:
            return second if first is None else first
        if first.dtype == second.dtype == torch.bool:
            return first & second
        first, second = as_bias(first), as_bias(second)
        # What the first one hides is hidden, whatever the second one says of it.
        return torch.where(first == -torch.inf, first, first + second)

    def drop_rows(self, rows: torch.Tensor) -> None:
        super().drop_rows(rows)
        for part in self.parts:
            part.drop_rows(rows)


def as_text(pruner: Pruner) -> str:
    """Write a pruner as ``name(parameter=value, ...)``, which `parse` and `make_pruner` read back.

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
