"""The images and the frames of videos that a trace is about: what each is called, which picture it shows."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from visionpulse_analysis._util.html import cell, facts_table
from visionpulse_analysis.media.videos import Clip

NO_MAP = "no map"  # how `meta["map"]` begins where it is not known where the image tokens lie


def without_map(trace) -> str | None:
    """Why it is not known where the image tokens of a trace lie in its pictures, in words; None where it is known.

    Its ``grid`` has them side by side, in their order in the sequence, and nothing can be drawn over a picture.

    Parameters
    ----------
    trace : Trace

    Returns
    -------
    str or None
    """
    told = str(trace.meta.get("map", ""))
    return told if told.startswith(NO_MAP) else None


def frame_labels(trace) -> list[str]:
    """Name every line of ``trace.grid.frames``.

    "Image 2", "Frame 3", "Frames 3-4, 1-1.5 s" where the model merges frames and their rate is known, or both
    "Video 2, frame 3" where there are several. Frames are counted from 1, among those that the model was shown.

    Parameters
    ----------
    trace : Trace

    Returns
    -------
    list of str [line]
    """
    grid, known = trace.grid, {video["image"]: video for video in trace.meta.get("videos", ())}
    if without_map(trace):
        return ["No map: image tokens in their order"] * len(grid.frames)
    images = grid.frames[:, 0].tolist()
    spans = {image: _span(grid, image) for image in set(images)}
    labels = []
    for (image, frame, *_), (begin, end) in zip(grid.frames.tolist(), grid.pictures.tolist(), strict=True):
        first, last = spans[image]
        film = image in known or last - first > 1
        parts = [f"{'video' if film else 'image'} {image + 1}"] if grid.n_images > 1 else []
        if film:
            shown = [begin - first, end - 1 - first]
            parts.append(f"frame{'s' if end - begin > 1 else ''} {_range([n + 1 for n in shown], '')}")
            parts += _times(known.get(image), shown)
        elif images.count(image) > 1:
            parts.append(f"frame {frame + 1}")
        label = ", ".join(parts or ["image 1"])
        labels.append(label[0].upper() + label[1:])
    return labels


def _span(grid, image: int) -> tuple[int, int]:
    """First of the pictures of an image or video, and one past the last."""
    mine = grid.pictures[grid.frames[:, 0] == image]
    return int(mine[:, 0].min()), int(mine[:, 1].max())


def _times(video: dict[str, Any] | None, shown: list[int]) -> list[str]:
    if video is None or video["fps"] is None:
        return []
    return [_range([round(video["frames"][n] / video["fps"], 2) for n in shown], "g") + " s"]


def _range(ends: list, form: str) -> str:
    return "-".join(dict.fromkeys(format(end, form) for end in ends))


def frame_pictures(trace) -> tuple[list[np.ndarray | None], str | None]:
    """Picture of every line of ``trace.grid.frames``; of merged frames the first.

    Parameters
    ----------
    trace : Trace

    Returns
    -------
    pictures : list of uint8 [row_px, col_px, 3] or None
        Lines that show parts of one picture share the array.
    note : str or None
        Why pictures are missing, in words.
    """
    images, grid, why = trace.images, trace.grid, without_map(trace)
    if why is not None:
        note = f"No pictures are shown, for it is not known where the image tokens lie in them: {why}."
        return [None] * len(grid.frames), note
    expected = int(grid.pictures[:, 1].max(initial=0))
    if len(images) == expected:
        return [images[first] for first in grid.pictures[:, 0].tolist()], None
    note = f"No pictures are shown: the trace holds {len(images)} of {expected}."
    return [None] * len(grid.frames), note


def media_of(trace) -> list[np.ndarray | Clip]:
    """The images and videos that the model was shown.

    Parameters
    ----------
    trace : Trace

    Returns
    -------
    list of uint8 [row_px, col_px, 3] or Clip
        As ``vlm.prompt`` takes them.
    """
    known = {video["image"]: video for video in trace.meta.get("videos", ())}
    if without_map(trace):
        return list(trace.images)
    media: list[np.ndarray | Clip] = []
    for image in range(trace.grid.n_images):
        first, last = _span(trace.grid, image)
        pictures = trace.images[first:last]
        video = known.get(image)
        media.append(pictures[0] if video is None else Clip(pictures, video["frames"], video["total"], video["fps"]))
    return media


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
    tokens : the first 300 are shown
    mass : visual mass of each token, 0..1: how strongly it is shaded
    facts : label and text of each line of the small table
    width : pixels
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
