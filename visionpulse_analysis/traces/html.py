"""How a trace and a store show themselves in a notebook."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from visionpulse_analysis._util.html import cell, facts_table

_MAX_TOKENS = 300
_MAX_LETTERS = 60  # of one token
_MAX_ROWS = 20


def trace_html(
    *,
    image: np.ndarray | None,
    question: str,
    tokens: Sequence[str],
    mass: Sequence[float],
    facts: Mapping[str, str],
    width: int = 160,
) -> str:
    """One self-contained HTML fragment; every text is escaped.

    Parameters
    ----------
    image : uint8 [row_px, col_px, 3] or None
        Shown as a thumbnail at most `width` pixels wide and high.
    question : str
    tokens : list of str
        The first 300 are shown.
    mass : list of float
        Visual mass of each token, 0..1: how strongly it is shaded.
    facts : dict of str
        Label and text of each line of the small table.
    width : int
        Pixels.
    """
    shown = "".join(
        f"<code title='step {step}, visual mass {share:.3f}' style='background:rgba(59,130,246,{0.6 * share:.2f});"
        f"unicode-bidi:isolate'>{escape(_readable(token))}</code> "
        for step, (token, share) in enumerate(zip(tokens[:_MAX_TOKENS], mass, strict=False))
    )
    more = f"and {len(tokens) - _MAX_TOKENS} more" if len(tokens) > _MAX_TOKENS else ""
    return (
        "<div class='mathjax_ignore' style='display:flex;gap:1em;align-items:flex-start'>"
        f"{'' if image is None else _thumbnail(image, width)}"
        f"<div><p><b>{escape(question)}</b></p><p style='line-height:1.7'>{shown}{more}</p>"
        "<p><small>Shaded by visual mass. vpa.explore(trace) shows where it looked.</small></p>"
        f"{facts_table(facts)}</div>"
        "</div>"
    )


def _readable(token: str) -> str:
    """A token with its blanks seen and control characters as one sign; of a long one the beginning."""
    shown = token[:_MAX_LETTERS] + ("…" if len(token) > _MAX_LETTERS else "")
    shown = shown.replace("\n", "↵").replace("\t", "⇥")
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cc" else c for c in shown) or "∅"


def store_html(store) -> str:
    """A table of the first 20 traces of a TraceStore; every text is escaped."""
    ids = store.ids
    lines = [_line(store, id) for id in ids[:_MAX_ROWS]]
    head = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in (lines[0] if lines else {}))
    body = "".join(f"<tr>{''.join(map(cell, line.values()))}</tr>" for line in lines)
    more = f"<p>and {len(ids) - _MAX_ROWS} more; store.ids names all</p>" if len(ids) > _MAX_ROWS else ""
    title = f"<p><b>TraceStore</b> {escape(str(store.path))}: {len(ids)} {'trace' if len(ids) == 1 else 'traces'}</p>"
    return f"<div class='mathjax_ignore'>{title}<table><tr>{head}</tr>{body}</table>{more}</div>"


def _line(store, id: str) -> dict[str, str]:
    """What the table says of one trace; a damaged one does not hide the others."""
    line = dict.fromkeys(("id", "question", "model", "pruner", "steps", "state"), "")
    try:
        trace = store[id]
    except (ValueError, KeyError, OSError) as error:
        return line | {"id": id, "state": str(error)}
    return line | {
        "id": id,
        "question": trace.question,
        "model": str(trace.meta.get("model", "")),
        "pruner": pruner_text(trace.meta.get("pruner"), parameters=False),
        "steps": str(len(trace)),
        "state": "whole" if trace.meta.get("complete") else "unfinished",
    }


def pruner_text(pruner: object, parameters: bool = True) -> str:
    """A recorded pruner as it is written for ``make_pruner``: ``name(parameter=value, ...)``, or its name alone."""
    if pruner is None:
        return "none (dense)"
    if not isinstance(pruner, Mapping) or "name" not in pruner:
        return str(pruner)
    given = ", ".join(f"{key}={value!r}" for key, value in pruner.items() if key != "name")
    return f"{pruner['name']}({given})" if parameters and given else str(pruner["name"])


def _thumbnail(image: np.ndarray, width: int) -> str:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((width, width))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"<img alt='' width='{width}' style='image-rendering:pixelated' src='data:image/png;base64,{data}'>"
