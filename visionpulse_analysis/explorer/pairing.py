"""Traces shown together: what they need in common, what they are called, how their tokens are laid side by side."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from visionpulse_analysis.traces.quantities import Quantity


def names(traces: list) -> list[str]:
    """One word per trace: "Dense" and "Pruned" where that is what they are."""
    if len(traces) == 1:
        return ["Pruned" if traces[0].kept is not None else "Dense"]
    dense, *others = (trace.kept is None for trace in traces)
    first, other = ("Dense", "Pruned") if dense and not any(others) else ("First", "Second")
    return [first, *[other] * len(others)]


def identities(trace) -> list[int]:
    """Token ids, by which traces are aligned."""
    return np.asarray(trace.token_ids).tolist()


def shared_layers(traces: list) -> list[int]:
    """Layers recorded in every trace, in order.

    Raises
    ------
    ValueError
        There is none; the message lists what was recorded.
    """
    shared = set.intersection(*(set(trace.layers) for trace in traces))
    if not shared:
        recorded = " and ".join(str(sorted(trace.layers)) for trace in traces)
        raise ValueError(f"no layer to show: the recorded layers are {recorded}. Record one, the same in all traces.")
    return sorted(shared)


def most_visual_layer(trace, layers: list[int]) -> int:
    """The layer with the most visual mass, on average over steps and heads."""
    mass = trace.mass.sel(layer=layers)
    others = [dim for dim in mass.dims if dim != "layer"]
    return layers[int(np.argmax(mass.mean(others).values))]


def check_traces(traces: list) -> None:
    """Raise unless the traces can be shown, together if there are several.

    Raises
    ------
    ValueError
        A trace has no step or no patch, or one differs from the first in its patches or images.
    """
    for trace in traces:
        if not len(trace) or not len(trace.grid):
            raise ValueError(
                f"trace {trace.meta.get('id', '')!r} has {len(trace)} steps and {len(trace.grid)} image patches; "
                "at least one of each is needed to show something"
            )
    for other in traces[1:]:
        _check_alike(traces[0], other)


def _check_alike(one, other) -> None:
    a, b = one.grid, other.grid
    if any(
        not np.array_equal(getattr(a, f), getattr(b, f)) for f in ("image", "frame", "row", "col", "box", "image_size")
    ):
        raise ValueError(
            f"the traces have different patch grids ({len(a)} and {len(b)} patches). "
            "Explore traces of the same image, or each on its own."
        )
    pairs = zip(one.images, other.images, strict=False)
    if len(one.images) != len(other.images) or any(not np.array_equal(x, y) for x, y in pairs):
        raise ValueError("the traces show different images. Explore those of one image together, or each on its own.")


def shared_quantities(traces: list) -> dict[str, Quantity]:
    """The quantities of attention calls that every trace holds, by name: what can be chosen to be shown."""
    first, *others = (trace.quantities for trace in traces)
    return {
        name: row
        for name, row in first.items()
        if row.axes[:2] == ("step", "layer") and all(other.get(name) == row for other in others)
    }


@dataclass(frozen=True)
class Alignment:
    """Two token sequences laid over one row of columns.

    Attributes
    ----------
    first, second : list of int
        The step of each sequence in each column, -1 for none; a column with both holds the same token.
    divergence : int or None
        The first column at which they part; None when the sequences are equal.
    by_step : bool
        A column is a step of each, and from the divergence on their tokens have nothing to do with each other.
    """

    first: list[int]
    second: list[int]
    divergence: int | None
    by_step: bool = False

    def paired(self, column: int) -> bool:
        """Whether the two tokens of a column are the same one, so that what they looked at can be compared."""
        parted = self.by_step and self.divergence is not None and column >= self.divergence
        return min(self.first[column], self.second[column]) >= 0 and not parted


def align(first: Sequence, second: Sequence) -> Alignment:
    """Align two token sequences: the common beginning, then the longest matching runs.

    Only equal tokens share a column; of a replaced run, the first sequence's columns come first.

    Examples
    --------
    >>> align("abcd", "abxd")
    Alignment(first=[0, 1, 2, -1, 3], second=[0, 1, -1, 2, 3], divergence=2, by_step=False)
    """
    common = 0
    while common < min(len(first), len(second)) and first[common] == second[common]:
        common += 1
    columns = [(step, step) for step in range(common)]
    matcher = SequenceMatcher(None, first[common:], second[common:], autojunk=False)
    for tag, i0, i1, j0, j1 in matcher.get_opcodes():
        if tag == "equal":
            columns += [(common + i, common + j) for i, j in zip(range(i0, i1), range(j0, j1), strict=True)]
        else:
            columns += [(common + i, -1) for i in range(i0, i1)]
            columns += [(-1, common + j) for j in range(j0, j1)]
    return Alignment(
        first=[column[0] for column in columns],
        second=[column[1] for column in columns],
        divergence=common if common < len(columns) else None,
    )


def columns_of(first: Sequence, second: Sequence) -> Alignment:
    """Lay two token sequences side by side: aligned, unless they share fewer than half of the shorter one's tokens.

    Aligned, such ones would stand one after the other: their columns are the steps.

    Examples
    --------
    >>> columns_of("abcd", "axyzw")
    Alignment(first=[0, 1, 2, 3, -1], second=[0, 1, 2, 3, 4], divergence=1, by_step=True)
    """
    aligned = align(first, second)
    shared = sum(map(aligned.paired, range(len(aligned.first))))
    if 2 * shared >= min(len(first), len(second)):
        return aligned
    steps = range(max(len(first), len(second)))
    a, b = ([step if step < len(tokens) else -1 for step in steps] for tokens in (first, second))
    return Alignment(a, b, aligned.divergence, by_step=True)


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
