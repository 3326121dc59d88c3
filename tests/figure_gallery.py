"""Known arrays, and one figure of each kind, for the tests of figures."""

from collections.abc import Callable
from typing import Any

import numpy as np

from visionpulse_analysis import figures
from visionpulse_analysis.figures import DOUBLE, SINGLE, new_figure

IMAGE = np.full((30, 100, 3), 200, np.uint8)  # with 3 x 5 patches a patch is 10 px high and 20 px wide
HEAT = np.random.default_rng(0).permutation(15).reshape(3, 5) / 100
TOKENS = "<think> look for the red circle . see blue cross r2 c5 , no . </think> r0 c2".split()

STEPS, HALF = np.arange(18), np.full(18, 0.5)
LOW, MIDDLE, HIGH = [0.1, 0.2, 0.3], [0.2, 0.3, 0.4], [0.3, 0.4, 0.5]


def panel(draw: Callable, *args: Any, width=SINGLE, height=2.4, legend=False, **kwargs: Any) -> Any:
    """Draw on new Axes and return their figure."""
    fig, ax = new_figure(width, height)
    draw(ax, *args, **kwargs)
    if legend:
        figures.draw_legend(ax)
    return fig


def overlay() -> Any:
    fig = panel(figures.draw_overlay, IMAGE, HEAT, vmin=0, vmax=0.2)
    figures.draw_boxes(fig.axes[0], np.array([[0, 0, 20, 10], [80, 20, 100, 30]]), ["a", "red circle"])
    figures.draw_colour_bar(fig.axes[0], vmin=0, vmax=0.2, location="bottom")
    return fig


def mass() -> Any:
    kinds = ["visual"] * 9 + ["text"] * 9
    curve = np.linspace(1, 0, 18)
    return panel(figures.draw_mass_curve, curve, TOKENS, marked_steps=[0, 6], kinds=kinds, legend=True, width=DOUBLE)


def strip() -> Any:
    return figures.overlay_strip(None, IMAGE, [HEAT] * 5, ["step 1\ncircle"] * 5, columns=3)[0].figure


def page() -> Any:
    fig, (top, bottom) = figures.new_page(DOUBLE, [2, 2])
    with figures.style():
        figures.draw_mass_curve(top.subplots(), HALF, TOKENS, marked_steps=[1, 2])
    figures.overlay_strip(bottom, IMAGE, [HEAT] * 3, ["a", "b", "c"], scale="per_step")
    return fig


def interval() -> Any:
    names = ["threshold 0.0005", "1/n", "three"]
    null = {"null_low": [0, 0, 0], "null_high": LOW}
    return panel(figures.draw_interval, names, MIDDLE, LOW, HIGH, reference=0, **null, legend=True)


def frontier() -> Any:
    arm = ([0.05, 0.1, 1], MIDDLE, LOW, HIGH)
    fig, axes = new_figure(DOUBLE, 2.4, 1, 2)
    for ax in axes:
        figures.draw_frontier(ax, {"VisionPulse": arm, "random": arm}, dense=0.5)
    figures.draw_legend(axes)
    return fig


def matrix() -> Any:
    layers = [str(layer) for layer in range(36)]
    return panel(figures.draw_matrix, np.eye(36), layers, layers, vmin=0, vmax=1, label="cosine")


def tokens() -> Any:
    height = figures.token_strip_height(TOKENS, SINGLE)
    return panel(figures.draw_token_strip, TOKENS, HALF, vmin=0, vmax=1, marked_steps=[3], height=height)


GALLERY: dict[str, Callable[[], Any]] = {
    "overlay": overlay,
    "blackout": lambda: panel(figures.draw_blackout, IMAGE, HEAT, 50),
    "maps": lambda: panel(figures.draw_map_grid, [[HEAT, HEAT**2, HEAT]] * 2, [3, 8], [0, 1, 5]),
    "kept": lambda: panel(figures.draw_kept, IMAGE, HEAT > 0.05),
    "mass": mass,
    "strip": strip,
    "page": page,
    "band": lambda: panel(figures.draw_line_band, STEPS, HALF, HALF - 0.1, HALF + 0.2, "a line", legend=True),
    "interval": interval,
    "frontier": frontier,
    "histogram": lambda: panel(
        figures.draw_histogram, {"dense": HALF, "pruned": STEPS / 18}, 5, xlabel="x", legend=True
    ),
    "scatter": lambda: panel(figures.draw_scatter, np.linspace(0, 1, 600), np.ones(600), xlabel="x", ylabel="y"),
    "matrix": matrix,
    "tokens": tokens,
}
