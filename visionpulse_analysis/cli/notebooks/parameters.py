"""The parameters of a notebook: which names it has, and whether given values fit them.

papermill only warns about an unknown name and overlooks annotated ones, so a typo would silently run the
default. Here the cell tagged ``parameters`` is read with :mod:`ast`, and what does not fit raises.
"""

import ast
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_origin

from visionpulse_analysis._util.checks import NAMES, alternatives, did_you_mean, expected, fits

_KINDS: dict[str, type] = {kind.__name__: kind for kind in (bool, int, float, str, list, tuple, dict)}


@dataclass(frozen=True)
class Parameter:
    """One line ``name = default`` or ``name: annotation = default`` of a parameters cell.

    ``kind`` is the annotation, or the type of the default; ``object``, as for ``name = None``, accepts every literal.
    """

    name: str
    default: Any
    kind: Any

    def __str__(self) -> str:
        return f"{self.name} = {self.default!r}"

    @property
    def expects(self) -> str:
        """What fits, in words, such as ``int or None``."""
        return expected(self.kind, NAMES)

    def convert(self, value: Any) -> Any:
        """Return ``value`` as the notebook will see it.

        A string, as typed on a command line, is read as a Python literal when the parameter is not itself a plain
        string. An int fits a float parameter, a tuple fits a list. Raises ValueError: the value does not fit, or cannot
        be written as a Python literal.
        """
        given = os.fspath(value) if isinstance(value, os.PathLike) else value
        readings = [_literal_or_text(given), given] if isinstance(given, str) and self.kind is not str else [given]
        for reading in filter(_is_literal, readings):
            for kind in alternatives(self.kind):
                if fits(reading, kind):
                    made = get_origin(kind) or kind
                    return made(reading) if made in (float, list, tuple) else reading
        raise ValueError(
            f"parameter {self.name!r}: got {value!r} ({type(value).__name__}), "
            f"expected {self.expects} (default: {self.default!r})"
        )


def parameters_cell(notebook: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the one code cell tagged ``parameters``; raise ValueError when there is not exactly one."""
    cells = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    if len(cells) != 1 or cells[0]["cell_type"] != "code":
        raise ValueError(f"expected exactly one code cell tagged 'parameters', found {len(cells)} tagged cells")
    return cells[0]


def read_parameters(notebook: Mapping[str, Any]) -> dict[str, Parameter]:
    """Read names, defaults and accepted types from the cell tagged ``parameters``.

    Raises ValueError: not exactly one such cell, or it holds something else than ``name = literal`` lines.

    Parameters
    ----------
    notebook : as :mod:`json` or nbformat reads the file
    """
    parameters = {}
    for line in ast.parse("".join(parameters_cell(notebook)["source"])).body:
        parameter = _read_line(line)
        if parameter.name in parameters:
            raise ValueError(f"parameter {parameter.name!r} is set twice in the parameters cell")
        parameters[parameter.name] = parameter
    return parameters


def check_parameters(known: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``given`` with every value converted for its parameter.

    Raises ValueError: a name is not in ``known`` (the message lists the known ones) or a value does not fit.
    """
    for name in given:
        if name not in known:
            listing = ", ".join(str(parameter) for parameter in known.values()) or "none"
            raise ValueError(
                f"unknown parameter {name!r}.{did_you_mean(name, known)} Known parameters and defaults: {listing}"
            )
    return {name: known[name].convert(value) for name, value in given.items()}


def _read_line(line: ast.stmt) -> Parameter:
    try:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                default = ast.literal_eval(value)
                kind = object if default is None else type(default)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
                default = ast.literal_eval(value)
                kind = _read_annotation(annotation)
            case _:
                raise ValueError("not an assignment to one name")
    except ValueError as error:
        raise ValueError(
            f"line {line.lineno} of the parameters cell is {ast.unparse(line)!r}; expected `name = literal` "
            f"or `name: int | None = literal`, with nothing computed: {error}"
        ) from error
    parameter = Parameter(name, default, kind)
    if not fits(default, kind):
        raise ValueError(f"parameter {name!r}: its default {default!r} is not {parameter.expects}")
    return parameter


def _read_annotation(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name) if name in _KINDS:
            return _KINDS[name]
        case ast.Constant(value=None):
            return None.__class__
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _read_annotation(left) | _read_annotation(right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            return Literal[ast.literal_eval(values)]  # pyright: ignore[reportInvalidTypeForm]
        case ast.Subscript(value=ast.Name(id="list" | "tuple" as name), slice=ast.Tuple(elts=[inner, *_]) | inner):
            item: Any = _read_annotation(inner)
            return list[item] if name == "list" else tuple[item, ...]
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, value])):
            return dict[_read_annotation(key), _read_annotation(value)]  # pyright: ignore[reportInvalidTypeForm]
    raise ValueError(f"annotation {ast.unparse(node)!r} is not one of {', '.join(_KINDS)}, None, Literal, or a | b")


def _literal_or_text(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _is_literal(value: Any) -> bool:
    """Whether the value survives being written into a cell: arrays, numpy scalars and NaN do not."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False
