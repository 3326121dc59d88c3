"""The page of the first notebook: one question, where the model looked while it answered, and how much."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.figures import DOUBLE
from visionpulse_analysis.figures.style import ACCENT
from visionpulse_analysis.studies.object_attention import named_objects
from visionpulse_analysis.studies.samples import Sample
from visionpulse_analysis.studies.step_dependence import masses_of
from visionpulse_analysis.studies.step_figures import cell_boxes, draw_example, draw_mass, steps_to_show
from visionpulse_analysis.traces import Trace


def quickstart_page(trace: Trace, sample: Sample, layer: int, *, text_below: float = 0.5) -> Figure:
    """Draw the image, the attention of six steps that name things, the trace shaded by image mass, and its curve.

    Objects that the shown steps name are outlined.
    """
    steps = steps_to_show(trace, sample, layer)
    mass = masses_of(trace, layer)
    height, width = trace.images[0].shape[:2]
    strip = figures.token_strip_height(trace.tokens, DOUBLE - 0.1)
    top_height = 2.9 * height / width + 0.75
    fig, (top, middle, bottom) = figures.new_page(DOUBLE, [top_height, strip + 0.32, 2.4])
    with figures.style():
        left, right = top.subfigures(1, 2, width_ratios=[1, 1.45], squeeze=False)[0]
        picture, words, curve = left.subplots(), middle.subplots(), bottom.subplots()
        answer = trace.answer or "none within the limit of tokens"
        picture.set_title(f"{trace.question}\nanswer: {answer}", parse_math=False)
        words.set_title("the trace, shaded by visual attention mass (white: 0, dark: 1)", loc="left")
    named = [index for index in named_objects(trace, sample) if index is not None]
    figures.draw_blackout(picture, trace.images[0], np.ones((1, 1)), 0)  # the bare image
    figures.draw_boxes(picture, cell_boxes(sample.scene, sorted(set(named))), colour=ACCENT)
    draw_example(right, trace, sample, layer, steps, columns=3)
    figures.draw_token_strip(words, trace.tokens, mass, vmin=0, vmax=1, marked_steps=steps)
    draw_mass(curve, trace, layer, steps, text_below)
    figures.draw_legend(curve)
    return fig
