"""Sizes, colours and the one style of all figures; importing this changes nothing in matplotlib."""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

FAMILY = "DejaVu Sans"  # ships with matplotlib
# Asked first, where they are there: made for running text, one weight beside the other.
PREFERRED = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "Source Han Sans SC"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "IPAexGothic", "NanumGothic", "Noto Sans Arabic", "Noto Sans Hebrew"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Noto Emoji", "Symbola", "Segoe UI Emoji", "Segoe UI Symbol"),
    *("Arial Unicode MS", "Droid Sans Fallback", "Unifont"),
)
MUTE = ("Glyph .* missing from", "Matplotlib currently does not support")
logger = logging.getLogger(__name__)
_families: dict[str, str | None] = {}  # by character, of those that DejaVu Sans lacks
_searched = 0  # how many fonts there were then


def is_drawn(character: str) -> bool:
    """Whether a font of this machine has a character."""
    return not character.isprintable() or character in _own() or bool(_found([character])[character])


def families_for(text: str) -> list[str]:
    """The families in which a text is drawn: DejaVu Sans, and others for what it lacks."""
    lacking = [letter for letter in dict.fromkeys(text) if letter.isprintable() and letter not in _own()]
    others = _found(lacking)
    return [FAMILY, *dict.fromkeys(family for letter in lacking if (family := others[letter]))]


@contextmanager
def with_fonts(figure: Figure) -> Iterator[None]:
    """Draw or measure a figure with a font for every character that the machine has one for.

    The others show as boxes, and one sentence says so, once.
    """
    lacking: dict[str, None] = {}
    for text in figure.findobj(Text):
        said = text.get_text()  # pyright: ignore[reportAttributeAccessIssue]
        if said.isascii():
            continue
        others = families_for(said)[1:]
        known = text.get_fontfamily()  # pyright: ignore[reportAttributeAccessIssue]
        if missing := [family for family in others if family not in known]:
            text.set_fontfamily([*known, *missing])  # pyright: ignore[reportAttributeAccessIssue]
        lacking |= dict.fromkeys(letter for letter in said if not is_drawn(letter))
    if lacking:
        _tell("".join(list(lacking)[:8]))
    with warnings.catch_warnings():
        for message in MUTE:
            warnings.filterwarnings("ignore", message)
        yield


@cache
def _told() -> list[str]:
    return []


def _tell(characters: str) -> None:
    if not _told():
        logger.warning(
            "no font of this machine has %s, so that figures show boxes there: install one that does (Noto Sans CJK "
            "for Chinese, Japanese and Korean, Noto Emoji for emoji)",
            characters,
        )
    _told().append(characters)


@cache
def _own() -> frozenset[str]:
    charmap = get_font(findfont(FontProperties(family=FAMILY))).get_charmap()
    return frozenset(chr(code) for code in charmap)


def _found(characters: Iterable[str]) -> dict[str, str | None]:
    """The family that has each character, None where none has it."""
    global _searched
    if _searched != len(fontManager.ttflist):
        _families.clear()  # a font was added since
        _searched = len(fontManager.ttflist)
    open_ones = {character for character in characters if character not in _families}
    for entry in _candidates() if open_ones else ():
        has = open_ones & _characters(entry.fname)
        _families.update(dict.fromkeys(has, entry.name))
        open_ones -= has
        if not open_ones:
            break
    _families.update(dict.fromkeys(open_ones, None))
    return _families


def _candidates() -> list[FontEntry]:
    """The upright fonts of the machine, those for running text first; not the one that has a box for everything."""
    rank = {family: place for place, family in enumerate(PREFERRED)}
    upright = [entry for entry in fontManager.ttflist if entry.style == "normal" and "Last Resort" not in entry.name]
    return sorted(
        upright,
        key=lambda entry: (rank.get(entry.name, len(rank)), "Sans" not in entry.name, str(entry.weight) != "400"),
    )


def _characters(path: str) -> frozenset[str]:
    try:
        font = get_font(path)
        # Pictures in fixed sizes, such as those of coloured emoji, cannot be drawn in another.
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):  # a broken file among the machine's fonts
        return frozenset()


SINGLE = 3.25  # inches: one column of a journal page
DOUBLE = 6.75  # inches: the full width of a journal page

HEAT_CMAP = "inferno"  # overlays: bright on a dimmed image
VALUE_CMAP = "cividis"  # matrices
TOKEN_CMAP = "Blues"  # behind words: light enough to read them
INK = "#262626"
GREY = "#8c8c8c"
LIGHT_GREY = "#d9d9d9"
ACCENT = "#D55E00"

_STYLE_FILE = Path(__file__).with_name("paper.mplstyle")


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of the figures inside a ``with`` block, or to a function as ``@style()``.

    The user's own matplotlib settings are put aside meanwhile and come back afterwards.
    """
    with matplotlib.style.context([str(_STYLE_FILE)], after_reset=True):
        yield


def lay_out(fig: Figure) -> None:
    """Make room for all labels that a figure has by now, as drawing it would, without drawing it."""
    if (engine := fig.get_layout_engine()) is not None:
        with with_fonts(fig):
            engine.execute(fig)


def laid_out_points(ax: Axes) -> tuple[float, float]:
    """Width and height of the Axes in points, with room made for the labels they have by now."""
    root = ax.get_figure(root=True)
    if root is not None:
        lay_out(root)
    return axes_points(ax)


def axes_points(ax: Axes) -> tuple[float, float]:
    """Width and height of the Axes in points (1/72 inch), before the layout makes room for labels."""
    # get_window_extent is in pixels of the root figure, also inside a SubFigure.
    box, dpi = ax.get_window_extent(), ax.figure.get_dpi() if ax.figure is not None else 72.0
    return box.width / dpi * 72, box.height / dpi * 72
