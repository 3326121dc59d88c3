"""Pack one trace, or a dense one and pruned ones, into the JSON that the explorer draws."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from PIL import Image

from visionpulse_analysis.explorer.pairing import (
    check_traces,
    columns_of,
    identities,
    labels,
    most_visual_layer,
    names,
    pruner_name,
    shared_layers,
    shared_quantities,
)
from visionpulse_analysis.explorer.view import regenerate
from visionpulse_analysis.traces import frame_labels, frame_pictures
from visionpulse_analysis.traces.quantities import Quantity
from visionpulse_analysis.traces.text import end_of_thinking

CODE_BYTES = 110_000  # JavaScript, CSS and markup of the offline page
LARGEST_PICTURE = 1024  # pixels on the longer side
PICTURE_BYTES = 400_000  # for all pictures of a page together
MEAN = "mean"
LONGEST_ANSWER = 160  # characters of it in the heading


def pack(trace, *pruned, max_bytes: int = 3_000_000, layer: int | None = None, store: str | None = None) -> dict:
    """Build the explorer's payload; attention stays the stored float16, bit for bit.

    Heads are averaged, and layers left out, only when the page would exceed `max_bytes`; `notes` says so, and
    the mean over layers stays that of all.

    Parameters
    ----------
    trace : Trace
    *pruned : Trace
        More traces of the same image and question; one at a time is shown beside the first.
    max_bytes : int
        Aimed size of the offline page. One layer is always kept whole, whatever it takes.
    layer : int, optional
        Model layer shown first and kept in any case. Default: the layer with the most visual mass.
    store : str, optional
        Folder of the trace store, for the command that regenerates a view.

    Returns
    -------
    dict
        JSON-compatible; read by ``script/data.js``.

    Raises
    ------
    ValueError
        If a trace is empty, the traces do not share image, patch grid and a layer, or `layer` was not recorded.
    """
    traces = [trace, *pruned]
    check_traces(traces)
    layers = shared_layers(traces)
    first = most_visual_layer(trace, layers) if layer is None else layer
    if first not in layers:
        raise ValueError(f"layer {first} was not recorded; recorded layers: {layers}. Choose one of them.")

    panels, pictures, picture_notes = _panels(trace)
    called, told = names(traces), labels(traces)
    payload: dict[str, Any] = {
        "question": str(trace.question),
        "about": _about(traces, called, told),
        "traces": [_header(*facts, layers) for facts in zip(traces, called, told, strict=True)],
        "alignments": _alignments(traces),
        "grid": _grid(trace.grid),
        "panels": panels,
        "pictures": pictures,
        "layer": first,
        "store": store,
    }
    payload |= regenerate(payload["traces"], store)
    about, each = _recorded(traces, layers, first, CODE_BYTES + _size(payload), max_bytes)
    shown = [layer for layer in about["stored"] if layer != MEAN]
    for header, one, recorded in zip(payload["traces"], traces, each, strict=True):
        header |= {"recorded": recorded, "visible": _visible(one, shown)}
    notes = [note for note in (trace.meta.get("unlike_training"), *about["notes"], *picture_notes) if note]
    payload |= {**about, "layers": shown, "recorded_layers": len(layers), "notes": notes}
    return payload


def _alignments(traces: list) -> list[dict]:
    """The columns of the first trace and each other one, and where they part; with one trace, columns are steps."""
    if len(traces) == 1:
        return [{"columns": [list(range(len(traces[0].tokens)))], "divergence": None, "by_step": True}]
    first, *others = (identities(trace) for trace in traces)
    found = [columns_of(first, other) for other in others]
    return [
        {"columns": [each.first, each.second], "divergence": each.divergence, "by_step": each.by_step} for each in found
    ]


def _header(trace, name: str, label: str, layers: list[int]) -> dict:
    tokens = [str(token) for token in trace.tokens]
    return {
        "name": name,
        "label": label,
        "id": str(trace.meta.get("id", "")),
        "tokens": tokens,
        "answer": first_of_answer(trace),
        "logprobs": floats(np.asarray(trace.logprobs)),
        "kept": None if trace.kept is None else bits(np.asarray(trace.kept, dtype=bool)),
        "visible": _visible(trace, layers),
        "budget": None if trace.budget is None else _budgets(trace),
    }


def first_of_answer(trace) -> int | None:
    """The step at which the answer begins, after the last mark that closes the thinking; None without one."""
    tokens = [str(token) for token in trace.tokens]
    text = "".join(tokens)
    end = end_of_thinking(text, trace.prompt_tokens)
    if not 0 < end < len(text):
        return None
    return next(step for step, so_far in enumerate(accumulate(map(len, tokens)), 1) if so_far >= end)


def _visible(trace, layers: Sequence[int | str]) -> str | None:
    """How many patches are visible at each layer, [layer, step]; None where only the last layer's set is known."""
    if trace.kept is None or trace.k_per_layer is None:
        return None
    return floats(trace.k_per_layer.values[:, layers].T)


