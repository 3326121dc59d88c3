"""Tokens as labels, and a strip of tokens shaded by a value."""

from collections.abc import Collection, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from .checks import check_count, check_limits, check_vector
from .fonts import families_for, is_drawn
from .style import ACCENT, INK, LIGHT_GREY, TOKEN_CMAP, laid_out_points, style

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
    places = _lay_out(tokens, width)
    needed = (places[-1][1] + 1) * _LINE
    if needed > height + 0.01:
        ax.set_axis_on()
        raise ValueError(
            f"{len(tokens)} tokens need {needed / 72:.2f} inches of height, the Axes have {height / 72:.2f}; "
            "make the figure as high as token_strip_height(tokens, width) says, or draw fewer tokens"
        )
    colours = matplotlib.colormaps[cmap](np.clip((values - vmin) / (vmax - vmin), 0, 1))
    for step, (label, (x, row)) in enumerate(zip(map(token_label, tokens), places, strict=True)):
        marked = step in marked_steps
        # Offsets in points from the corner: the spacing stays right whatever the layout does to the Axes.
        ax.annotate(
            label,
            xy=(0, 1),
            xycoords="axes fraction",
            xytext=(x + 2, -(row + 0.75) * _LINE),
            textcoords="offset points",
            color=text_colour(colours[step]),
            parse_math=False,
            bbox={
                "boxstyle": "square,pad=0.2",
                "facecolor": tuple(colours[step]),
                "edgecolor": ACCENT if marked else LIGHT_GREY,
                "linewidth": 1.6 if marked else 0.3,
            },
        )
    return ax


def token_strip_height(tokens: Sequence[str], width: float) -> float:
    """Return the height of a figure that holds nothing but the token strip.

    Parameters
    ----------
    tokens : sequence of str, [step]
    width : float
        Inches, more than 0.5.

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
    rows = _lay_out(tokens, (width - pads) * 72)[-1][1] + 1
    return rows * _LINE / 72 + pads


def check_steps(steps: Collection[int], count: int) -> None:
    """Raise ValueError if one of the steps is not in 0 .. count - 1."""
    wrong = [step for step in steps if not 0 <= step < count]
    if wrong:
        raise ValueError(f"step {wrong[0]} is marked, but the trace has steps 0 to {count - 1}")


def text_colour(background: np.ndarray) -> str:
    """Return black or white, whichever is easier to read on an RGB(A) background with values from 0 to 1."""
    linear = np.asarray(background)[:3] ** 2.2
    return INK if linear @ [0.2126, 0.7152, 0.0722] > 0.2 else "white"


def label_width(label: str, size: float = 8) -> float:
    """Width in points of a label in the font of the figures."""
    font = FontProperties(family=families_for(label), size=size)
    width, _, _ = text_to_path.get_text_width_height_descent(label, font, False)
    return width


def _lay_out(tokens: Sequence[str], width: float) -> list[tuple[float, int]]:
    places: list[tuple[float, int]] = []
    x, row = 0.0, 0
    for token in tokens:
        needed = label_width(token_label(token)) + _GAP
        if x > 0 and x + needed > width:
            x, row = 0.0, row + 1
        places.append((x, row))
        x += needed
    return places
