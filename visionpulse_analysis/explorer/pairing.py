"""What traces need in common to be shown together, and what they are called then."""

from __future__ import annotations

import numpy as np


def names(traces: list) -> list[str]:
    """One word per trace: "Dense" and "Pruned" where that is what they are."""
    if len(traces) == 1:
        return ["Pruned" if traces[0].kept is not None else "Dense"]
    dense, *others = (trace.kept is None for trace in traces)
    first, other = ("Dense", "Pruned") if dense and not any(others) else ("First", "Second")
    return [first, *[other] * len(others)]


def labels(traces: list) -> list[str]:
    """What tells the traces beside the first apart: the pruner's name, and the parameters in which namesakes differ.

    Empty for the first trace, and for the other one where there are only two.
    """
    if len(traces) < 3:
        return [""] * len(traces)
    pruners = [pruner_of(trace) for trace in traces[1:]]
    called = [str(pruner.pop("name", "no pruner")) for pruner in pruners]
    told = []
    for name, pruner in zip(called, pruners, strict=True):
        same = [other for known, other in zip(called, pruners, strict=True) if known == name]
        differ = [key for key in pruner if any(other.get(key) != pruner[key] for other in same)]
        inside = ", ".join(f"{key}={pruner[key]!r}" for key in differ)
        told.append(f"{name}({inside})" if inside else name)
    again = [told[:index].count(label) + 1 for index, label in enumerate(told)]
    return ["", *(label if n == 1 else f"{label} ({n})" for label, n in zip(told, again, strict=True))]


def pruner_of(trace) -> dict:
    """Name and parameters of a trace's pruner; empty without one, or where it was recorded in another way."""
    pruner = trace.meta.get("pruner")
    return dict(pruner) if isinstance(pruner, dict) else {}


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
