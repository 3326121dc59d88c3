"""Figures: ``draw_*(ax, arrays) -> ax`` in one style, and `save`, the only way to a file.

Arrays in, Axes out; nothing is computed here that is not drawing, and neither torch nor a model is needed.

>>> import numpy as np
>>> fig, ax = new_figure(SINGLE, 3.0)
>>> image = np.zeros((32, 48, 3), np.uint8)
>>> draw_overlay(ax, image, np.eye(4, 6), vmin=0, vmax=1) is ax
True
"""

from .curves import draw_mass_curve, draw_step_curves
from .methods import METHODS, Look, look
from .overlays import draw_blackout, draw_boxes, draw_clusters, draw_kept, draw_map_grid, draw_overlay, overlay_strip
from .page import (
    draw_caption,
    draw_legend,
    draw_letters,
    finish,
    new_figure,
    new_page,
    new_panels,
    note_estimates,
    picture_height,
)
from .plots import (
    draw_curve,
    draw_estimates,
    draw_frontier,
    draw_histogram,
    draw_interval,
    draw_line_band,
    draw_matrix,
    draw_reference,
    draw_scatter,
)
from .saving import read_provenance, save
from .scales import ATTENTION_UNIT, draw_colour_bar, scale_limits
from .style import DOUBLE, SINGLE, style
from .tokens import draw_token_strip, fit_text, step_title, token_label, token_strip_height

__all__ = [
    "ATTENTION_UNIT",
    "DOUBLE",
    "METHODS",
    "SINGLE",
    "Look",
    "draw_blackout",
    "draw_boxes",
    "draw_caption",
    "draw_clusters",
    "draw_colour_bar",
    "draw_curve",
    "draw_estimates",
    "draw_frontier",
    "draw_histogram",
    "draw_interval",
    "draw_kept",
    "draw_legend",
    "draw_letters",
    "draw_line_band",
    "draw_map_grid",
    "draw_mass_curve",
    "draw_matrix",
    "draw_overlay",
    "draw_reference",
    "draw_scatter",
    "draw_step_curves",
    "draw_token_strip",
    "finish",
    "fit_text",
    "look",
    "new_figure",
    "new_page",
    "new_panels",
    "note_estimates",
    "overlay_strip",
    "picture_height",
    "read_provenance",
    "save",
    "scale_limits",
    "step_title",
    "style",
    "token_label",
    "token_strip_height",
]