def _panels(trace) -> tuple[list[dict], list[str], list[str | None]]:
    """One panel per image or frame, the pictures they point to, and what to say about those."""
    grid = trace.grid
    pictures, missing = frame_pictures(trace)
    different = {id(picture): picture for picture in pictures if picture is not None}
    places = list(different)
    panels = []
    for line, label, picture in zip(grid.frames.tolist(), frame_labels(trace), pictures, strict=True):
        image, frame, rows, cols = line
        height, width = grid.image_size[image].tolist()
        place = None if picture is None else places.index(id(picture))
        panel = {"image": image, "frame": frame, "rows": rows, "cols": cols, "width": width, "height": height}
        panels.append({**panel, "label": label, "picture": place})
    urls, reduced = encode_pictures(list(different.values()))
    return panels, urls, [missing, reduced]


def _grid(grid) -> dict:
    lists = {name: np.asarray(getattr(grid, name)).tolist() for name in ("image", "frame", "row", "col")}
    return {**lists, "box": floats(np.asarray(grid.box))}


def _about(traces: list, called: list[str], told: list[str]) -> list[str]:
    """The lines under the question: which model, then what each trace is and what it answered."""
    models = dict.fromkeys(str(trace.meta.get("model", "unknown model")) for trace in traces)
    return [
        "Model: " + ", ".join(models),
        *(_trace_line(*facts) for facts in zip(traces, called, told, strict=True)),
    ]


def _trace_line(trace, name: str, label: str) -> str:
    pruner = label or pruner_name(trace)
    what = f"{name} ({pruner})" if pruner else name
    answer = trace.answer.strip()
    if len(answer) > LONGEST_ANSWER:
        answer = answer[:LONGEST_ANSWER].rstrip() + " …"
    return f"{what}: {len(trace)} steps, " + (f"answer “{answer}”" if answer else "no answer")


def _budgets(trace) -> list[float | None] | None:
    """Budget of each step; None where the pruner had none."""
    if trace.budget is None:
        return None
    return [None if np.isnan(budget) else float(budget) for budget in trace.budget.values]


