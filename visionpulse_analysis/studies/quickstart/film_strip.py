"""The frames of a video under the attention of one step."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.traces import Trace, frame_labels, frame_pictures


def draw_film_strip(trace: Trace, step: int, layer: int | None = None, *, columns: int = 6) -> Figure:
    """Draw every frame of a trace with its share of one step's attention, in one colour scale.

    Frames that the model merges are one panel, over the first of them; the images beside a video are panels too.

    Parameters
    ----------
    trace : Trace
    step : int
    layer : int, optional
        Model index of a recorded layer; may be left out when only one was recorded. Heads are averaged.
    columns : int
        Most panels in one row.

    Returns
    -------
    Figure

    Raises
    ------
    IndexError
        The step or layer was not recorded.
    ValueError
        The trace does not hold its pictures.
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
