"""The pages of the first notebook: one question, where the model looked and how much; and the frames of a video."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.experiments.stored_traces import picture_of
from visionpulse_analysis.figures import DOUBLE
from visionpulse_analysis.figures.style import ACCENT
from visionpulse_analysis.studies.step_dependence.figures import cell_boxes, draw_example, draw_mass, steps_to_show
from visionpulse_analysis.studies.step_dependence.measure import masses_of, rows_of
from visionpulse_analysis.studies.step_dependence.object_attention import named_objects
from visionpulse_analysis.traces import Trace, frame_labels, frame_pictures

PERCENTILES = (50, 90)  # of the paper's activation pictures
ROWS = 10  # of the tokens of a long trace


def strongest_step(trace: Trace, sample: Sample, layer: int) -> int:
    """The step with the most image mass, of those that name an object where that is known."""
    mass, named = masses_of(trace, layer), named_objects(trace, sample)
    naming = [step for step, index in enumerate(named) if index is not None] or range(len(trace))
    return max(naming, key=lambda step: mass[step])


def step_page(trace: Trace, sample: Sample, layer: int, step: int) -> Figure:
    """Draw one step twice: as a heat map, and with all but the most attended half and tenth of the patches black."""
    image = picture_of(trace)
    fig, (band,) = figures.new_page(DOUBLE, [figures.picture_height(image.shape, DOUBLE / 3, 4) + 0.9])
    with figures.style():
        left, right = band.subfigures(1, 2, width_ratios=[1, 2], squeeze=False)[0]
        panels = right.subplots(1, len(PERCENTILES))
    first = draw_example(left, trace, sample, layer, [step], columns=1)
    heat_map = trace.grid.to_map(rows_of(trace, layer)[[step]])[0]
    for ax, percentile in zip(panels, PERCENTILES, strict=True):
        figures.draw_blackout(ax, image, heat_map, percentile)
        with figures.style():
            ax.set_title(f"the {100 - percentile} % of the patches\nmost attended to")
        ax.set_anchor("N")  # level with the picture beside it
    return figures.finish(fig, [*first, *panels], _about(trace, layer))


def questions_page(traces: Sequence[Trace], samples: Sequence[Sample], layer: int) -> Figure:
    """Draw the attention of some steps under several questions, a row each with the question above, on one scale."""
    shown = [steps_to_show(trace, sample, layer) for trace, sample in zip(traces, samples, strict=True)]
    largest = max(float(rows_of(trace, layer)[steps].max()) for trace, steps in zip(traces, shown, strict=True))
    shown_heights = [figures.picture_height(picture_of(trace).shape, 1.1, 2.5) for trace in traces]
    fig, bands = figures.new_page(DOUBLE, [height + 1.2 for height in shown_heights])
    panels = []
    for band, trace, sample, steps in zip(bands, traces, samples, shown, strict=True):
        panels.append(draw_example(band, trace, sample, layer, steps, scale=largest or 1.0))
        question = figures.fit_text(trace.question, 72 * DOUBLE - 40, size=9, most_lines=2)
        band.suptitle(question, fontsize=9, parse_math=False)
    return figures.finish(fig, panels, f"n = {len(traces)} traces of one picture, attention in layer {layer}.")


def _about(trace: Trace, layer: int) -> str:
    said = f"n = 1 trace of {len(trace):,} steps, attention in layer {layer}. "
    return said + trace.meta.get("unlike_training", "")


def quickstart_page(trace: Trace, sample: Sample, layer: int, *, text_below: float = 0.5) -> Figure:
    """Draw the image, the attention of six steps that name things, the trace shaded by image mass, and its curve.

    Objects that the shown steps name are outlined.
    """
    steps = steps_to_show(trace, sample, layer)
    mass = masses_of(trace, layer)
    shape, half = picture_of(trace).shape, DOUBLE / 2.45  # inches for the picture
    answer = trace.answer or ("none" if trace.meta.get("finished") else "none within the limit of tokens")
    asked, answered = (
        figures.fit_text(text, 72 * half - 26, most_lines=3) for text in (trace.question, f"answer: {answer}")
    )
    title = f"{asked}\n{answered}"
    strip = figures.token_strip_height(trace.tokens, DOUBLE - 0.1, steps, ROWS)
    top_height = max(
        figures.picture_height(shape, half, 4.5) + 0.14 * title.count("\n") + 0.3,
        2 * (figures.picture_height(shape, 1.2, 1.9) + 0.42) + 0.6,
    )
    fig, (top, middle, bottom) = figures.new_page(DOUBLE, [top_height, strip + 0.32, 2.4])
    with figures.style():
        left, right = top.subfigures(1, 2, width_ratios=[1, 1.45], squeeze=False)[0]
        picture, words, curve = left.subplots(), middle.subplots(), bottom.subplots()
        picture.set_title(title, parse_math=False)
        words.set_title("the trace, shaded by visual attention mass (white: 0, dark: 1)", loc="left")
    named = [index for index in named_objects(trace, sample) if index is not None]
    figures.draw_blackout(picture, picture_of(trace), np.ones((1, 1)), 0)  # the bare image
    figures.draw_boxes(picture, cell_boxes(sample.scene, sorted(set(named))), colour=ACCENT)
    examples = draw_example(right, trace, sample, layer, steps, columns=3)
    figures.draw_token_strip(words, trace.tokens, mass, vmin=0, vmax=1, marked_steps=steps, most_rows=ROWS)
    draw_mass(curve, trace, layer, steps, text_below)
    return figures.finish(fig, [picture, examples, words, curve], _about(trace, layer))


def draw_film_strip(trace: Trace, step: int, layer: int | None = None, *, columns: int = 6) -> Figure:
    """Draw every frame of a trace with its share of one step's attention, in one colour scale.

    Frames that the model merges are one panel, over the first of them; the images beside a video are panels too. Raises
    IndexError: the step or layer was not recorded; ValueError: the trace does not hold its pictures.

    Parameters
    ----------
    trace : Trace
    step : int
    layer : model index of a recorded layer; may be left out when only one was recorded. Heads are averaged.
    columns : most panels in one row

    Returns
    -------
    Figure
    """
    pictures, note = frame_pictures(trace)
    if note is not None:
        raise ValueError(note)
    row = trace.at(step, layer)
    lines = np.asarray(trace.grid.frames)[:, :2].tolist()
    maps = [trace.grid.to_map(row, image, frame) for image, frame in lines]
    found = [picture for picture in pictures if picture is not None]
    titles = [label.replace(", ", "\n") for label in frame_labels(trace)]
    axes = figures.overlay_strip(None, found, maps, titles, columns=columns)
    return axes[0].get_figure(root=True)  # pyright: ignore[reportReturnType]