def _size(value: Any) -> int:
    """Bytes of `value` as JSON, near enough: its strings dominate."""
    if isinstance(value, str):
        return len(value.encode()) + 3
    if isinstance(value, dict):
        return sum(_size(key) + _size(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(_size(item) for item in value)
    return 6


# What was recorded, and which layers and heads of it go into the page.


def _recorded(
    traces: list, layers: list[int], first: int, spent: int, max_bytes: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Pack as much as fits beside what is `spent`: every layer, else `first`, the mean and layers evenly between.

    Heads are averaged before layers are left out. `first` is kept whatever it takes. What is left goes to further
    quantities, at the same layers and heads.

    Returns
    -------
    about : dict
        ``stored`` (the layers in the page, then perhaps "mean", that of all layers recorded), ``heads`` (None where the
        planes are means over heads, or the traces hold nothing else), ``quantities`` and ``notes``.
    each : list of dict
        Of each trace, by name: a *plane* [step, patch] for each layer and head, of the quantity divided by
        ``scale``; or ``values`` float32 [step, stored, head] of a quantity without patches.
    """
    room = max_bytes - spent
    heads, notes, of_layer = _heads(traces, layers, first, room)
    packed: dict[int | str, list[list[str]]] = {}  # layer -> [trace][head]

    def take(wanted: Sequence[int | str]) -> list[int | str]:
        """The beginning of `wanted` that fits, at least one."""
        spent, taken = 0, []
        for layer in wanted:
            if layer not in packed:
                packed[layer] = [_planes(t, "attention", layers, layer, heads) for t in traces]
            spent += _size(packed[layer])
            if taken and spent > room:
                break
            taken.append(layer)
        return taken

    stored = take(_spread(layers, first))
    if len(stored) < len(layers):
        stored = take([first, MEAN, *_spread(layers, first)[1:]])
        notes.insert(0, _left_out(stored, layers))
    left_out = len(set(stored) - {MEAN}) < len(layers) or of_layer > 0
    of_layer = of_layer or max(map(_size, packed.values()))  # with each head
    stored = sorted(layer for layer in stored if layer != MEAN) + [MEAN] * (MEAN in stored)
    each: list[dict[str, Any]] = [
        {"attention": {"planes": [packed[layer][t] for layer in stored], "scale": 1}} for t in range(len(traces))
    ]
    room, shown, wanted = room - _size([one["attention"] for one in each]), [], spent + of_layer * len(layers)
    for name, row in shared_quantities(traces).items():
        if name != "attention":
            made = [_further(trace, row, layers, stored, heads) for trace in traces]
            if "patch" in row.axes and _size(made) > room:
                notes.append(f"The {row.label} is left out to keep this page small.")
                left_out, wanted = True, wanted + _size(made)
                continue
            room -= _size(made)
            for one, entry in zip(each, made, strict=True):
                one[name] = entry
        shown.append(_about_quantity(row, traces))
    if left_out:
        notes.append(_how_to_keep(wanted))
    return {"stored": stored, "heads": heads, "quantities": shown, "notes": notes}, each


def _about_quantity(row: Quantity, traces: list) -> dict[str, Any]:
    """What the page says of a quantity; ``signed`` where it may be below zero."""
    signed = row.may_be_negative and any(bool((trace.data[row.name] < 0).any()) for trace in traces)
    label = "visual mass" if row.name == "mass" else row.label
    return {
        "name": row.name,
        "label": label,
        "unit": row.unit,
        "how": row.how,
        "map": "patch" in row.axes,
        "signed": signed,
    }


def _further(
    trace, row: Quantity, layers: list[int], stored: list[int | str], heads: list[int] | None
) -> dict[str, Any]:
    """A quantity beside the attention, packed as `_recorded` says; one head where it is the same for all."""
    if "patch" not in row.axes:
        values = [np.stack(_at(trace, row.name, layers, layer, heads), axis=-1) for layer in stored]
        return {"values": floats(np.stack(values, axis=1)), "heads": values[0].shape[-1]}
    most = float(np.nanmax(np.abs(trace.data[row.name].values), initial=0.0))
    scale = 2.0 ** (np.ceil(np.log2(most)) - 15) if most > 0 else 1.0  # a power of two: nothing but digits is lost
    return {"planes": [_planes(trace, row.name, layers, layer, heads, scale) for layer in stored], "scale": scale}


def _heads(traces: list, layers: list[int], first: int, room: int) -> tuple[list[int] | None, list[str], int]:
    """Heads that all traces share and for which there is room; of those averaged for want of it, what to say and bytes
    of a layer with each."""
    recorded = [t.heads for t in traces]
    heads = recorded[0]
    if any(other != heads for other in recorded):
        return None, ["The traces hold different heads, so heads are averaged (rounded to float16)."], 0
    if heads is None or len(heads) == 1:
        return heads, [], 0
    size = _size([_planes(t, "attention", layers, first, heads) for t in traces])
    if size <= room:
        return heads, [], 0
    return None, [f"Heads are averaged (all {len(heads)} of them, rounded to float16) to keep this page small."], size


def _how_to_keep(wanted: int) -> str:
    """Which option keeps everything: how well a layer that is left out compresses is only guessed from those kept."""
    step = 10 ** (len(str(wanted)) - 2)
    enough = (wanted * 11 // 10 // step + 1) * step
    return f"To keep all, say max_bytes={enough:_} in vpa.explore, or --max-bytes {enough} to visionpulse explore."


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


def _at(trace, name: str, layers: list[int], layer: int | str, heads: list[int] | None) -> list[np.ndarray]:
    """A quantity [step, ...] at one layer, or its mean over all layers, for each head; one where heads are averaged."""
    recorded = trace.data[name]
    if layer != MEAN:
        found = recorded.sel(layer=layer)
    else:
        found = recorded.sel(layer=layers[0], drop=True).astype(np.float32)
        for other in layers[1:]:  # read one after the other
            found = found + recorded.sel(layer=other, drop=True).astype(np.float32)
        found = found / len(layers)
    if "head" not in found.dims:
        return [found.values]
    if heads is None:
        return [found.astype(np.float32).mean("head").values]
    return [found.sel(head=head).values for head in heads]


def _planes(
    trace, name: str, layers: list[int], layer: int | str, heads: list[int] | None, scale: float = 1.0
) -> list[str]:
    return [plane(values if scale == 1 else values / scale) for values in _at(trace, name, layers, layer, heads)]


# Bytes the page can read: lossless numbers, small pictures.


def plane(values: np.ndarray) -> str:
    """Compress float16 without loss: high bytes first, then low bytes, zlib, base64.

    Sign and exponent sit in the high byte and repeat a lot; away from the noisy low bytes they compress.
    """
    half = np.ascontiguousarray(values, dtype="<f2")
    split = half.view(np.uint8).reshape(-1, 2).T
    return base64.b64encode(zlib.compress(split.tobytes(), 9)).decode()


def bits(flags: np.ndarray) -> str:
    """Pack booleans eight to a byte (first flag = highest bit), zlib, base64."""
    return base64.b64encode(zlib.compress(np.packbits(flags).tobytes(), 9)).decode()


def floats(values: np.ndarray) -> str:
    """Little-endian float32, zlib, base64."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values, dtype="<f4").tobytes(), 9)).decode()


def encode_pictures(images: Sequence[np.ndarray]) -> tuple[list[str], str | None]:
    """Encode images as data URLs that together stay near `PICTURE_BYTES`.

    Small images stay PNG, pixel for pixel. Larger ones become JPEG and are reduced until all fit.

    Parameters
    ----------
    images : sequence of uint8 [row_px, col_px, 3]

    Returns
    -------
    urls : list of str
    note : str or None
        What was reduced, in words; None when every image is exact.
    """
    allowance = PICTURE_BYTES // max(1, len(images))
    encoded = [_picture(np.asarray(image), allowance) for image in images]
    sides = [side for _, side in encoded if side is not None]
    note = (
        f"Pictures are shown as JPEG, at most {min(sides)} px wide or high; attention is not affected."
        if sides
        else None
    )
    return [url for url, _ in encoded], note


def _picture(image: np.ndarray, allowance: int) -> tuple[str, int | None]:
    original = Image.fromarray(image)
    if max(original.size) <= LARGEST_PICTURE:
        exact = _encoded(original, "PNG")
        if len(exact) <= allowance:
            return f"data:image/png;base64,{exact}", None
    side = LARGEST_PICTURE
    while True:
        smaller = original.copy()
        smaller.thumbnail((side, side))
        encoded = _encoded(smaller, "JPEG")
        if len(encoded) <= allowance or side <= 96:
            return f"data:image/jpeg;base64,{encoded}", side
        side = side * 3 // 4


def _encoded(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 82} if kind == "JPEG" else {"optimize": True}))
    return base64.b64encode(buffer.getvalue()).decode()
