"""Tokens as labels, under an axis of steps, and as running text shaded by a value; text that fits a width."""

from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from .scales import check_count, check_limits, check_vector
from .style import ACCENT, GREY, INK, LIGHT_GREY, TOKEN_CMAP, families_for, is_drawn, laid_out_points, style

_LINE = 13.5  # points from one row of tokens to the next
_GAP = 5.0  # points between two tokens of a row


def token_label(token: str, longest: int = 14) -> str:
    """Return a token as it can be printed in a figure.

    Spaces around it are dropped; a token of nothing but space shows as ``␣``, a line break as ``⏎``, a tab as
    ``⇥``, a character that no font of the machine has as ``□``; a longer one ends in ``…``.

    Parameters
    ----------
    token : str
    longest : int
        Most characters shown, at least 2.

    Returns
    -------
    str

    Examples
    --------
    >>> token_label(" circle"), token_label("\\n\\n"), token_label(" "), token_label("a" * 30, 5)
    ('circle', '⏎⏎', '␣', 'aaaa…')
    """
    text = token.strip(" ") or "␣" * min(len(token), 1)
    text = text.replace("\n", "⏎").replace("\t", "⇥")
    text = "".join(letter if letter.isprintable() and is_drawn(letter) else "□" for letter in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def step_title(step: int, token: str) -> str:
    """Return the title of one step's panel: its number, and under it the token.

    Parameters
    ----------
    step : int
    token : str
        Printed as by `token_label`.

    Returns
    -------
    str
    """
    return f"step {step}\n{token_label(token)}"


@style()
def draw_token_strip(
    ax: Axes,
    tokens: Sequence[str],
    values: Sequence[float] | np.ndarray,
    *,
    vmin: float,
    vmax: float,
    cmap: str = TOKEN_CMAP,
    marked_steps: Collection[int] = (),
    most_rows: int | None = None,
) -> Axes:
    """Write the tokens of a trace as running text, each on a background that shows its value.

    Parameters
    ----------
    ax : Axes
        Its frame is removed. `token_strip_height` says how high it must be.
    tokens : sequence of str, [step]
    values : float [step]
        For example the visual attention mass.
    vmin, vmax : float
        Values drawn in the first and last colour of `cmap`.
    cmap : str
        Name of a colour map; `draw_colour_bar` explains it.
    marked_steps : collection of int
        Steps outlined, for example the first that differs between two traces.
    most_rows : int, optional
        Of a trace that needs more rows, only the beginning, the end and what is around marked steps is written, with
        how many tokens are left out between.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On values that are not one finite number per token, limits out of order, a marked step that does not
        exist, or Axes too low for the text.
    """
    check_limits(vmin, vmax)
    values = check_vector(values, "values")
    check_count(tokens, "tokens", len(values))
    check_steps(marked_steps, len(values))
    ax.set_axis_off()
    width, height = laid_out_points(ax)
    pieces = _pieces(tokens, width, marked_steps, most_rows)
    places = _lay_out(pieces, width)
    needed = (places[-1][1] + 1) * _LINE
    if needed > height + 0.01:
        ax.set_axis_on()
        raise ValueError(
            f"{len(tokens)} tokens need {needed / 72:.2f} inches of height, the Axes have {height / 72:.2f}; "
            "make the figure as high as token_strip_height(tokens, width) says, or draw fewer tokens"
        )
    colours = matplotlib.colormaps[cmap](np.clip((values - vmin) / (vmax - vmin), 0, 1))
    for (label, step), (x, row) in zip(pieces, places, strict=True):
        marked = step in marked_steps
        ground = {"facecolor": "none", "linewidth": 0} if step is None else {"facecolor": tuple(colours[step])}
        if step is not None:
            ground |= {"edgecolor": ACCENT if marked else LIGHT_GREY, "linewidth": 1.6 if marked else 0.3}
        # Offsets in points from the corner: the spacing stays right whatever the layout does to the Axes.
        ax.annotate(
            label,
            xy=(0, 1),
            xycoords="axes fraction",
            xytext=(x + 2, -(row + 0.75) * _LINE),
            textcoords="offset points",
            color=GREY if step is None else text_colour(colours[step]),
            parse_math=False,
            bbox={"boxstyle": "square,pad=0.2", **ground},
        )
    return ax


def token_strip_height(
    tokens: Sequence[str], width: float, marked_steps: Collection[int] = (), most_rows: int | None = None
) -> float:
    """Return the height of a figure that holds nothing but the token strip.

    Parameters
    ----------
    tokens : sequence of str, [step]
    width : float
        Inches, more than 0.5.
    marked_steps, most_rows
        As `draw_token_strip` gets them.

    Returns
    -------
    float
        Inches.

    Raises
    ------
    ValueError
        If there are no tokens, or the width is too small.
    """
    if isinstance(tokens, str) or len(tokens) == 0 or not width > 0.5:
        raise ValueError(f"tokens {tokens!r} at width {width}: expected a list of tokens and half an inch or more")
    pads = 2 * 0.04  # inches, from the style
    points = (width - pads) * 72
    rows = _lay_out(_pieces(tokens, points, marked_steps, most_rows), points)[-1][1] + 1
    return rows * _LINE / 72 + pads


def fit_text(text: str, width: float, *, size: float = 8, most_lines: int | None = None) -> str:
    """Break a text of any length into lines of so many points, and cut it with an ellipsis after so many lines.

    Space and line breaks of the text become single spaces; a word longer than a line, as in languages without spaces,
    is broken anywhere.

    Parameters
    ----------
    text : str
    width : float
        Points, 1/72 inch.
    size : float
        Of the letters, in points.
    most_lines : int, optional
        At least 1; by default as many as it takes.

    Returns
    -------
    str

    Examples
    --------
    >>> fit_text("a question\\n\\nof the user", 60, most_lines=2)
    'a question of\\nthe user'
    """
    lines = [""]
    for word in text.split():
        if most_lines is not None and len(lines) > most_lines:
            break
        for part in _parts(token_label(word, len(word) + 1), width, size):
            longer = f"{lines[-1]} {part}".strip()
            if label_width(longer, size) <= width:
                lines[-1] = longer
            else:
                lines.append(part)
    if most_lines is not None and len(lines) > most_lines:
        last = lines[most_lines - 1]
        while last and label_width(last + "…", size) > width:
            last = last[:-1]
        lines = [*lines[: most_lines - 1], last + "…"]
    return "\n".join(lines)


def _parts(word: str, width: float, size: float) -> Iterator[str]:
    """A word in parts that each fit a line."""
    while label_width(word, size) > width and len(word) > 1:
        longest = min(len(word) - 1, int(4 * width / size))  # no letter is narrower than a quarter of its size
        end = next((n for n in range(longest, 1, -1) if label_width(word[:n], size) <= width), 1)
        yield word[:end]
        word = word[end:]
    yield word


def check_steps(steps: Collection[int], count: int) -> None:
    """Raise ValueError if one of the steps is not in 0 .. count - 1."""
    wrong = [step for step in steps if not 0 <= step < count]
    if wrong:
        raise ValueError(f"step {wrong[0]} is marked, but the trace has steps 0 to {count - 1}")


def text_colour(background: np.ndarray) -> str:
    """Return black or white, whichever is easier to read on an RGB(A) background with values from 0 to 1."""
    linear = np.asarray(background)[:3] ** 2.2
    return INK if linear @ [0.2126, 0.7152, 0.0722] > 0.2 else "white"


@lru_cache(maxsize=20_000)
def label_width(label: str, size: float = 8) -> float:
    """Width in points of a label in the font of the figures."""
    font = FontProperties(family=families_for(label), size=size)
    width, _, _ = text_to_path.get_text_width_height_descent(label, font, False)
    return width


Piece = tuple[str, int | None]  # what is written, and its step; None for a note on what is left out


def _pieces(tokens: Sequence[str], width: float, marked: Collection[int], most_rows: int | None) -> list[Piece]:
    """What a strip writes: every token, or of too many those near the ends and near marked steps, as many as fit."""

    def near(reach: int) -> list[Piece]:
        centres = np.array([0, len(tokens) - 1, *marked])
        shown = np.abs(np.arange(len(tokens))[:, None] - centres).min(axis=1) <= reach
        pieces: list[Piece] = []
        for step, token in enumerate(tokens):
            if shown[step]:
                pieces.append((token_label(token), step))
            elif step == 0 or shown[step - 1]:
                left_out = int(np.argmax(shown[step:]))
                pieces.append((f"… {left_out:,} token{'s' * (left_out > 1)} …", None))
        return pieces

    least, most = 0, len(tokens)
    while most_rows is not None and least < most:
        reach = (least + most + 1) // 2
        if _lay_out(near(reach), width)[-1][1] < most_rows:
            least = reach
        else:
            most = reach - 1
    return near(most)


def _lay_out(pieces: Sequence[Piece], width: float) -> list[tuple[float, int]]:
    places: list[tuple[float, int]] = []
    x, row = 0.0, 0
    for label, _ in pieces:
        needed = label_width(label) + _GAP
        if x > 0 and x + needed > width:
            x, row = 0.0, row + 1
        places.append((x, row))
        x += needed
    return places


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
