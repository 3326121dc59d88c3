"""Pack one trace, or a dense one and pruned ones, into the JSON that the explorer draws."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from visionpulse_analysis.explorer import encoding
from visionpulse_analysis.explorer.alignment import align
from visionpulse_analysis.explorer.command import regenerate
from visionpulse_analysis.explorer.labels import labels, pruner_name
from visionpulse_analysis.explorer.pairing import check_traces, identities, most_visual_layer, names, shared_layers
from visionpulse_analysis.explorer.planes import MEAN, choose_planes
from visionpulse_analysis.traces import frame_labels, frame_pictures
from visionpulse_analysis.traces.text import end_of_thinking

CODE_BYTES = 100_000  # JavaScript, CSS and markup of the offline page
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
    planes = choose_planes(traces, layers, first, max_bytes - CODE_BYTES - _size(payload))
    shown = [layer for layer in planes.stored if layer != MEAN]
    for header, each, packed, mass in zip(payload["traces"], traces, planes.packed, planes.mass, strict=True):
        header |= {"planes": packed, "mass": mass, "visible": _visible(each, shown)}
    payload |= {
        "stored": planes.stored,
        "layers": shown,
        "recorded_layers": len(layers),
        "heads": planes.heads,
        "notes": [note for note in (*planes.notes, *picture_notes) if note],
    }
    return payload


def _alignments(traces: list) -> list[dict]:
    """The columns of the first trace and each other one, and where they part; with one trace, columns are steps."""
    if len(traces) == 1:
        return [{"columns": [list(range(len(traces[0].tokens)))], "divergence": None}]
    first, *others = (identities(trace) for trace in traces)
    found = [align(first, other) for other in others]
    return [{"columns": [each.first, each.second], "divergence": each.divergence} for each in found]


def _header(trace, name: str, label: str, layers: list[int]) -> dict:
    tokens = [str(token) for token in trace.tokens]
    return {
        "name": name,
        "label": label,
        "id": str(trace.meta.get("id", "")),
        "tokens": tokens,
        "answer": first_of_answer(trace),
        "logprobs": encoding.floats(np.asarray(trace.logprobs)),
        "kept": None if trace.kept is None else encoding.bits(np.asarray(trace.kept, dtype=bool)),
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
    return encoding.floats(trace.k_per_layer.values[:, layers].T)


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
    urls, reduced = encoding.pictures(list(different.values()))
    return panels, urls, [missing, reduced]


def _grid(grid) -> dict:
    lists = {name: np.asarray(getattr(grid, name)).tolist() for name in ("image", "frame", "row", "col")}
    return {**lists, "box": encoding.floats(np.asarray(grid.box))}


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
