"""Which layers and heads of the attention go into the page, so that it stays small, and how they are packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visionpulse_analysis.explorer import encoding

MEAN = "mean"


@dataclass(frozen=True)
class Planes:
    """What fits. A *plane* is the attention [step, patch] of one trace at one layer and head.

    Attributes
    ----------
    stored : list of int, then perhaps "mean"
        Layers in the page. "mean", the mean over all recorded layers, is stored when not all of them are.
    heads : list of int or None
        None: the planes are means over heads (or the traces hold nothing else).
    packed : list [trace][stored][head] of str
    mass : list [trace] of str
        float32 [step, stored, head].
    notes : list of str
        What was left out, in words.
    """

    stored: list[int | str]
    heads: list[int] | None
    packed: list[list[list[str]]]
    mass: list[str]
    notes: list[str]


def choose_planes(traces: list, layers: list[int], first: int, room: int) -> Planes:
    """Pack as much as fits into `room` bytes: every layer, else `first`, the mean and layers evenly between.

    Heads are averaged before layers are left out. `first` is kept whatever it takes.
    """
    heads, notes = _heads(traces, layers, first, room)
    packed: dict[int | str, list[list[str]]] = {}  # layer -> [trace][head]

    def take(wanted: Sequence[int | str]) -> list[int | str]:
        """The beginning of `wanted` that fits, at least one."""
        spent, taken = 0, []
        for layer in wanted:
            if layer not in packed:
                packed[layer] = [_pack(t, layers, layer, heads) for t in traces]
            spent += sum(len(plane) for planes in packed[layer] for plane in planes)
            if taken and spent > room:
                break
            taken.append(layer)
        return taken

    stored = take(_spread(layers, first))
    if len(stored) < len(layers):
        stored = take([first, MEAN, *_spread(layers, first)[1:]])
        notes.insert(0, _left_out(stored, layers))
    stored = sorted(layer for layer in stored if layer != MEAN) + [MEAN] * (MEAN in stored)
    return Planes(
        stored=stored,
        heads=heads,
        packed=[[packed[layer][t] for layer in stored] for t in range(len(traces))],
        mass=[encoding.floats(np.stack([_mass(t, layers, layer, heads) for layer in stored], axis=1)) for t in traces],
        notes=notes,
    )


def _heads(traces: list, layers: list[int], first: int, room: int) -> tuple[list[int] | None, list[str]]:
    """Heads that all traces share and for which there is room, with what to say when they are averaged."""
    recorded = [t.heads for t in traces]
    heads = recorded[0]
    if any(other != heads for other in recorded):
        return None, ["The traces hold different heads, so heads are averaged (rounded to float16)."]
    if heads is None or len(heads) == 1:
        return heads, []
    if sum(len(plane) for t in traces for plane in _pack(t, layers, first, heads)) <= room:
        return heads, []
    return None, [f"Heads are averaged (all {len(heads)} of them, rounded to float16) to keep this page small."]


def _left_out(stored: list, layers: list[int]) -> str:
    count = len(stored) - (MEAN in stored)
    said = f"{count} of {len(layers)} layers {'is' if count == 1 else 'are'} in this page, to keep it small"
    if MEAN in stored:
        return f"{said}; their mean is that of all {len(layers)} (rounded to float16)."
    return f"{said}; there was no room for the mean of all."


def _spread(layers: list[int], first: int) -> list[int]:
    """Order layers so that any beginning is evenly spread: `first`, then always the one farthest away."""
    taken, left = [first], [layer for layer in layers if layer != first]
    while left:
        farthest = max(left, key=lambda layer: min(abs(layer - other) for other in taken))
        taken.append(farthest)
        left.remove(farthest)
    return taken


def _pack(trace, layers: list[int], layer: int | str, heads: list[int] | None) -> list[str]:
    """One string per head; one in all when heads are averaged or absent."""
    chosen = layers if isinstance(layer, str) else [layer]
    attention = _mean_of_layers(trace.attention, chosen)
    if "head" not in attention.dims:
        return [encoding.plane(attention.values)]
    if heads is None:
        return [encoding.plane(attention.astype(np.float32).mean("head").values)]
    return [encoding.plane(attention.sel(head=head).values) for head in heads]


def _mean_of_layers(attention, layers: list[int]):
    """Mean over layers, one read after the other; one layer stays as it was recorded."""
    if len(layers) == 1:
        return attention.sel(layer=layers[0])
    total = attention.sel(layer=layers[0], drop=True).astype(np.float32)
    for layer in layers[1:]:
        total = total + attention.sel(layer=layer, drop=True).astype(np.float32)
    return total / len(layers)


def _mass(trace, layers: list[int], layer: int | str, heads: list[int] | None) -> np.ndarray:
    """float32 [step, head]; one head when heads are averaged or absent."""
    mass = trace.mass.sel(layer=layers).mean("layer") if layer == MEAN else trace.mass.sel(layer=layer)
    if "head" not in mass.dims:
        return mass.values[:, None]
    if heads is None:
        return mass.values.mean(axis=1, keepdims=True)
    return mass.sel(head=heads).values
