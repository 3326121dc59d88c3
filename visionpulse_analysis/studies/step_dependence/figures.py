"""The figures of step dependence: pages and panels, drawn through `visionpulse_analysis.figures`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.experiments.stored_traces import picture_of
from visionpulse_analysis.figures import DOUBLE, SINGLE
from visionpulse_analysis.figures.style import GREY
from visionpulse_analysis.metrics.estimate import Estimate
from visionpulse_analysis.studies.step_dependence.fixed_set_report import draw_same_word
from visionpulse_analysis.studies.step_dependence.fixed_sets import FixedSets
from visionpulse_analysis.studies.step_dependence.measure import StepDependence, masses_of, rows_of
from visionpulse_analysis.studies.step_dependence.object_attention import ObjectAttention, named_objects
from visionpulse_analysis.testbed.scenes.scene import CELL, Scene
from visionpulse_analysis.testbed.truth import Picture
from visionpulse_analysis.traces import Trace, without_map


def steps_to_show(trace: Trace, sample: Sample, layer: int, count: int = 6) -> list[int]:
    """Choose steps worth a picture by a rule that does not look at where the attention falls.

    With a scene: of every mention of an object the step with the most image mass, mentions evenly spaced where
    there are more than ``count``. Where there are fewer, further steps that name objects, then any, by image mass
    and not side by side if possible.
    """
    mass, named = masses_of(trace, layer), named_objects(trace, sample)
    mentions: list[list[int]] = []
    for step in (step for step, index in enumerate(named) if index is not None):
        if mentions and step - mentions[-1][-1] <= 2 and named[step] == named[mentions[-1][-1]]:
            mentions[-1].append(step)
        else:
            mentions.append([step])
    best = [max(mention, key=lambda step: mass[step]) for mention in mentions]
    if len(best) > count:
        return [best[i] for i in np.linspace(0, len(best) - 1, count).round().astype(int)]
    by_mass = sorted(range(len(trace)), key=lambda step: (named[step] is None, -mass[step], step))
    for apart in (3, 1):  # neighbours show much the same, and their numbers collide on the curve
        for step in by_mass:
            if len(best) < count and all(abs(step - other) >= apart for other in best):
                best.append(step)
    return sorted(best)


def cell_boxes(scene: Picture | None, objects: list[int]) -> np.ndarray:
    """Cells of objects in pixels, left, top, right, bottom: float64 [object, 4]."""
    places = [scene.objects[index] for index in objects] if isinstance(scene, Scene) else []
    corners = [(CELL * o.col, CELL * o.row) for o in places]
    return np.array([(x, y, x + CELL, y + CELL) for x, y in corners], dtype=float).reshape(-1, 4)


def draw_example(
    fig: Figure | SubFigure | None,
    trace: Trace,
    sample: Sample,
    layer: int,
    steps: list[int],
    *,
    scale: str | float = "absolute",
    columns: int = 6,
) -> list[Axes]:
    """Draw the attention of some steps on the image, the cell of the object that each one names outlined."""
    named = named_objects(trace, sample)
    rows = rows_of(trace, layer)
    lacking = "" if without_map(trace) is None else "\nno map: tokens in order"
    return figures.overlay_strip(
        fig,
        picture_of(trace),
        trace.grid.to_map(rows[steps]),
        [figures.step_title(step, trace.tokens[step]) + lacking for step in steps],
        boxes=[cell_boxes(sample.scene, [i for i in (named[step],) if i is not None]) for step in steps],
        scale=scale,
        columns=columns,
    )


def draw_mass(ax: Axes, trace: Trace, layer: int, steps: list[int], text_below: float) -> Axes:
    """Draw the image mass over the tokens of one trace, the text-dominated steps on a plain ground."""
    mass = masses_of(trace, layer)
    kinds = np.where(mass < text_below, "text", "visual").tolist()
    figures.draw_mass_curve(ax, mass, trace.tokens, marked_steps=steps, kinds=kinds)
    _legend(ax)
    return ax


def draw_overlap(ax: Axes, study: StepDependence) -> Axes:
    """Draw the overlap of critical sets by their distance in steps, with the null of random sets."""
    lags = np.arange(1, len(study.lag_overlap) + 1)
    figures.draw_curve(ax, lags, study.lag_overlap, "two steps")
    _level(ax, lags, study.null_overlap, "random sets")
    ax.set(xlabel="distance in steps", ylabel=f"overlap of top {100 * study.fraction:g} %\n(Jaccard)")
    ax.set_ylim(0, None)
    return ax


def draw_coverage(ax: Axes, study: StepDependence) -> Axes:
    """Draw how much of each step's image mass its own critical set, the prefill's and a random one hold."""
    figures.draw_curve(ax, study.steps, study.own_coverage, "the step's own")
    figures.draw_curve(ax, study.steps, study.prefill_coverage, "prefill's")
    _level(ax, study.steps, study.null_coverage, "random sets")
    ax.set(xlabel="step", ylabel=f"image mass in top {100 * study.fraction:g} %")
    ax.set_ylim(0, None)
    return ax


def draw_object_share(ax: Axes, truth: ObjectAttention) -> Axes:
    """Draw by kind of token how much of the image mass lies on the object named, and on one that is not."""
    bars = {}
    if truth.other:  # else no scene holds a second object
        other = [truth.other[kind].value if kind in truth.other else 0.0 for kind in truth.share]
        bars = {"null_low": [0.0] * len(other), "null_high": other, "null_label": "an object not named"}
    figures.draw_estimates(
        ax, truth.share, xlabel="share of image mass", reference=truth.chance, reference_label="spread evenly", **bars
    )
    ax.set_xlim(0, None)
    return ax


def draw_object_layers(ax: Axes, truth: ObjectAttention) -> Axes:
    """Draw the share of the image mass on the object named, by kind of token and layer."""
    return figures.draw_matrix(
        ax,
        truth.by_layer,
        [str(layer) for layer in truth.layers],
        list(truth.share),
        vmin=0,
        vmax=float(np.nanmax(truth.by_layer)),
        label="share of image mass",
        xlabel="layer",
    )


def words_figure(study: StepDependence) -> Figure:
    """Draw `draw_words` one column wide, as high as the words need."""
    most = 60
    return single(draw_words, study, most, height=0.5 + 0.13 * max(6, min(most, len(study.words))))


def draw_words(ax: Axes, study: StepDependence, most: int) -> Axes:
    """Draw the image mass of the steps that produce a word; the two ends where there are more than ``most`` words.

    Few samples may share no word; the panel then says so.
    """
    names = list(study.words)
    if not names:
        ax.text(0.5, 0.5, "no word is used by enough samples", ha="center", va="center", transform=ax.transAxes)
        ax.set_axis_off()
        return ax
    names = names if len(names) <= most else [*names[: most // 2], *names[-most // 2 :]]
    chosen = {figures.token_label(name): study.words[name] for name in names}
    return _draw_masses(ax, chosen, study.text_below)


def draw_kinds(ax: Axes, truth: ObjectAttention, text_below: float) -> Axes:
    """Draw the image mass of the steps by the kind of token they produce."""
    by_mass = dict(sorted(truth.mass.items(), key=lambda item: -item[1].value))
    return _draw_masses(ax, by_mass, text_below)


def _draw_masses(ax: Axes, masses: Mapping[str, Estimate], text_below: float) -> Axes:
    level = {"reference": text_below, "reference_label": "text-dominated below"}
    return figures.draw_estimates(ax, masses, xlabel="visual attention mass", **level)


@dataclass(frozen=True)
class Findings:
    """Everything over all samples that a panel of the headline may draw; None where it is not known."""

    study: StepDependence
    truth: ObjectAttention | None
    fixed: FixedSets | None


def _answer_overlap(ax: Axes, found: Findings) -> None:
    draw_overlap(ax, found.study)


def _answer_sets(ax: Axes, found: Findings) -> None:
    """What steps say with each set; where nothing was replayed, the mass on sets by step stands in its place."""
    if found.fixed is not None and any(one.same_word is not None for one in found.fixed.sets.values()):
        draw_same_word(ax, found.fixed)
    else:
        draw_coverage(ax, found.study)


def _answer_objects(ax: Axes, found: Findings) -> None:
    if found.truth is None:
        draw_words(ax, found.study, 10)
    else:
        draw_object_share(ax, found.truth)


# The panels below the example, three in a row. One more panel of the figure is one more line here.
ANSWERS: list[Callable[[Axes, Findings], None]] = [
    _answer_overlap,
    _answer_sets,
    _answer_objects,
]


def headline(
    trace: Trace,
    sample: Sample,
    study: StepDependence,
    truth: ObjectAttention | None,
    fixed: FixedSets | None = None,
) -> Figure:
    """Make the page of the question: one trace's pictures and mass curve, and the answers over all samples."""
    steps = steps_to_show(trace, sample, study.layer)
    rows, height = -(-len(ANSWERS) // 3), figures.picture_height(picture_of(trace).shape, 1.05, 2.5)
    fig, (top, middle, bottom) = figures.new_page(DOUBLE, [height + 0.85, 2.5, 2.3 * rows])
    first = draw_example(top, trace, sample, study.layer, steps)[0]
    with figures.style():
        curve, grid = middle.subplots(), bottom.subplots(rows, 3, squeeze=False).ravel()
    draw_mass(curve, trace, study.layer, steps, study.text_below)
    answers = list(grid[: len(ANSWERS)])
    for ax, draw in zip(answers, ANSWERS, strict=True):
        draw(ax, Findings(study, truth, fixed))
    for ax in grid[len(ANSWERS) :]:
        ax.set_axis_off()
    for ax in answers:
        _legend(ax)
    return figures.finish(fig, [first, curve, *answers], "a, b: one trace.", marks="bars and bands")


def single(draw: Callable[..., Any], *args: Any, height: float = 2.2, **options: Any) -> Figure:
    """Draw one panel as a figure of its own, one column wide."""
    fig, ax = figures.new_figure(SINGLE, height)
    draw(ax, *args, **options)
    _legend(ax)
    figures.draw_caption(fig, marks="bars or bands")
    return fig


def _legend(ax: Axes) -> None:
    """Name what has a label; some panels have nothing to name."""
    if ax.get_legend_handles_labels()[1]:
        figures.draw_legend(ax)


def _level(ax: Axes, x: Sequence[int] | np.ndarray, value: float, label: str) -> None:
    figures.draw_line_band(ax, x, np.full(len(x), value), label=label, colour=GREY, dashed=True)
