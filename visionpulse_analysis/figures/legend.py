"""Legends that cannot cover data."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from .style import laid_out_points, style
from .tokens import label_width

_ENTRY = 27.0  # points an entry needs beside its label: the handle and the gaps


@style()
def draw_legend(axes: Axes | Sequence[Axes] | np.ndarray) -> None:
    """Put the legend above the Axes; call it after the last ``draw_*``.

    Parameters
    ----------
    axes : Axes, or several
        Of several Axes the figure gets one legend, in which a label that occurs more than once is named once.

    Raises
    ------
    ValueError
        If nothing on the Axes has a label.
    """
    several = [axes] if isinstance(axes, Axes) else list(np.asarray(axes, dtype=object).ravel())
    entries = {}
    for ax in several:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        raise ValueError("nothing on these Axes has a label: pass label=... to the draw_* functions first")
    labels, handles = list(entries), list(entries.values())
    if len(several) == 1:
        columns = _columns(labels, laid_out_points(several[0])[0])
        several[0].legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)
    else:
        figure = several[0].figure
        columns = _columns(labels, figure.get_window_extent().width / figure.get_dpi() * 72)
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def _columns(labels: list[str], width: float) -> int:
    """Columns of as few rows as fit, of about equal length; matplotlib fills one column after the other."""
    for columns in range(len(labels), 1, -1):
        split = np.array_split(np.asarray(labels, dtype=object), columns)
        if sum(max(label_width(label) for label in column) + _ENTRY for column in split) <= width:
            rows = -(-len(labels) // columns)
            return -(-len(labels) // rows)
    return 1
