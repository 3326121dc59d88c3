"""The explorer's view as a figure for a paper, from the same link."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.explorer.alignment import align
from visionpulse_analysis.explorer.payload import check_same_image, identities, most_visual_layer, shared_layers
from visionpulse_analysis.explorer.view import MODES, View, read_view

SINK_FACTOR = 10  # as in explorer.js, where the help explains it


def draw_view(trace, pruned=None, view: str = "") -> Figure:
    """Draw what a link of the explorer shows: the overlay, the mass curve and, if asked for, the kept patches.

    Parameters
    ----------
    trace : Trace
    pruned : Trace, optional
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
    asked, traces = read_view(view), [trace] if pruned is None else [trace, pruned]
    if pruned is not None:
        check_same_image(trace, pruned)
    elif asked.mode != "dense" or asked.of_pruned:
        raise ValueError(f"view {view!r} shows a pruned trace, but none was given")
    layers = shared_layers(traces)
    layer = most_visual_layer(trace, layers) if asked.layer is None else asked.layer
    attention = [_select(t.attention, layer, asked.head) for t in traces]
    masses = [_select(t.mass, layer, asked.head) for t in traces]
    steps, columns = _steps(asked, traces)

    shown = 1 if asked.mode == "pruned" else 0
    rows = [None if step is None else a[step] for a, step in zip(attention, steps, strict=True)]
    if asked.mode == "difference":
        if rows[0] is None or rows[1] is None:
            raise ValueError(f"view {view!r}: no token of the other trace is aligned there, so no difference")
        values, pairs = rows[1] - rows[0], [(a, b) for a, b in columns if a >= 0 and b >= 0]
        every = np.stack([attention[1][b] - attention[0][a] for a, b in pairs])
    else:
        values, every = rows[shown], np.concatenate(attention)
        if values is None:
            raise ValueError(f"view {view!r}: the {MODES[shown]} trace has no token aligned there")
    if asked.mask_sinks:
        medians = np.median(attention[0], axis=0)
        sinks = (np.median(medians) > 0) & (medians > SINK_FACTOR * np.median(medians))
        values, every = np.where(sinks, np.nan, values), every[:, ~sinks]
    limit = float(np.nanmax(np.abs(values)) if asked.own_scale else np.abs(every).max()) or 1.0
    return _compose(traces[shown], asked, values, limit, masses[shown], steps[shown] or 0, f"layer {layer}")


def _compose(trace, asked: View, values: np.ndarray, limit: float, mass: np.ndarray, step: int, layer: str) -> Figure:
    image, frame = (int(i) for i in trace.grid.frames[asked.panel, :2])
    picture = trace.images[image]
    kept = trace.kept if asked.kept else None
    fig, (above, below) = figures.new_page(figures.DOUBLE, [2.7, 1.7])
    with figures.style():
        axes = above.subplots(1, 1 if kept is None else 2, squeeze=False)[0]
        curve = below.subplots()
    difference = asked.mode == "difference"
    scale = {"vmin": -limit if difference else 0.0, "vmax": limit, "cmap": "berlin" if difference else asked.map}
    alpha = (0.75, 0.75) if difference else (0.5, 0.8)
    label = "pruned - dense attention" if difference else figures.ATTENTION_UNIT
    figures.draw_overlay(axes[0], picture, trace.grid.to_map(values, image, frame), alpha=alpha, **scale)
    figures.draw_colour_bar(axes[0], alpha=alpha, label=label, **scale)
    axes[0].set_title(f"step {step}: {figures.token_label(trace.tokens[step])}, {layer}")
    if asked.region is not None:
        figures.draw_boxes(axes[0], _region_box(trace.grid, image, frame, asked.region))
    if kept is not None:
        figures.draw_kept(axes[1], picture, trace.grid.to_map(kept.values[step], image, frame))
        axes[1].set_title("kept")
    figures.draw_mass_curve(curve, mass, trace.tokens, marked_steps=[step])
    return fig


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


def _steps(asked: View, traces: list) -> tuple[list[int | None], list[tuple[int, int]]]:
    """The step of each trace under the cursor (None where it has none) and all aligned columns."""
    counted = traces[1 if asked.of_pruned else 0]
    if asked.step >= len(counted.tokens):
        raise ValueError(f"step {asked.step} is out of range: the trace has steps 0..{len(counted.tokens) - 1}")
    if len(traces) == 1:
        return [asked.step], []
    aligned = align(*(identities(t) for t in traces))
    columns = list(zip(aligned.first, aligned.second, strict=True))
    here = columns[(aligned.second if asked.of_pruned else aligned.first).index(asked.step)]
    return [step if step >= 0 else None for step in here], columns


def _region_box(grid, image: int, frame: int, region: tuple[int, int, int, int]) -> np.ndarray:
    r0, c0, r1, c1 = region
    inside = (grid.image == image) & (grid.frame == frame)
    inside &= (grid.row >= r0) & (grid.row <= r1) & (grid.col >= c0) & (grid.col <= c1)
    if not inside.any():
        raise ValueError(f"no patch in rows {r0}-{r1}, columns {c0}-{c1}")
    box = grid.box[inside]
    return np.concatenate([box[:, :2].min(0), box[:, 2:].max(0)])[None]
