"""The frontier of all pruners, a panel per family with every method named at its line; what each keeps of one image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator, NullLocator

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.collect import collect
from visionpulse_analysis.experiments.conditions import kept_by_layer
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.figures.curves import spread
from visionpulse_analysis.figures.methods import AT_PREFILL, AT_STEPS
from visionpulse_analysis.figures.plots import ends
from visionpulse_analysis.figures.style import GREY, axes_points, style
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.studies.frontier.figures import kept_of
from visionpulse_analysis.studies.pruner_comparison.measure import (
    ADDED,
    OWN,
    PULSE,
    RIVALS,
    Comparison,
    all_rivals,
    retention,
)
from visionpulse_analysis.studies.shared.arms import DENSE
from visionpulse_analysis.traces import Trace, frame_labels, frame_pictures

ACCURACY, LENGTH, CUT_OFF = "accuracy (%)", "length (%)", "cut off (%)"
Value = Callable[[Any], Any]  # of a Change, an Estimate; for accuracy only where answers are known
FAMILIES = (*dict.fromkeys(rival.family for rival in RIVALS.values() if rival.family != PULSE), ADDED)
COLUMNS, HEIGHT = 3, 1.4  # panels beside one another; inches of each
APART = 0.08  # how far the methods of a panel are moved apart, as a share of what they keep
NAME_SIZE = 7  # points
FEWEST, MOST = 3, 8  # kept sets beside one another
PAGE = 8.3  # inches that kept sets may be high
NOTE = "Lengths: change against dense, of pairs that both ended. Methods at one share are moved apart sideways."
STEPS = 4  # rows of kept sets, at most
KEY = "Bright: what the last layer sees at that step. % kept: mean over the steps and the layers that a method acts on."


def frontier_figure(compared: Comparison) -> Figure:
    """Draw accuracy (where it is known), change of length and share cut off against the share kept, with intervals.

    One panel per family, and below one another the outcomes; dense and VisionPulse are behind every one. Lengths are
    over the pairs that both ended: no point where none did. Methods at the same share are moved apart sideways.
    """
    values: dict[str, Value] = {ACCURACY: lambda c: c.truth.accuracy} if compared.arms.known else {}
    values |= {LENGTH: lambda c: c.length, CUT_OFF: lambda c: c.cut_off.arm}
    families = [f for f in FAMILIES if any(all_rivals()[label].family == f for label in compared.groups)]
    bands = -(-len(families) // COLUMNS)
    rows = bands * len(values)
    fig, axes = figures.new_figure(figures.DOUBLE, HEIGHT * rows + 0.3, rows, COLUMNS)
    by_family = np.reshape(axes, (bands, len(values), COLUMNS)).swapaxes(1, 2).reshape(bands * COLUMNS, len(values))
    for spare in by_family[len(families) :].flat:
        spare.set_axis_off()
    for place, (label, value) in enumerate(values.items()):
        panels = by_family[: len(families), place]
        for ax, family in zip(panels, families, strict=True):
            _draw_panel(ax, compared, family, value)
        low, high = min(ax.get_ylim()[0] for ax in panels), max(ax.get_ylim()[1] for ax in panels)
        for number, ax in enumerate(panels):
            ax.set_ylim((0, 104) if label == ACCURACY else (low, high))
            ax.set_ylabel("" if number % COLUMNS else label)
            ax.yaxis.set_major_locator(MaxNLocator(5))
    for family, column in zip(families, by_family, strict=False):
        column[-1].set_xlabel("patches kept (%)")
        with style():
            column[0].set_title(family, loc="left", fontweight="bold")
    _add_legend(by_family[0, 0], list(np.ravel(axes)))
    fig.draw_without_rendering()
    for ax in by_family[: len(families)].flat:
        _spread_names(ax)
    return figures.finish(
        fig, [ax for part in np.reshape(axes, (bands, len(values), COLUMNS)) for ax in part.flat], NOTE
    )


@style()
def _draw_panel(ax: Axes, compared: Comparison, family: str, value: Value) -> None:
    rivals, points = all_rivals(), compared.arms.changes
    dense = value(compared.arms.changes[DENSE]).value
    figures.draw_reference(ax, 100 * dense if np.isfinite(dense) else 0, DENSE)
    members = [label for label in compared.groups if rivals[label].family == family]
    behind = [label for label in compared.groups if rivals[label].family == PULSE]
    for label in [*behind, *members]:
        at = members.index(label) if label in members else None
        moved = 1.0 if at is None else 1 + APART * (at - (len(members) - 1) / 2)
        look = figures.look(label)
        faint: dict[str, Any] = {"alpha": 0.35} if at is None else {}
        own = [name for name in compared.groups[label] if name.endswith(OWN)]
        matched = [name for name in compared.groups[label] if name not in own]
        for of_kind, hollow in ((matched, False), (own, True)):
            names = [name for name in of_kind if np.isfinite(value(points[name]).value)]
            if not names or (at is None and hollow):
                continue
            y, low, high = (100 * one for one in ends([value(points[name]) for name in names]))
            figures.note_estimates(ax, [value(points[name]) for name in names])
            x = np.array([100 * compared.kept[name] * moved for name in names])
            drawn = ax.errorbar(
                x, y, yerr=[y - low, high - y], color=look.colour, elinewidth=0.7, capsize=0, linewidth=1, gid=label,
                marker=look.marker, linestyle="" if hollow else "-", zorder=1.5 if at is None else 3,
                markerfacecolor="white" if hollow else look.colour, **faint,
            )  # fmt: skip
            drawn.lines[0].set_gid(label)
            if at is not None and (not hollow or not matched):
                last = int(np.argmax(x))
                _name(ax, label, look.colour, (x[last], y[last]))
    if not ax.containers:
        ax.text(0.5, 0.5, "no pair ended", ha="center", va="center", transform=ax.transAxes, color=GREY, fontsize=7)
    # Linear near zero, because a pruner may leave nothing.
    lowest = min(100 * kept for kept in compared.kept.values())
    ax.set_xscale("symlog", linthresh=2, linscale=0.3)
    ticks = [0, 5, 10, 25, 50, 100]
    ax.set_xticks(ticks, ["" if tick == 50 else str(tick) for tick in ticks])  # else it runs into 100
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(-0.4 if lowest < 2 else 2.3, 130)


def _name(ax: Axes, label: str, colour: str, point: tuple[float, float]) -> None:
    """Write a name at the right of the panel, with a line to its last point."""
    unlike = "" if label in figures.METHODS or all_rivals()[label].at_prefill else " (steps)"  # no triangle says so
    words = (label + unlike).replace(" | ", " |\n").replace(", ", ",\n")
    with style():
        ax.annotate(
            words, point, (1.06, 0.5), textcoords="axes fraction",
            color=colour, fontsize=NAME_SIZE, va="center", parse_math=False, annotation_clip=False, linespacing=0.9,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 1, "shrinkB": 2,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def _spread_names(ax: Axes) -> None:
    """Put every name at the height of its point, or as near as the others allow."""
    names, height = [text for text in ax.texts if isinstance(text, Annotation)], axes_points(ax)[1]
    wanted = [ax.transAxes.inverted().transform(ax.transData.transform(name.xy))[1] for name in names]
    sizes = [(name.get_text().count("\n") + 1) * NAME_SIZE * 1.15 / height for name in names]
    order = np.argsort(wanted, kind="stable")
    at = spread([wanted[i] for i in order], [sizes[i] for i in order])
    for place, y in zip(order, at, strict=True):
        names[place].set_position((1.06, y))


def _add_legend(ax: Axes, axes: list[Axes]) -> None:
    pulse = figures.look("VisionPulse")
    ax.plot([], [], color=pulse.colour, marker=pulse.marker, alpha=0.35, label=pulse.label)
    for marker, label in (
        (AT_PREFILL[0], "not a triangle: settled at prefill"),
        (AT_STEPS[0], "triangle: chosen at steps"),
    ):
        ax.plot([], [], marker=marker, color=GREY, linestyle="", label=label)
    ax.plot([], [], marker="o", color=GREY, markerfacecolor="white", linestyle="", label=OWN)
    figures.draw_legend(axes)


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


def kept_share(trace: Trace) -> float | None:
    """The :func:`retention` of one trace; 1 where dense, None for a pruned one without a step after prefill."""
    shares = kept_by_layer(trace)
    if trace.kept is not None and not len(shares):
        return None
    return retention(shares, (trace.meta["pruner"] or {}).get("name", ""), len(shares))


def kept_page(traces: Mapping[str, Trace], steps: Sequence[int], panel: int = 0) -> Figure:
    """Draw what every pruner keeps at some steps: pruners side by side, steps below one another.

    Those whose set is the same at all of the steps have one picture. Each is titled with the share that its trace
    keeps. Nothing is drawn where a trace has ended before that step. Of several images or frames, ``panel`` is shown.
    Of more steps than fit a page, the first ones are drawn.
    """
    shown = next(iter(traces.values()))
    frames = np.asarray(shown.grid.frames)
    pictures, note = frame_pictures(shown)
    picture, (image, frame) = pictures[panel], frames[panel, :2].tolist()
    if picture is None:
        raise ValueError(f"the traces cannot be drawn over the picture that was asked about: {note}")
    sets = {label: kept_of(trace)[[step for step in steps if step < len(trace)]] for label, trace in traces.items()}
    still = [label for label, kept in sets.items() if len(kept) > 1 and (kept == kept[0]).all()]
    moving = [label for label in traces if label not in still]
    columns = min(MOST, max(FEWEST, len(moving), len(still)))
    groups = [part[start : start + columns] for part in (moving, still) for start in range(0, len(part), columns)]
    tall = figures.picture_height(picture.shape, figures.DOUBLE / columns - 0.1, 2) + 0.08
    bands = -(-len(moving) // columns)  # of those, how many have a row for each step
    room, rows = PAGE - 0.45 * len(groups), len(steps) * bands + len(groups) - bands
    tall = min(tall, max(0.7, room / rows))  # smaller pictures before fewer steps
    fitting = int((room - tall * (len(groups) - bands)) / (tall * max(1, bands)) + 1e-6)
    steps = list(steps)[: max(1, fitting)]
    heights = [tall * (len(steps) if number < bands else 1) + 0.45 for number in range(len(groups))]
    fig, parts = figures.new_page(figures.DOUBLE, heights)
    lettered = []
    for number, (part, group) in enumerate(zip(parts, groups, strict=True)):
        rows = steps if number < bands else steps[:1]
        with figures.style():
            panels = part.subplots(len(rows), columns, squeeze=False)
        for ax in panels[:, len(group) :].flat:
            ax.set_axis_off()
        for row, step in enumerate(rows):
            for ax, label in zip(panels[row], group, strict=False):
                if step < len(traces[label]):
                    kept = kept_of(traces[label])[step]
                    figures.draw_kept(ax, picture, traces[label].grid.to_map(kept, image, frame))
                else:
                    ax.text(0.5, 0.5, "ended", ha="center", va="center", transform=ax.transAxes, fontsize=NAME_SIZE)
                    ax.set(xticks=[], yticks=[])
                    ax.spines[:].set_visible(False)
            where = f"{frame_labels(shown)[panel].lower()}, " if len(frames) > 1 else ""
            when = f"step {step}" if number < bands else "all steps"
            panels[row, 0].set_ylabel(f"{where}{when}", fontsize=NAME_SIZE)
        for ax, label in zip(panels[0], group, strict=False):
            name, share = label.replace(" | ", " |\n").replace(", ", ",\n"), kept_share(traces[label])
            told = name if share is None else f"{name}\n{100 * share:.1f} % kept"
            ax.set_title(told, parse_math=False, fontsize=NAME_SIZE)
        if number in (0, bands):
            lettered.append(panels[0, 0])
    figures.draw_letters(lettered)
    about = "b: the same set at all steps shown. " if moving and still else ""
    figures.draw_caption(fig, f"n = 1 sample. {about}{KEY}")
    return fig
