"""Figures: ``draw_*(ax, arrays) -> ax`` in one style, and `save`, the only way to a file.

Arrays in, Axes out; nothing is computed here that is not drawing, and neither torch nor a model is needed.

>>> import numpy as np
>>> fig, ax = new_figure(SINGLE, 3.0)
>>> image = np.zeros((32, 48, 3), np.uint8)
>>> draw_overlay(ax, image, np.eye(4, 6), vmin=0, vmax=1) is ax
True
"""

from .curves import draw_line_band, draw_mass_curve, draw_step_curves
from .distributions import draw_histogram, draw_scatter
from .legend import draw_legend
from .matrices import draw_matrix
from .overlays import draw_blackout, draw_boxes, draw_kept, draw_overlay
from .plots import draw_curve, draw_estimates, draw_frontier, draw_interval
from .provenance import read_provenance
from .saving import save
from .scales import ATTENTION_UNIT, draw_colour_bar, scale_limits
from .strips import overlay_strip
from .style import DOUBLE, SINGLE, new_figure, new_page, style
from .tokens import draw_token_strip, step_title, token_label, token_strip_height

__all__ = [
    "ATTENTION_UNIT",
    "DOUBLE",
    "SINGLE",
    "draw_blackout",
    "draw_boxes",
    "draw_colour_bar",
    "draw_curve",
    "draw_estimates",
    "draw_frontier",
    "draw_histogram",
    "draw_interval",
    "draw_kept",
    "draw_legend",
    "draw_line_band",
    "draw_mass_curve",
    "draw_matrix",
    "draw_overlay",
    "draw_scatter",
    "draw_step_curves",
    "draw_token_strip",
    "new_figure",
    "new_page",
    "overlay_strip",
    "read_provenance",
    "save",
    "scale_limits",
    "step_title",
    "style",
    "token_label",
    "token_strip_height",
]
