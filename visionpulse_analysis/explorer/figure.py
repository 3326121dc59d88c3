"""The explorer's view as a figure for a paper, from the same link."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from visionpulse_analysis import figures
from visionpulse_analysis.explorer.pairing import (
    Alignment,
    check_traces,
    columns_of,
    identities,
    labels,
    most_visual_layer,
    names,
    shared_layers,
    shared_quantities,
)
from visionpulse_analysis.explorer.payload import first_of_answer
from visionpulse_analysis.explorer.view import MODES, View, check_beside, check_quantity, read_view
from visionpulse_analysis.figures.scales import colours
from visionpulse_analysis.traces import frame_labels, frame_pictures, without_map

SINK_FACTOR, VEIL = 10, 0.65  # as in script/data.js and script/colours.js
BARE = 119  # grey of a panel whose picture was not recorded
DROPPED, KEPT = (0.15, 0.15, 0.15, 0.72), "#ffd21f"


def draw_view(trace, *pruned, view: str = "") -> Figure:
    """Draw what a link of the explorer shows: the overlay, its curves and, if asked for, the kept patches.

    Parameters
    ----------
    trace : Trace
    *pruned : Trace
        As in the explorer; the view says which of them is shown.
    view : str
        A link of the explorer, such as ``"step=12&layer=3"``.

    Returns
    -------
    Figure
        6.75 inches wide; write it with `visionpulse_analysis.figures.save`.

    Raises
    ------
    ValueError
        If the view is not a link of the explorer, or shows what these traces do not hold.
    """
    check_traces([trace, *pruned])
    asked = read_view(view)
    check_beside(asked, len(pruned))
    if not pruned and (asked.mode != "dense" or asked.of_pruned):
        raise ValueError(f"view {view!r} shows a pruned trace, but none was given")
    if asked.panel >= len(trace.grid.frames):
        raise ValueError(f"view {view!r}: there are {len(trace.grid.frames)} images or frames, counted from 0")
    return _compose(trace, frame_pictures(trace)[0][asked.panel], asked, _look_up([trace, *pruned], asked))


@dataclass(frozen=True)
class Curves:
    """What `visionpulse_analysis.figures.draw_step_curves` draws.

    Attributes
    ----------
    lines : dict of float [column]
        By name of the trace; NaN where it has no token.
    tokens : list of str [column]
    cursor : int
    label : str
    moments : dict of int
        Where the answer begins and where the traces part, as in the page.
    by_step : bool
        Whether a column is a step of each trace: two traces that part early share too few tokens for common columns.
    """

    lines: dict[str, np.ndarray]
    tokens: list[str]
    cursor: int
    label: str
    moments: dict[str, int]
    by_step: bool = False


@dataclass(frozen=True)
class _Shown:
    """What a view shows of which trace: values [patch] and their limit, curves, kept [patch] under `kept_title`."""

    tokens: list[str]
    step: int
    where: str
    values: np.ndarray
    limit: float
    signed: bool  # whether colours say a sign, too
    unit: str
    curves: Curves
    kept: np.ndarray | None
    kept_title: str
    maps: tuple[np.ndarray, list, list] | None  # [layer, head, patch] of the step, layers, heads: the overview
    methods: list[str]  # of the traces
    of: int  # which of the traces is shown


def _look_up(traces: list, asked: View) -> _Shown:
    layers, told = shared_layers(traces), ["", *labels(traces)[asked.beside : asked.beside + 1]]
    traces = [traces[0], *traces[asked.beside : asked.beside + 1]]
    layer = most_visual_layer(traces[0], layers) if asked.layer is None else asked.layer
    table = shared_quantities(traces)
    for choice, per_patch in ((asked.shown, True), (asked.curve, False)):
        check_quantity(choice, [name for name, row in table.items() if ("patch" in row.axes) == per_patch], per_patch)
    # A mean is that of the layers which all traces recorded, as in the page.
    attention = [_select(t.data[asked.shown].sel(layer=layers), layer, asked.head) for t in traces]
    aligned = _aligned(traces)
    column, columns = _column(asked, traces, aligned), list(zip(aligned.first, aligned.second, strict=True))
    steps = [step if step >= 0 else None for step in columns[column][: len(traces)]]
    called = names(traces)
    lines = [", ".join(filter(None, both)) for both in zip(called, told, strict=True)]

    shown = 1 if asked.mode == "pruned" else 0
    where = [f"layer {layer}"] + ([] if traces[shown].heads is None else [f"head {asked.head or 'mean'}"])
    if len(traces) == 2:
        where.insert(0, "difference" if asked.mode == "difference" else called[shown].lower())
    if asked.region is None:
        drawn = table[asked.curve]
        measured = "visual attention mass" if drawn.name == "mass" else fill(f"{drawn.label}, {drawn.unit}", 28)
        series = [_select(t.data[drawn.name].sel(layer=layers), layer, asked.head) for t in traces]
    else:
        inside = _inside(traces[0].grid, asked.panel, asked.region)
        measured = f"{table[asked.shown].label} to\n{region_name(asked.region)}"
        series = [a[:, inside].sum(axis=1) for a in attention]
    rows = [None if step is None else a[step] for a, step in zip(attention, steps, strict=True)]
    if asked.mode == "difference":
        if rows[0] is None or rows[1] is None or not aligned.paired(column):
            raise ValueError(f"step {asked.step}: no token of the other trace is aligned there, so no difference")
        values = rows[1] - rows[0]
        pairs = [columns[c] for c in range(len(columns)) if aligned.paired(c)]
        every = np.stack([attention[1][b] - attention[0][a] for a, b in pairs])
    else:
        values, every = rows[shown], np.concatenate(attention)
        if values is None:
            raise ValueError(f"step {asked.step}: the {MODES[shown]} trace has no token aligned there")
    if asked.mask_sinks:
        medians = np.median(attention[0], axis=0)
        sinks = (np.median(medians) > 0) & (medians > SINK_FACTOR * np.median(medians))
        values, every = np.where(sinks, np.nan, values), every[:, ~sinks]
        where.append(f"{sinks.sum()} sink{'' if sinks.sum() == 1 else 's'} masked")
    difference, over = asked.mode == "difference", table[asked.shown]
    measure = figures.ATTENTION_UNIT if over.name == "attention" else fill(f"{over.label}, {over.unit}", 34)
    # The kept set of the trace shown; beside a dense one, that of the other trace at the aligned step.
    keeper = next((t for t in (shown, 1 - shown) if t < len(traces) and traces[t].kept is not None), None)
    step = None if keeper is None or not asked.kept else steps[keeper]
    kept, kept_title = (None, "") if step is None or keeper is None else _kept(traces[keeper], step, layer)
    maps = None
    if asked.overview:
        first, *second = (0, 1) if difference else (shown,)
        at = [_every_map(t.data[over.name].sel(layer=layers), step or 0) for t, step in zip(traces, steps, strict=True)]
        maps = at[second[0]] - at[first] if second else at[first], layers, traces[shown].heads or ["mean"]
    return _Shown(
        tokens=traces[shown].tokens,
        step=steps[shown] or 0,
        where=", ".join(where),
        values=values,
        limit=float(np.nanmax(np.abs(values if asked.own_scale else every), initial=0.0)) or 1.0,
        signed=difference or (over.may_be_negative and bool((np.concatenate(attention) < 0).any())),
        unit=(f"{called[1]} - {called[0]} ".lower() if difference else "") + measure,
        curves=lay_out(traces, dict(zip(lines, series, strict=True)), aligned, column, measured, shown),
        kept=kept,
        kept_title=kept_title + ("" if keeper in (None, shown) else f" ({called[1 - shown].lower()})"),
        maps=maps,
        methods=[(t.meta.get("pruner") or {}).get("name", "dense") for t in traces],
        of=shown,
    )


def _aligned(traces: list) -> Alignment:
    """The columns of both traces; of a single one these are its steps."""
    first, second = (identities(trace) for trace in (traces[0], traces[-1]))
    return columns_of(first, second)


def _every_map(values, step: int) -> np.ndarray:
    """A quantity of one step, float64 [layer, head, patch]; one head where they were averaged."""
    found = values[step].values.astype(float)
    return found if "head" in values.dims else found[:, None]


def _kept(trace, step: int, layer: int | str) -> tuple[np.ndarray, str]:
    """The patches to draw as kept, and in what words: the recorded set is that of the last layer."""
    kept = trace.kept.values[step]
    counts = None if trace.k_per_layer is None else trace.k_per_layer.values[step]
    if counts is None or (layer != "mean" and counts[layer] == kept.sum()):
        return kept, "kept"
    if layer != "mean" and counts[layer] == len(kept):
        return np.ones_like(kept), f"all {len(kept)} visible at this layer ({kept.sum()} at the last)"
    return kept, "kept at the last layer"


def _compose(trace, picture: np.ndarray | None, asked: View, shown: _Shown) -> Figure:
    grid = trace.grid
    image, frame = grid.frames[asked.panel, :2].tolist()
    here = (grid.image == image) & (grid.frame == frame)
    boxes = grid.box[here]
    if picture is None or asked.bare:
        picture = np.full((*grid.image_size[image], 3), BARE, np.uint8)
    fig, axes, curve, above = _page(1 if shown.kept is None else 2, _overview_height(shown, grid.frames[asked.panel]))
    if shown.maps is not None and above is not None:
        maps, layers, heads = shown.maps
        maps = [[grid.to_map(one, image, frame) for one in layer] for layer in maps]
        figures.draw_map_grid(
            above, np.array(maps), layers, heads, signed=shown.signed, cmap="berlin" if shown.signed else asked.map
        )
    scale: dict[str, Any] = {
        "vmin": -shown.limit if shown.signed else 0.0,
        "vmax": shown.limit,
        "cmap": "berlin" if shown.signed else asked.map,
        "alpha": (1.0, 1.0),
    }
    veil = colours(shown.values[here], **scale)

    def opacity(values: np.ndarray) -> np.ndarray:
        if asked.bare:
            return np.ones(np.shape(values))
        share = np.minimum(1, np.nan_to_num(np.abs(values)) / shown.limit)
        strength = np.sqrt(np.round(255 * share) / 255)  # in the 256 colours of the page
        return asked.opacity / 100 * (VEIL + (1 - VEIL) * strength)

    veil[:, 3] *= opacity(shown.values[here])
    _draw_patches(axes[0], picture, boxes, facecolors=veil)
    figures.draw_colour_bar(axes[0], label=shown.unit, opacity=opacity, ground=None if asked.bare else picture, **scale)
    panel = f", {frame_labels(trace)[asked.panel].lower()}" if len(grid.frames) > 1 or without_map(trace) else ""
    title = f"step {shown.step}: {figures.token_label(shown.tokens[shown.step])}\n{shown.where}{panel}"
    with figures.style():
        axes[0].set_title(title, loc="left", parse_math=False)
    if asked.region is not None:
        box = grid.box[_inside(grid, asked.panel, asked.region)]
        figures.draw_boxes(axes[0], np.concatenate([box[:, :2].min(0), box[:, 2:].max(0)])[None])
    if shown.kept is not None:
        visible = shown.kept[here]
        _draw_patches(axes[1], picture, boxes[~visible], facecolors=[DROPPED])
        _draw_patches(axes[1], picture, boxes[visible], facecolors="none", edgecolors=KEPT, linewidths=0.9)
        with figures.style():
            axes[1].set_title(shown.kept_title, loc="left")
    drawn = shown.curves
    given = {"label": drawn.label, "cursor": drawn.cursor, "moments": drawn.moments, "methods": shown.methods}
    figures.draw_step_curves(curve, drawn.lines, drawn.tokens, **given)
    if len(drawn.lines) > 1 and drawn.by_step:
        curve.set_xlabel(f"step, tokens of {list(drawn.lines)[shown.of]}\n(the traces share too few to be aligned)")
    figures.draw_letters([*axes, curve])
    figures.draw_caption(fig, trace.meta.get("unlike_training", ""))
    return fig


def _overview_height(shown: _Shown, frame: np.ndarray) -> float | None:
    """Inches of the band of small maps, None without it."""
    if shown.maps is None:
        return None
    count_layers, count_heads, _ = shown.maps[0].shape
    across = min(0.8, (figures.DOUBLE - 1.5) / count_heads)
    return 0.5 + min(8.0, count_layers * across * float(frame[2] / frame[3]))


def _page(pictures: int, above: float | None) -> tuple[Figure, list[Axes], Axes, Axes | None]:
    """One picture beside the curve, or two above it; and above both, of so many inches, room for the small maps."""
    bands = [] if above is None else [above]
    if pictures == 1:
        fig, (*top, row) = figures.new_page(figures.DOUBLE, [*bands, 2.6])
        left, right = row.subfigures(1, 2, width_ratios=[1, 1.3], squeeze=False)[0]
    else:
        fig, (*top, left, right) = figures.new_page(figures.DOUBLE, [*bands, 2.7, 1.7])
    with figures.style():
        pages = list(left.subplots(1, pictures, squeeze=False)[0]), right.subplots()
        return fig, *pages, top[0].subplots() if top else None


def _draw_patches(ax: Axes, picture: np.ndarray, boxes: np.ndarray, **colouring) -> None:
    """Each patch at its own box: the grid of some models covers a part of the picture, or more than it."""
    if not ax.images:
        figures.draw_blackout(ax, picture, np.ones((1, 1)), 0)  # the bare picture
    rectangles = [Rectangle((left, top), right - left, bottom - top) for left, top, right, bottom in boxes]
    ax.add_collection(PatchCollection(rectangles, antialiased=False, **colouring), autolim=False)


def _select(values, layer: int | str, head: int | str | None) -> np.ndarray:
    """float64 [step, patch] or [step] at one layer and head; the mean where asked, and over heads by default."""
    for axis, choice in (("layer", layer), ("head", "mean" if head is None else head)):
        if axis not in values.dims:
            continue
        recorded = values[axis].values.tolist()
        if choice != "mean" and choice not in recorded:
            raise ValueError(f"{axis} {choice} was not recorded; recorded: {recorded}")
        values = values.astype(float).mean(axis) if choice == "mean" else values.sel({axis: choice})
    return values.values.astype(float)


def _column(asked: View, traces: list, aligned: Alignment) -> int:
    """The column under the cursor."""
    counted = traces[1 if asked.of_pruned else 0]
    if asked.step >= len(counted.tokens):
        raise ValueError(f"step {asked.step} is out of range: the trace has steps 0..{len(counted.tokens) - 1}")
    return (aligned.second if asked.of_pruned else aligned.first).index(asked.step)


def _inside(grid, panel: int, region: tuple[int, int, int, int]) -> np.ndarray:
    """The patches of the region, in the panel shown: bool [patch]."""
    image, frame = grid.frames[panel, :2].tolist()
    r0, c0, r1, c1 = region
    here = (grid.image == image) & (grid.frame == frame)
    inside = here & (grid.row >= r0) & (grid.row <= r1) & (grid.col >= c0) & (grid.col <= c1)
    if not inside.any():
        raise ValueError(f"no patch in rows {r0}-{r1}, columns {c0}-{c1}")
    return inside


def lay_out(
    traces: list, series: dict[str, np.ndarray], aligned: Alignment, cursor: int, label: str, shown: int = 0
) -> Curves:
    """Put the `series` [step] of each trace into the columns; a token is that of the trace `shown`, if it has one."""
    columns = [aligned.first, aligned.second][: len(traces)]
    lines = {
        name: np.array([values[step] if step >= 0 else np.nan for step in steps])
        for (name, values), steps in zip(series.items(), columns, strict=True)
    }
    order = [shown, *(t for t in range(len(traces)) if t != shown)]
    tokens = [
        next(traces[t].tokens[columns[t][column]] for t in order if columns[t][column] >= 0)
        for column in range(len(aligned.first))
    ]
    moments = {}
    answer = first_of_answer(traces[0])
    if answer is not None:
        moments["answer"] = aligned.first.index(answer)
    if aligned.divergence is not None:
        moments["diverges"] = aligned.divergence
    return Curves(lines, tokens, cursor, label, moments, aligned.by_step)


def region_name(region: tuple[int, int, int, int]) -> str:
    """Rows and columns in words, on two lines."""
    r0, c0, r1, c1 = region
    rows = f"row {r0}" if r0 == r1 else f"rows {r0} to {r1}"
    return f"{rows},\n" + (f"column {c0}" if c0 == c1 else f"columns {c0} to {c1}")
