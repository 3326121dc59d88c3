"""A link of the explorer (``step=12&layer=3&trace=difference``): read, checked, and drawn again by a command."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

NOT_STORED = (
    "In Python, where {names} {are}. For a shell command instead: "
    'vpa.decode(..., ids="dense"), then .save("page.html", keep_traces=True).'
)
MODES = ("dense", "pruned", "difference")
_KNOWN = (
    *("step", "pruned_step", "layer", "head", "trace", "scale", "sinks"),
    *("panel", "opacity", "map", "kept", "rows", "cols", "beside", "shown", "curve"),
    *("picture", "overview"),
)


@dataclass(frozen=True)
class View:
    """What one link shows. ``"mean"`` averages over layers or heads; None is what the explorer shows first."""

    step: int = 0
    of_pruned: bool = False  # whether `step` counts the pruned trace's tokens
    layer: int | str | None = None
    head: int | str | None = None
    mode: str = "dense"
    own_scale: bool = True  # of the step; else one for all steps and both traces
    mask_sinks: bool = False
    kept: bool = False
    panel: int = 0
    map: str = "magma"
    region: tuple[int, int, int, int] | None = None  # first row, first column, last row, last column
    opacity: int = 70  # of the map over the picture, percent
    beside: int = 1  # which of the other traces stands beside the first, counted from 1
    shown: str = "attention"  # the quantity over the picture
    curve: str = "mass"  # that of the curve, and of the tokens' shades
    bare: bool = False  # the values alone, without the picture
    overview: bool = False  # the maps of all layers and heads, too


def read_view(link: str) -> View:
    """Parse a link, with or without its ``#``.

    Raises
    ------
    ValueError
        On a part the explorer does not know, or a value that is no number where one is needed.
    """
    parts = dict(parse_qsl(link.removeprefix("#"), keep_blank_values=True))
    unknown = sorted(set(parts) - set(_KNOWN))
    if unknown:
        raise ValueError(f"view {link!r} has {unknown[0]!r}; the explorer's links have {', '.join(_KNOWN)}")
    mode = parts.get("trace", "dense")
    if mode not in MODES:
        raise ValueError(f"view has trace={mode!r}, expected one of {', '.join(MODES)}")
    of_pruned = "pruned_step" in parts
    return View(
        step=_whole(parts, "pruned_step" if of_pruned else "step"),
        of_pruned=of_pruned,
        layer=_choice(parts, "layer"),
        head=_choice(parts, "head"),
        mode=mode,
        own_scale=parts.get("scale", "step") == "step",
        mask_sinks=parts.get("sinks") == "masked",
        kept=parts.get("kept") == "shown",
        panel=_whole(parts, "panel"),
        map=parts.get("map", "magma"),
        region=_region(parts),
        opacity=min(100, _whole(parts, "opacity", 70)),
        beside=_whole(parts, "beside", 1, least=1),
        shown=parts.get("shown", "attention"),
        curve=parts.get("curve", "mass"),
        bare=parts.get("picture") == "hidden",
        overview=parts.get("overview") == "shown",
    )


def check_view(link: str, payload: dict) -> None:
    """Raise unless the page of `payload` can show what a link asks for.

    Raises
    ------
    ValueError
        As `read_view`, or on a trace, step, layer, head, panel or region that is not in the page.
    """
    view, traces, panels = read_view(link), payload["traces"], payload["panels"]
    if len(traces) == 1 and (view.of_pruned or view.mode != "dense"):
        raise ValueError(f"view {link!r} shows a pruned trace, but none was given")
    check_beside(view, len(traces) - 1)
    for choice, per_patch in ((view.shown, True), (view.curve, False)):
        known = [row["name"] for row in payload["quantities"] if row["map"] == per_patch]
        check_quantity(choice, known, per_patch)
    last = len(traces[view.beside if view.of_pruned else 0]["tokens"]) - 1
    if view.step > last:
        raise ValueError(f"step {view.step} is out of range: the trace has steps 0..{last}")
    for axis, choice, choices in (
        ("layer", view.layer, payload["layers"]),
        ("head", view.head, payload["heads"] or []),
    ):
        if choice not in (None, "mean", *choices):
            raise ValueError(f"{axis} {choice} is not in the page; it has {choices or 'the mean only'}")
    if view.layer == "mean" and "mean" not in payload["stored"] and len(payload["layers"]) < payload["recorded_layers"]:
        raise ValueError("the mean of the layers is not in the page: no room for it; raise max_bytes (--max-bytes)")
    if view.panel >= len(panels):
        raise ValueError(f"panel {view.panel} is out of range: there are {len(panels)} images or frames, from 0")
    if view.region is not None:
        (r0, c0, r1, c1), panel = view.region, panels[view.panel]
        if not (r0 <= r1 < panel["rows"] and c0 <= c1 < panel["cols"]):
            raise ValueError(f"rows {r0}-{r1}, columns {c0}-{c1} leave the {panel['rows']} x {panel['cols']} patches")


def check_quantity(choice: str, known: list[str], per_patch: bool) -> None:
    """Raise ValueError unless a quantity is one of those that all traces hold and the page has."""
    if choice not in known:
        where = "shown over the picture" if per_patch else "drawn as the curve"
        raise ValueError(f"quantity {choice!r} is not there to be {where}; there are {', '.join(known)}")


def check_beside(view: View, others: int) -> None:
    """Raise ValueError unless there are as many other traces as the view asks for."""
    if view.beside > max(1, others):
        raise ValueError(f"beside={view.beside} is out of range: {others} traces stand beside the first, from 1")


def _whole(parts: dict[str, str], name: str, otherwise: int = 0, least: int = 0) -> int:
    text = parts.get(name, str(otherwise))
    if not text.isdigit() or int(text) < least:
        raise ValueError(f"view has {name}={text!r}, expected a whole number from {least}")
    return int(text)


def _choice(parts: dict[str, str], name: str) -> int | str | None:
    return parts.get(name) if parts.get(name, "mean") == "mean" else _whole(parts, name)


def _region(parts: dict[str, str]) -> tuple[int, int, int, int] | None:
    if "rows" not in parts or "cols" not in parts:
        return None
    ends = [part.partition("-") for part in (parts["rows"], parts["cols"])]
    if not all(low.isdigit() and (high or low).isdigit() for low, _, high in ends):
        raise ValueError(f"view has rows={parts['rows']}, cols={parts['cols']}; expected e.g. rows=2-4&cols=1-3")
    (r0, _, r1), (c0, _, c1) = ends
    return int(r0), int(c0), int(r1 or r0), int(c1 or c0)


def regenerate(traces: list[dict], store: str | None, page: Path | None = None) -> dict[str, Any]:
    """The command that redraws a view, and what to know before it is run.

    Parameters
    ----------
    traces : list of dict
        Of the payload; their ids are those in the store.
    store : str or None
        Folder of the trace store.
    page : Path, optional
        Where the page is written: the store is then named as seen from its folder, so that both can move together.

    Returns
    -------
    dict
        ``command``, what stands before and after the link of the view, and ``command_note``, which may be empty.
    """
    ids = [trace["id"] for trace in traces]
    if store is None or not all(ids) or len({*ids}) < len(ids):
        names = "trace" if len(ids) == 1 else ", ".join([_variable(traces[0]), _variable(traces[1], len(ids) - 1)])
        note = NOT_STORED.format(names=names.replace("*", "").replace(", ", " and "), are=_are(len(ids)))
        return {"command": [f"vpa.explore({names}, view='", "').figure('view.pdf')"], "command_note": note}
    folder = store if page is None else os.path.relpath(store, page.parent)
    words = ["visionpulse", "explore", folder, "--sample", ids[0]]
    for other in ids[1:]:
        words += ["--pruned", other]
    note = "" if page is None else "Run it in the folder of this page."
    return {"command": [f"{shlex.join(words)} --view '", "' --figure view.pdf"], "command_note": note}


def _variable(trace: dict, count: int = 1) -> str:
    """What a notebook calls such traces."""
    return trace["name"].lower() if count == 1 else f"*{trace['name'].lower()}"


def _are(count: int) -> str:
    if count == 1:
        return "is this trace"
    return "are these traces" if count == 2 else "are the first trace and a list of the others"
