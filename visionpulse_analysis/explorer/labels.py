"""What the pruners of several traces are called, so that a reader tells them apart."""

from __future__ import annotations

import ast


def labels(traces: list) -> list[str]:
    """What tells the traces beside the first apart: the pruner's name, and the parameters in which namesakes differ.

    Empty for the first trace, and for the other one where there are only two.
    """
    if len(traces) < 3:
        return [""] * len(traces)
    pruners = [_parts(trace) for trace in traces[1:]]
    called = [pruner_name(trace) or "no pruner" for trace in traces[1:]]
    told = []
    for name, parts in zip(called, pruners, strict=True):
        same = [other for known, other in zip(called, pruners, strict=True) if known == name]
        told.append(" | ".join(_told(i, parts, same) for i in range(len(parts))) or name)
    again = [told[:index].count(label) + 1 for index, label in enumerate(told)]
    return ["", *(label if n == 1 else f"{label} ({n})" for label, n in zip(told, again, strict=True))]


def pruner_name(trace) -> str:
    """The name of a trace's pruner, of two the names alone; empty without one, or where none was recorded."""
    return " | ".join(name for name, _ in _parts(trace))


def _told(i: int, parts: list, same: list[list]) -> str:
    """Part ``i`` of a pruner, with the parameters in which its namesakes differ."""
    name, parameters = parts[i]
    differ = [key for key in parameters if any(other[i][1].get(key) != parameters[key] for other in same)]
    inside = ", ".join(f"{key}={parameters[key]}" for key in differ)
    return f"{name}({inside})" if inside else name


def _parts(trace) -> list[tuple[str, dict[str, str]]]:
    """Names and parameters of a trace's pruner, of ``a(x=1) | b`` both; empty without one."""
    pruner = trace.meta.get("pruner")
    if not isinstance(pruner, dict) or "name" not in pruner:
        return []
    try:
        parts = _split(ast.parse(str(pruner["name"]), mode="eval").body)
    except SyntaxError:
        parts = [(str(pruner["name"]), {})]
    if len(parts) == 1:
        parts[0][1].update({key: repr(value) for key, value in pruner.items() if key != "name"})
    return parts


def _split(node: ast.expr) -> list[tuple[str, dict[str, str]]]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_split(node.left), *_split(node.right)]
    if isinstance(node, ast.Call):
        return [(ast.unparse(node.func), {str(word.arg): ast.unparse(word.value) for word in node.keywords})]
    return [(ast.unparse(node), {})]
