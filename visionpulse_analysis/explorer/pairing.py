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
