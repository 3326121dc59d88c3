"""The tokens of a trace under an axis of steps."""

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes

from .style import ACCENT, GREY
from .tokens import label_width, token_label


def write_tokens(ax: Axes, tokens: Sequence[str], marked: list[int], slot: float) -> None:
    """Write tokens upright under the axis: in one row, or smaller in two staggered rows, or not all."""
    labels = [token_label(token, 12) for token in tokens]
    size, spacing, every, rows = 8.0, 8.6, 1, 1  # spacing: points from one upright label to the next
    if slot < spacing:
        size, spacing, rows = 6.5, 6.8, 2
        every = next(n for n in _round_numbers() if n * slot * rows >= spacing)
    if every == 1:
        placed = [list(range(start, len(labels), rows)) for start in range(rows)]
    else:
        placed = [[], []]
        for step in [*marked, *range(0, len(labels), every)]:  # marked steps come first, the others give way
            free = [row for row in placed if all(abs(step - other) * slot >= spacing for other in row)]
            if free and not any(step in row for row in placed):
                free[0].append(step)
    for minor, row in enumerate(placed):
        row.sort()
        ax.set_xticks(
            row,
            [labels[step] for step in row],
            minor=bool(minor),
            rotation=90,
            fontsize=size,
            parse_math=False,
        )
        for text, step in zip(ax.get_xticklabels(minor=bool(minor)), row, strict=True):
            if step in marked:
                text.set(color=ACCENT, fontweight="bold")
    ax.tick_params(axis="x", which="both", pad=1.5, color=GREY, length=2, width=0.4)
    if rows == 2:
        # The longer ticks of the second row lead past the labels of the first.
        depth = max(label_width(labels[step], size) for step in placed[0]) + 4.5
        ax.tick_params(axis="x", which="minor", length=depth)
    if every > 1:
        ax.set_xlabel(f"generated token (one in {every} of {len(labels):,} named)")


def _round_numbers() -> Iterator[int]:
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10
