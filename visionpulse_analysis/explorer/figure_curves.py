"""The curves below a view: what each trace gave to the image, or to a region, over the aligned tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visionpulse_analysis.explorer.payload import first_of_answer


@dataclass(frozen=True)
class Curves:
    """What `visionpulse_analysis.figures.draw_step_curves` draws.

    Attributes
    ----------
    lines : dict of float [column]
        By name of the trace; NaN where it has no token.
    tokens : list of str [column]
    cursor : int
    label : str
    moments : dict of int
        Where the answer begins and where the traces part, as in the page.
    """

    lines: dict[str, np.ndarray]
    tokens: list[str]
    cursor: int
    label: str
    moments: dict[str, int]


def lay_out(
    traces: list, series: dict[str, np.ndarray], columns: list[tuple[int, ...]], cursor: int, label: str
) -> Curves:
    """Put the `series` [step] of each trace into the columns that the traces share."""
    lines = {
        name: np.array([values[column[t]] if column[t] >= 0 else np.nan for column in columns])
        for t, (name, values) in enumerate(series.items())
    }
    tokens = [next(traces[t].tokens[step] for t, step in enumerate(column) if step >= 0) for column in columns]
    moments = {}
    answer = first_of_answer(traces[0])
    if answer is not None:
        moments["answer"] = next(c for c, column in enumerate(columns) if column[0] == answer)
    parted = [c for c, column in enumerate(columns) if -1 in column]
    if parted:
        moments["diverges"] = parted[0]
    return Curves(lines, tokens, cursor, label, moments)


def region_name(region: tuple[int, int, int, int]) -> str:
    """Rows and columns in words, on two lines."""
    r0, c0, r1, c1 = region
    rows = f"row {r0}" if r0 == r1 else f"rows {r0} to {r1}"
    return f"{rows},\n" + (f"column {c0}" if c0 == c1 else f"columns {c0} to {c1}")
