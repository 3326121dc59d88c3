"""Bad input to the draw functions: one clear ValueError each, and nothing drawn."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from figure_gallery import HEAT, IMAGE, TOKENS

from visionpulse_analysis import figures
from visionpulse_analysis.figures import new_figure

LIMITS: dict[str, Any] = {"vmin": 0, "vmax": 1}
BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "image of floats": (lambda ax: figures.draw_overlay(ax, IMAGE / 255, HEAT, **LIMITS), "image has"),
    "image without colour": (lambda ax: figures.draw_overlay(ax, IMAGE[..., 0], HEAT, **LIMITS), "image has"),
    "empty image": (lambda ax: figures.draw_blackout(ax, IMAGE[:0], HEAT, 5), "image has"),
    "image with alpha, kept": (lambda ax: figures.draw_kept(ax, IMAGE[..., [0, 1, 2, 2]], HEAT > 0), "image has"),
    "patch vector": (lambda ax: figures.draw_overlay(ax, IMAGE, HEAT[0], **LIMITS), "grid.to_map"),
    "empty map": (lambda ax: figures.draw_blackout(ax, IMAGE, HEAT[:0], 50), "at least one patch"),
    "map of NaN": (lambda ax: figures.draw_blackout(ax, IMAGE, HEAT * np.nan, 50), "nothing but NaN"),
    "map of words": (lambda ax: figures.draw_blackout(ax, IMAGE, np.array([["a"]]), 50), "not an array"),
    "equal limits": (lambda ax: figures.draw_overlay(ax, IMAGE, HEAT, vmin=1, vmax=1), "vmin < vmax"),
    "NaN limit": (lambda ax: figures.draw_overlay(ax, IMAGE, HEAT, vmin=0, vmax=np.nan), "vmin < vmax"),
    "opacity": (lambda ax: figures.draw_overlay(ax, IMAGE, HEAT, **LIMITS, alpha=(0, 2)), "alpha"),
    "colour map": (lambda ax: figures.draw_overlay(ax, IMAGE, HEAT, **LIMITS, cmap="nope"), "cmap is 'nope'"),
    "percentile": (lambda ax: figures.draw_blackout(ax, IMAGE, HEAT, 101), "percentile is 101"),
    "percentile NaN": (lambda ax: figures.draw_blackout(ax, IMAGE, HEAT, np.nan), "percentile is nan"),
    "kept weights": (lambda ax: figures.draw_kept(ax, IMAGE, HEAT), "kept_map"),
    "box shape": (lambda ax: figures.draw_boxes(ax, np.zeros((2, 3))), r"\[n, 4\]"),
    "box turned": (lambda ax: figures.draw_boxes(ax, np.array([[5, 0, 1, 9]])), "no area"),
    "box labels": (lambda ax: figures.draw_boxes(ax, np.array([[0, 0, 1, 9]]), ["a", "b"]), "labels is 2"),
    "scale": (lambda ax: figures.scale_limits([HEAT], "relative"), "'relative'"),
    "scale of nothing": (lambda ax: figures.scale_limits([HEAT], 0), "scale is 0"),
    "no maps": (lambda ax: figures.scale_limits([], "absolute"), "no maps"),
    "negative map": (lambda ax: figures.scale_limits([-HEAT], "absolute"), "negative"),
    "strip titles": (lambda ax: figures.overlay_strip(None, IMAGE, [HEAT], ["a", "b"]), "titles is 2"),
    "strip of none": (lambda ax: figures.overlay_strip(None, IMAGE, [], []), "no maps"),
    "mass above 1": (lambda ax: figures.draw_mass_curve(ax, [0.1, 1.2], ["a", "b"]), "mass runs"),
    "no mass": (lambda ax: figures.draw_mass_curve(ax, [], []), "at least one value"),
    "mass NaN": (lambda ax: figures.draw_mass_curve(ax, [np.nan], ["a"]), "NaN"),
    "token count": (lambda ax: figures.draw_mass_curve(ax, [0.1, 0.2], ["a"]), "tokens is 1"),
    "tokens as text": (lambda ax: figures.draw_mass_curve(ax, [0.1, 0.2], "ab"), "the string 'ab'"),
    "marked step": (lambda ax: figures.draw_mass_curve(ax, [0.1], ["a"], marked_steps=[1]), "step 1"),
    "kind": (lambda ax: figures.draw_mass_curve(ax, [0.1], ["a"], kinds=["both"]), "'both'"),
    "half a band": (lambda ax: figures.draw_line_band(ax, [0], [1], low=[0]), "belong together"),
    "half-widths": (lambda ax: figures.draw_interval(ax, ["a"], [5], [1], [1]), "not distances"),
    "retention 0": (lambda ax: figures.draw_frontier(ax, {"a": ([0], [0], [0], [0])}), "retention of 'a'"),
    "no arms": (lambda ax: figures.draw_frontier(ax, {}), "0 arms"),
    "outside bins": (lambda ax: figures.draw_histogram(ax, [0, 9], [0, 1, 2], xlabel=""), "the bins only"),
    "matrix names": (
        lambda ax: figures.draw_matrix(ax, HEAT, ["a"], ["b"], **LIMITS, label=""),
        "xlabels is 1",
    ),
    "strip too low": (lambda ax: figures.draw_token_strip(ax, TOKENS * 30, [0.5] * 540, **LIMITS), "inches"),
    "legend of none": (lambda ax: figures.draw_legend(ax), "label"),
    "no size": (lambda ax: new_figure(0), "positive"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error_and_draws_nothing(case):
    call, message = BAD[case]
    _, ax = new_figure()
    before = len(ax.get_children())
    with pytest.raises(ValueError, match=message):
        call(ax)
    assert len(ax.get_children()) == before and ax.axison
