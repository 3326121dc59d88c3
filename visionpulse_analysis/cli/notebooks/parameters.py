"""The parameters of a notebook: which names it has, and whether given values fit them.

papermill only warns about an unknown name and overlooks annotated ones, so a typo would silently run the
default. Here the cell tagged ``parameters`` is read with :mod:`ast`, and what does not fit raises.
"""

import ast
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nbformat

_TYPES: dict[str, type] = {t.__name__: t for t in (bool, int, float, str, list, tuple, dict)}


@dataclass(frozen=True)
class Parameter:
    """One line ``name = default`` or ``name: annotation = default`` of a parameters cell.

    ``accepts`` holds types (any value of that type fits) and literal values (only that value fits);
    ``object`` accepts everything, as for ``name = None`` without annotation.
    """

    name: str
    default: Any
    accepts: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name} = {self.default!r}"

    @property
    def expects(self) -> str:
        """What fits, in words, such as ``int or None``."""
        return " or ".join(_name(accepted) for accepted in self.accepts)

    def convert(self, value: Any) -> Any:
        """Return ``value`` as the notebook will see it.

        A string, as typed on a command line, is read as a Python literal when the parameter is not itself a
        plain string. An int fits a float parameter, a tuple fits a list.

        Raises
        ------
        ValueError
            The value does not fit, or cannot be written as a Python literal.
        """
        given = os.fspath(value) if isinstance(value, os.PathLike) else value
        readings = [given]
        if isinstance(given, str) and self.accepts != (str,):
            readings = [_literal_or_text(given), given]
        for reading in readings:
            for accepted in self.accepts:
                if _fits(reading, accepted):
                    return _as_type(reading, accepted)
        raise ValueError(
            f"parameter {self.name!r}: got {value!r} ({type(value).__name__}), "
            f"expected {self.expects} (default: {self.default!r})"
        )


def parameters_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the one code cell tagged ``parameters``; raise ValueError when there is not exactly one."""
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1 or cells[0].cell_type != "code":
        raise ValueError(f"expected exactly one code cell tagged 'parameters', found {len(cells)} tagged cells")
    return cells[0]


def read_parameters(notebook: nbformat.NotebookNode) -> dict[str, Parameter]:
    """Read names, defaults and accepted types from the cell tagged ``parameters``.

    Raises
    ------
    ValueError
        Not exactly one such cell, or it holds something else than ``name = literal`` lines.
    """
    parameters = {}
    for line in ast.parse(parameters_cell(notebook).source).body:
        parameter = _read_line(line)
        if parameter.name in parameters:
            raise ValueError(f"parameter {parameter.name!r} is set twice in the parameters cell")
        parameters[parameter.name] = parameter
    return parameters


def check_parameters(known: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``given`` with every value converted for its parameter.

    Raises
    ------
    ValueError
        A name is not in ``known`` (the message lists the known ones) or a value does not fit.
    """
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            listing = ", ".join(str(parameter) for parameter in known.values()) or "none"
            raise ValueError(f"unknown parameter {name!r}.{hint} Known parameters and defaults: {listing}")
    return {name: known[name].convert(value) for name, value in given.items()}


def _read_line(line: ast.stmt) -> Parameter:
    try:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                default = ast.literal_eval(value)
                accepts = (object,) if default is None else (type(default),)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
                default = ast.literal_eval(value)
                accepts = _read_annotation(annotation)
            case _:
                raise ValueError("not an assignment to one name")
    except ValueError as error:
        raise ValueError(
            f"line {line.lineno} of the parameters cell is {ast.unparse(line)!r}; expected `name = literal` "
            f"or `name: int | None = literal`, with nothing computed: {error}"
        ) from error
    parameter = Parameter(name, default, accepts)
    if not any(_fits(default, accepted) for accepted in accepts):
        raise ValueError(f"parameter {name!r}: its default {default!r} is not {parameter.expects}")
    return parameter


def _read_annotation(node: ast.expr) -> tuple[Any, ...]:
    match node:
        case ast.Name(id=name) if name in _TYPES:
            return (_TYPES[name],)
        case ast.Constant(value=None):
            return (type(None),)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _read_annotation(left) + _read_annotation(right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            choices = ast.literal_eval(values)
            return choices if isinstance(choices, tuple) else (choices,)
        case ast.Subscript(value=ast.Name(id=name)) if name in _TYPES:
            return (_TYPES[name],)
    raise ValueError(f"annotation {ast.unparse(node)!r} is not one of {', '.join(_TYPES)}, None, Literal, or a | b")


def _literal_or_text(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _fits(value: Any, accepted: Any) -> bool:
    if not _is_literal(value):
        return False
    if accepted is object:
        return True
    if not isinstance(accepted, type):
        return type(value) is type(accepted) and value == accepted
    # Exact types: True is an int to isinstance, but n_samples=True is a mistake.
    return (
        type(value) is accepted
        or (accepted is float and type(value) is int)
        or (accepted is list and type(value) is tuple)
    )


def _as_type(value: Any, accepted: Any) -> Any:
    return accepted(value) if accepted in (float, list) else value


def _is_literal(value: Any) -> bool:
    """Whether the value survives being written into a cell: arrays, numpy scalars and NaN do not."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False


def _name(accepted: Any) -> str:
    if accepted is object:
        return "any literal"
    if accepted is type(None):
        return "None"
    return accepted.__name__ if isinstance(accepted, type) else repr(accepted)
