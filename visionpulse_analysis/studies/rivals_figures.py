"""The frontier of all pruners, and what each of them keeps of one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from visionpulse_analysis import figures
from visionpulse_analysis.figures.style import GREY
from visionpulse_analysis.models import VLM
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.studies.collect import collect
from visionpulse_analysis.studies.frontier import Point
from visionpulse_analysis.studies.frontier_report import kept_of
from visionpulse_analysis.studies.rivals import ADDED, OWN, RIVALS, Comparison, all_rivals
from visionpulse_analysis.studies.samples import Sample
from visionpulse_analysis.traces import Trace, frame_labels, frame_pictures

# Okabe and Ito's colours, one per family; their yellow is for pruners that were added.
COLOURS = ("#D55E00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#E69F00", GREY, "#000000", "#F0E442")
FAMILIES = (*dict.fromkeys(rival.family for rival in RIVALS.values()), ADDED)
AT_PREFILL, AT_STEPS = "o", "^"
FEWEST, COLUMNS = 3, 7  # kept sets beside one another
STEPS = 4  # rows of kept sets, at most


def frontier_figure(compared: Comparison) -> Figure:
    """Draw accuracy (where it is known) and the change of length against the share kept: colour is the family."""
    known = compared.frontier.dense.accuracy
    fig, axes = figures.new_figure(figures.DOUBLE, 3.6, 1, 1 if known is None else 2)
    *first, last = np.atleast_1d(axes)
    for ax in first:
        _draw(ax, compared, lambda point: 100 * point.accuracy.estimate if point.accuracy else np.nan)
        ax.axhline(100 * known.estimate if known else 0, color=GREY, linewidth=0.8, linestyle="--")
        ax.set(ylabel="accuracy (%)", ylim=(0, 104))
    _draw(last, compared, lambda point: 100 * point.change.length.estimate)
    last.axhline(0, color=GREY, linewidth=0.8, linestyle="--", label="dense")
    last.set_ylabel("change of length (%)")
    shown = {all_rivals()[label].family for label in compared.arms}
    for family, colour in zip(FAMILIES, COLOURS, strict=True):
        if family not in shown:
            continue
        last.plot([], [], color=colour, label=family)
    for marker, label in ((AT_PREFILL, "settled at prefill"), (AT_STEPS, "settled at steps")):
        last.plot([], [], marker=marker, color=GREY, linestyle="", label=label)
    last.plot([], [], marker="o", color=GREY, markerfacecolor="white", linestyle="", label=OWN)
    figures.draw_legend([*first, last])
    return fig


def _draw(ax: Axes, compared: Comparison, value) -> None:
    colours = dict(zip(FAMILIES, COLOURS, strict=True))
    rivals = all_rivals()
    for label, names in compared.arms.items():
        rival = rivals[label]
        style: dict[str, Any] = {"color": colours[rival.family], "marker": AT_PREFILL if rival.at_prefill else AT_STEPS}
        points: list[Point] = [compared.frontier.points[name] for name in names if not name.endswith(OWN)]
        own: list[Point] = [compared.frontier.points[name] for name in names if name.endswith(OWN)]
        ax.plot([100 * p.retention for p in points], [value(p) for p in points], linewidth=0.9, alpha=0.85, **style)
        where = [100 * p.retention for p in own]
        ax.plot(where, [value(p) for p in own], linestyle="", markerfacecolor="white", zorder=3, **style)
    # Linear near zero, because a pruner may leave nothing.
    ax.set_xscale("symlog", linthresh=3, linscale=0.4)
    ticks = [0, 5, 10, 25, 50, 100]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlim=(-0.5, 120), xlabel="patches kept at the last layer (mean, %)")


def decode_one(
    vlm: VLM, sample: Sample, arms: Mapping[str, Mapping[str, Pruner]], max_new_tokens: int
) -> dict[str, Trace]:
    """One sample under one arm of every rival, the first that ``arms`` gives it."""
    traces = {}
    for label, group in arms.items():
        pruner = next(iter(group.values()))
        [traces[label]] = collect(vlm, [sample], pruner=pruner, layers="none", max_new_tokens=max_new_tokens)
    return traces


def shown_steps(traces: Mapping[str, Trace]) -> list[int]:
    """Up to four steps, evenly spaced over those that all traces reach, the first pruned one first.

    Raises ValueError where no trace has a step after prefill.
    """
    ends = [len(trace) - 1 for trace in traces.values()]
    if max(ends) < 1:
        raise ValueError("every trace ends before any pruned step; ask for more tokens or another question")
    last = max(min(ends), min(STEPS, max(ends)))  # one trace that ends at once does not hide what the others do
    return np.unique(np.linspace(1, last, STEPS).round().astype(int)).tolist()


def retention(trace: Trace) -> float | None:
    """Mean share of the patches that the last layer sees, over the steps after prefill; None without such a step."""
    if trace.kept is None:
        return 1.0
    return float(kept_of(trace)[1:].mean()) if len(trace) > 1 else None


def kept_page(traces: Mapping[str, Trace], steps: Sequence[int], panel: int = 0) -> Figure:
    """Draw what every pruner keeps at some steps: pruners side by side, steps below one another.

    Each is titled with the share that its trace keeps. Nothing is drawn where a trace has ended before that step. Of
    several images or frames, ``panel`` is shown.
    """
    labels = list(traces)
    columns = min(COLUMNS, max(FEWEST, len(labels)))
    groups = [labels[start : start + columns] for start in range(0, len(labels), columns)]
    shown = traces[labels[0]]
    frames = np.asarray(shown.grid.frames)
    picture, (image, frame) = frame_pictures(shown)[0][panel], frames[panel, :2].tolist()
    if picture is None:
        raise ValueError("the traces do not hold the picture that was asked about")
    tall, wide = picture.shape[:2]
    height = (figures.DOUBLE / columns * tall / wide + 0.08) * len(steps) + 0.3
    fig, parts = figures.new_page(figures.DOUBLE, [height] * len(groups))
    for part, group in zip(parts, groups, strict=True):
        with figures.style():
            panels = part.subplots(len(steps), columns, squeeze=False)
            for column in range(len(group), columns):
                for ax in panels[:, column]:
                    ax.set_axis_off()
            for ax, label in zip(panels[0], group, strict=False):
                name, share = label.replace(" | ", " |\n").replace(", ", ",\n"), retention(traces[label])
                ax.set_title(name if share is None else f"{name}\n{100 * share:.1f} %", parse_math=False)
        for row, step in enumerate(steps):
            for ax, label in zip(panels[row], group, strict=False):
                trace = traces[label]
                if step >= len(trace):
                    ax.text(0.5, 0.5, "ended", ha="center", va="center", transform=ax.transAxes)
                    ax.set(xticks=[], yticks=[])
                    ax.spines[:].set_visible(False)
                    continue
                figures.draw_kept(ax, picture, trace.grid.to_map(kept_of(trace)[step], image, frame))
            where = f"{frame_labels(shown)[panel].lower()}, " if len(frames) > 1 else ""
            panels[row, 0].set_ylabel(f"{where}step {step}", fontsize=8)
    return fig
