"""What every figure of a study must be: nothing on anything else, all named, methods drawn as in the one table."""

from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from visionpulse_analysis.figures.methods import known_look
from visionpulse_analysis.figures.saving import _settle_layout

SMALLEST = 5.0  # points


def check_page(fig: Figure, *, letters: int | None = None) -> None:
    """Assert that a figure can be printed, and how many letters it has; several panels have at least two."""
    _settle_layout(fig)  # as `save` does
    fig.draw_without_rendering()
    panels = [ax for ax in fig.axes if ax.get_visible() and ax.get_label() != "<colorbar>"]
    drawn = [ax for ax in panels if ax.axison or ax.has_data() or ax.texts]
    named = sorted(text.get_text() for ax in panels for text in ax.texts if text.get_gid() == "letter")
    assert named == [chr(ord("a") + i) for i in range(len(named))], named
    assert len(named) == letters if letters is not None else (len(drawn) == 1 or len(named) > 1), named
    told = " ".join((fig.get_supxlabel() or "").split())
    assert "n = " in told or "over n " in told, f"the caption tells no n: {told!r}"
    _check_boxes(fig, panels)
    known = {label for legend in fig.findobj(Legend) for label in (text.get_text() for text in legend.get_texts())}
    for ax in panels:
        for line in ax.lines:
            if _is_reference(line):
                assert line.get_label() in known, f"a reference line of {ax.get_ylabel()!r} is not named: {line}"
            _check_method(line)


def _is_reference(line: Line2D) -> bool:
    """Whether a line runs across its axes, as axhline and axvline do."""
    ends = [np.asarray(of_axis).tolist() for of_axis in line.get_data()]
    return line.axes is not None and [0, 1] in ends and line.get_transform() != line.axes.transData


def _check_method(line: Line2D) -> None:
    for name in (line.get_label(), line.get_gid()):
        look = known_look(str(name)) if name is not None else None
        if look is None or _is_reference(line):
            continue
        assert line.get_color() == look.colour, (name, line.get_color())
        if line.get_marker() not in ("None", "", None):
            assert line.get_marker() == look.marker, (name, line.get_marker())


def _check_boxes(fig: Figure, panels: list[Axes]) -> None:
    """Nothing written overlaps, is cut off or too small."""
    boxes: list[tuple[str, Bbox]] = []

    def add(text: Text) -> None:
        if text.get_text().strip() and text.get_visible():
            assert float(text.get_fontsize()) >= SMALLEST, (text.get_text(), text.get_fontsize())
            boxes.append((text.get_text(), Text.get_window_extent(text)))

    for ax in panels:
        for title in (ax.title, ax._left_title, ax._right_title):
            add(title)
        for text in ax.texts:
            if text.get_gid() == "letter":
                add(text)
    for ax in fig.axes:
        if ax.get_visible() and ax.axison:
            add(ax.xaxis.label)
            add(ax.yaxis.label)
            for axis in (ax.xaxis, ax.yaxis):
                low, high = sorted(axis.get_view_interval())
                for tick in axis.get_major_ticks():
                    if low <= tick.get_loc() <= high:
                        for label in (tick.label1, tick.label2):
                            add(label)
    for legend in fig.findobj(Legend):
        boxes.append((f"legend {[text.get_text() for text in legend.get_texts()]}", legend.get_window_extent()))
    for text in (fig._suptitle, fig._supxlabel):
        if text is not None:
            add(text)
    for (one, a), (other, b) in combinations(boxes, 2):
        shared = Bbox.intersection(a, b)
        assert shared is None or min(shared.width, shared.height) < 1.5 * fig.dpi / 72, (one, other)
    page = fig.bbox
    for text, box in boxes:
        assert box.x0 > page.x0 - 2 and box.x1 < page.x1 + 2 and box.y0 > page.y0 - 2 and box.y1 < page.y1 + 2, text
