"""How a trace shows itself in a notebook."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np

_MAX_TOKENS = 300


def trace_html(
    *, image: np.ndarray | None, question: str, tokens: list[str], facts: dict[str, str], width: int = 160
) -> str:
    """One self-contained HTML fragment; every text is escaped.

    Parameters
    ----------
    image : uint8 [row_px, col_px, 3] or None
        Shown as a thumbnail at most `width` pixels wide and high.
    question : str
    tokens : list of str
        The first 300 are shown.
    facts : dict of str
        Label and text of each line of the small table.
    width : int
        Pixels.
    """
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in facts.items())
    shown = "".join(
        f"<code title='step {step}'>{escape(token)}</code> " for step, token in enumerate(tokens[:_MAX_TOKENS])
    )
    more = f"and {len(tokens) - _MAX_TOKENS} more" if len(tokens) > _MAX_TOKENS else ""
    return (
        "<div style='display:flex;gap:1em;align-items:flex-start'>"
        f"{'' if image is None else _thumbnail(image, width)}"
        f"<div><p><b>{escape(question)}</b></p><p style='line-height:1.7'>{shown}{more}</p>"
        f"<table>{rows}</table></div>"
        "</div>"
    )


def _thumbnail(image: np.ndarray, width: int) -> str:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((width, width))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"<img alt='' width='{width}' style='image-rendering:pixelated' src='data:image/png;base64,{data}'>"
