"""Pack one trace, or a dense and a pruned one, into the JSON that the explorer draws."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np

from visionpulse_analysis.explorer import encoding
from visionpulse_analysis.explorer.alignment import align

CODE_BYTES = 100_000  # JavaScript, CSS and markup of the offline page
END_OF_THINKING = "</think>"


def pack(trace, pruned=None, *, max_bytes: int = 3_000_000, layer: int | None = None, store: str | None = None) -> dict:
    """Build the explorer's payload; attention stays the stored float16, bit for bit.

    Layers are left out, and heads averaged, only when the page would exceed `max_bytes`; `notes` says so.

    Parameters
    ----------
    trace : Trace
    pruned : Trace, optional
        A second trace of the same image and question, shown beside the first.
    max_bytes : int
        Aimed size of the offline page. One layer is always kept whole, whatever it takes.
    layer : int, optional
        Model layer shown first and kept in any case. Default: the layer with the most visual mass.
    store : str, optional
        Folder of the trace store, for the command that regenerates a view.

    Returns
    -------
    dict
        JSON-compatible; read by ``explorer.js``.

    Raises
    ------
    ValueError
        If the traces do not share image, patch grid and at least one layer, or `layer` was not recorded.
    """
    traces = [trace] if pruned is None else [trace, pruned]
    if pruned is not None:
        check_same_image(trace, pruned)
    layers = shared_layers(traces)
    first = most_visual_layer(trace, layers) if layer is None else layer
    if first not in layers:
        raise ValueError(f"layer {first} was not recorded; recorded layers: {layers}. Choose one of them.")

    alignment = align(*(identities(t) for t in traces)) if pruned is not None else None
    steps = [list(range(len(trace.tokens)))] if alignment is None else [alignment.first, alignment.second]
    panels, pictures, picture_note = _panels(trace)
    payload: dict[str, Any] = {
        "question": str(trace.question),
        "about": " · ".join(_about(t) for t in traces),
        "traces": [_header(t, name) for t, name in zip(traces, _names(traces), strict=True)],
        "columns": steps,
        "divergence": None if alignment is None else alignment.divergence,
        "grid": _grid(trace.grid),
        "panels": panels,
        "pictures": pictures,
        "layer": first,
        "command": _command(traces, store),
    }
    spent = CODE_BYTES + _size(payload)
    notes = _add_planes(payload, traces, layers, first, max_bytes - spent)
    payload["notes"] = [note for note in (*notes, picture_note) if note]
    return payload


def _add_planes(payload: dict, traces: list, layers: list[int], first: int, room: int) -> list[str]:
    """Add attention and mass of as many layers as fit; return what was left out, in words."""
    heads, notes = _shared_heads(traces), []
    if heads is not None and len(heads) > 1:
        every_head = sum(_size(_planes(t, [first], heads)) for t in traces)
        if every_head > room:
            notes.append(f"Heads are averaged (all {len(heads)} of them, rounded to float16) to keep this page small.")
            heads = None
    elif heads is None and any("head" in t.attention.dims for t in traces):
        notes.append("The traces hold different heads, so heads are averaged (rounded to float16).")
    kept = _spread(layers, first, len(layers))
    one_layer = sum(_size(_planes(t, [first], heads)) for t in traces)
    kept = kept[: max(1, room // one_layer)]
    while True:
        packed = [_planes(t, sorted(kept), heads) for t in traces]
        if len(kept) == 1 or sum(_size(p) for p in packed) <= room:
            break
        kept.pop()
    if len(kept) < len(layers):
        notes.insert(0, f"{len(kept)} of {len(layers)} layers are in this page, to keep it small.")
    payload["layers"], payload["recorded_layers"] = sorted(kept), len(layers)
    payload["heads"] = heads
    for header, trace, planes in zip(payload["traces"], traces, packed, strict=True):
        header["planes"] = planes
        header["mass"] = encoding.floats(_mass(trace, sorted(kept), heads))
    return notes


def _planes(trace, layers: list[int], heads: list[int] | None) -> list[list[str]]:
    """One string per layer and head ([step, patch] each); one "head" when heads are averaged or absent."""
    planes = []
    for layer in layers:
        attention = trace.attention.sel(layer=layer)
        if "head" not in attention.dims:
            planes.append([encoding.plane(attention.values)])
        elif heads is None:
            planes.append([encoding.plane(attention.values.astype(np.float32).mean(axis=1))])
        else:
            planes.append([encoding.plane(attention.sel(head=head).values) for head in heads])
    return planes


def _mass(trace, layers: list[int], heads: list[int] | None) -> np.ndarray:
    """float32 [step, layer, head]; one head when heads are averaged or absent."""
    mass = trace.mass.sel(layer=layers)
    if "head" not in mass.dims:
        return mass.values[:, :, None]
    if heads is None:
        return mass.values.mean(axis=2, keepdims=True)
    return mass.sel(head=heads).values


def _spread(layers: list[int], first: int, count: int) -> list[int]:
    """Order layers so that any beginning is evenly spread: `first`, then always the one farthest away."""
    taken, left = [first], [layer for layer in layers if layer != first]
    while left and len(taken) < count:
        farthest = max(left, key=lambda layer: min(abs(layer - other) for other in taken))
        taken.append(farthest)
        left.remove(farthest)
    return taken


def _header(trace, name: str) -> dict:
    tokens = [str(token) for token in trace.tokens]
    return {
        "name": name,
        "id": str(trace.meta.get("id", "")),
        "tokens": tokens,
        "answer": tokens.index(END_OF_THINKING) + 1 if END_OF_THINKING in tokens else None,
        "logprobs": encoding.floats(np.asarray(trace.logprobs)),
        "kept": None if trace.kept is None else encoding.bits(np.asarray(trace.kept, dtype=bool)),
        "budget": None if trace.budget is None else _budgets(trace),
    }


def _panels(trace) -> tuple[list[dict], list[str], str | None]:
    """One panel per image, or per frame of an image, and the pictures they point to."""
    grid, stills, panels = trace.grid, trace.images, []
    frames_of = np.bincount(grid.frames[:, 0], minlength=grid.n_images)
    for image, frame, rows, cols in grid.frames.tolist():
        height, width = grid.image_size[image].tolist()
        label = f"Image {image + 1}" + (f", frame {frame + 1}" if frames_of[image] > 1 else "")
        panel = {"image": image, "frame": frame, "rows": rows, "cols": cols, "width": width, "height": height}
        panels.append({**panel, "label": label, "picture": None})
    urls, note = encoding.pictures(stills)
    for panel in panels:
        if panel["image"] < len(urls):
            panel["picture"] = panel["image"]
    return panels, urls, note


def _grid(grid) -> dict:
    lists = {name: np.asarray(getattr(grid, name)).tolist() for name in ("image", "frame", "row", "col")}
    return {**lists, "box": encoding.floats(np.asarray(grid.box))}


def _command(traces: list, store: str | None) -> str:
    """The command that redraws a view; the page appends ``--view`` and ``--figure``."""
    ids = [str(trace.meta.get("id", "ID")) for trace in traces]
    words = ["visionpulse", "explore", store or "STORE", "--sample", ids[0]]
    if len(ids) == 2:
        words += ["--pruned", ids[1]]
    return shlex.join(words)


def _about(trace) -> str:
    model, pruner = trace.meta.get("model", "unknown model"), trace.meta.get("pruner")
    name = "dense" if not pruner else str(pruner.get("name", "pruned"))
    return f"{model}, {name}, {len(trace.tokens)} steps"


def _names(traces: list) -> list[str]:
    if len(traces) == 2:
        return ["Dense", "Pruned"]
    return ["Pruned" if traces[0].kept is not None else "Dense"]


def _budgets(trace) -> list[float | None] | None:
    """Budget of each step; None where the pruner had none."""
    if trace.budget is None:
        return None
    return [None if np.isnan(budget) else float(budget) for budget in trace.budget.values]


def identities(trace) -> list:
    return np.asarray(trace.token_ids).tolist()


def shared_layers(traces: list) -> list[int]:
    shared = set.intersection(*({int(layer) for layer in t.attention["layer"].values} for t in traces))
    if not shared:
        recorded = [sorted(int(layer) for layer in t.attention["layer"].values) for t in traces]
        raise ValueError(f"the traces share no layer: {recorded[0]} and {recorded[1]}. Record one in both.")
    return sorted(shared)


def _shared_heads(traces: list) -> list[int] | None:
    recorded = [t.heads for t in traces]
    return recorded[0] if all(heads == recorded[0] for heads in recorded) else None


def most_visual_layer(trace, layers: list[int]) -> int:
    mass = trace.mass.sel(layer=layers)
    others = [dim for dim in mass.dims if dim != "layer"]
    return layers[int(np.argmax(mass.mean(others).values))]


def check_same_image(trace, pruned) -> None:
    a, b = trace.grid, pruned.grid
    fields = ("image", "frame", "row", "col", "box", "image_size")
    if len(a) != len(b) or any(not np.array_equal(getattr(a, f), getattr(b, f)) for f in fields):
        raise ValueError(
            f"the traces have different patch grids ({len(a)} and {len(b)} patches). "
            "Explore traces of the same image, or each on its own."
        )
    pairs = zip(trace.images, pruned.images, strict=False)
    if len(trace.images) != len(pruned.images) or any(not np.array_equal(x, y) for x, y in pairs):
        raise ValueError("the traces show different images. Explore two of one image, or each on its own.")


def _size(value: Any) -> int:
    """Bytes of `value` as JSON, near enough: its strings dominate."""
    if isinstance(value, str):
        return len(value.encode()) + 3
    if isinstance(value, dict):
        return sum(_size(key) + _size(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(_size(item) for item in value)
    return 6
