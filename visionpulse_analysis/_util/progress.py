"""How far something long is, how fast it goes and how much longer it takes: one bar at a time, for people who look.

A bar is shown in a terminal and in a notebook that somebody sits at, after two seconds, and is gone when it is done.
Where standard error is a file or a pipe there is none unless one is asked for, as a sweep does, which then writes a
line every half minute; nor in notebooks that `visionpulse figures` runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from threading import current_thread, main_thread
from typing import Any, TypeVar

SWITCH = "VISIONPULSE_PROGRESS"  # 0: no bar anywhere; 1: also where nobody seems to look
DELAY = 2.0  # seconds: what is over before never shows a bar
EVERY = 0.1  # seconds between two drawings of it
IN_A_FILE = 30.0  # the same where it is written into a log
DRAWN_ANEW = ("trace",)  # a measurement is not disturbed by drawing
T = TypeVar("T")
R = TypeVar("R")
_open: list[tuple[Any, str]] = []  # the bar that is shown, and what it counts


def shown(asked: bool | None = None) -> bool:
    """Whether bars are shown: as `asked`, or as ``VISIONPULSE_PROGRESS`` says, or where somebody looks."""
    said = os.environ.get(SWITCH, "").strip().lower()
    if asked is not None or said:
        return said not in ("0", "no", "off", "false") if asked is None else asked
    return _looked_at()


def _looked_at() -> bool:
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


@contextmanager
def bar(total: int, what: str, counts: str, asked: bool | None = None, **options: Any) -> Iterator[None]:
    """Show a bar during the block, which `advance` moves; none inside a block that has one already.

    Parameters
    ----------
    total : int
    what : stands before the bar
    counts : the unit, by which `advance` knows whether it is meant
    asked : as in `shown`
    **options
        Of tqdm.
    """
    if _open or total < 1 or current_thread() is not main_thread() or not shown(asked):
        yield
        return
    from tqdm.auto import tqdm

    pause = EVERY if _looked_at() else IN_A_FILE
    given = {"delay": DELAY, "leave": False, "miniters": 0, "mininterval": pause, "dynamic_ncols": True, **options}
    with tqdm(total=total, desc=what, unit=counts, **given) as made:
        _open.append((made, counts))
        try:
            yield
        finally:
            _open.clear()


def advance(counts: str, by: int = 1, **beside: Any) -> None:
    """So many more of them are done, if that is what the bar counts; one of traces is drawn anew at other times too.

    What is given `beside` stands behind the bar.
    """
    for made, unit in _open:
        if beside:
            made.set_postfix(beside, refresh=False)
        if current_thread() is main_thread() and (unit == counts or unit in DRAWN_ANEW):
            made.update(by if unit == counts else 0)


@contextmanager
def above() -> Iterator[None]:
    """What is printed in the block stands above the bar that is shown."""
    shown = next(iter(_open), None)
    with nullcontext() if shown is None else shown[0].external_write_mode():
        yield


def over(function: Callable[[T], R], items: Iterable[T], what: str, counts: str, asked: bool | None = None) -> list[R]:
    """Call a function for each of some items under a bar of their number; the parameters are those of `bar`."""
    listed, made = list(items), []
    with bar(len(listed), what, counts, asked):
        for item in listed:
            made.append(function(item))
            advance(counts)
    return made
