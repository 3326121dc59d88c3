"""The activation picture of VisionPulse (arXiv 2605.31457): the mass curve, and the most attended patches of steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.stored_traces import picture_of
from visionpulse_analysis.figures import DOUBLE
from visionpulse_analysis.figures.tokens import check_steps
from visionpulse_analysis.studies.step_dependence.measure import masses_of, rows_of
from visionpulse_analysis.traces import Trace, without_map

LEVELS = (50, 90)  # percentiles of the paper's pictures


def even_steps(trace: Trace, count: int = 3) -> list[int]:
    """Steps evenly spaced from the first to the last, as the authors' tool takes them where none are named."""
    return np.unique(np.linspace(0, len(trace) - 1, min(count, len(trace)), dtype=int)).tolist()


def activation_page(
    trace: Trace, layer: int, steps: Sequence[int] | None = None, levels: Sequence[float] = LEVELS
) -> Figure:
    """Draw the mass curve of a trace and, for each level and step, the image with the less attended patches black.

    Raises ValueError: there is no level or step, or one is out of range; IndexError: the layer was not recorded.

    Parameters
    ----------
    trace : Trace
    layer : model index of a recorded layer; heads are averaged
    steps : zero-based; three evenly spaced ones where left out
    levels : percentiles, 0 to 100: patches at or below are black, so 90 shows the top 10 %; see `draw_blackout`

    Returns
    -------
    Figure
    """
    chosen = even_steps(trace) if steps is None else list(steps)
    check_steps(chosen, len(trace))
    if not chosen or not len(levels):
        raise ValueError(f"expected one step and one level at least, got steps {chosen} and levels {list(levels)}")
    image, rows = picture_of(trace), rows_of(trace, layer)
    shown = figures.picture_height(image.shape, 1.08 * DOUBLE / max(3, len(chosen)), 3.5)
    fig, (top, *bands) = figures.new_page(DOUBLE, [2.4, *(shown + 0.3 for _ in levels)])
    with figures.style():
        curve = top.subplots()
        panels = [band.subplots(1, max(3, len(chosen)), squeeze=False)[0] for band in bands]
    figures.draw_mass_curve(curve, masses_of(trace, layer), trace.tokens, marked_steps=sorted({*chosen}))
    for level, axes in zip(levels, panels, strict=True):
        for ax in axes[len(chosen) :]:
            ax.set_visible(False)
        for ax, step in zip(axes, chosen, strict=False):
            figures.draw_blackout(ax, image, trace.grid.to_map(rows[step]), level)
            with figures.style():
                ax.set_title(figures.step_title(step, trace.tokens[step]), parse_math=False)
        with figures.style():
            lacking = "" if without_map(trace) is None else "\nno map: tokens in order"
            axes[0].set_ylabel(f"top {100 - level:g} %{lacking}")
    if curve.get_legend_handles_labels()[1]:
        figures.draw_legend(curve)
    return figures.finish(fig, [curve, *panels], f"n = 1 trace of {len(trace):,} steps, attention in layer {layer}.")
