"""Line up the tokens of two traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher


@dataclass(frozen=True)
class Alignment:
    """Two token sequences laid over one row of columns.

    Attributes
    ----------
    first, second : list of int
        The step of each sequence in each column, -1 for none; a column with both holds the same token.
    divergence : int or None
        The first column that only one sequence fills; None when the sequences are equal.
    """

    first: list[int]
    second: list[int]
    divergence: int | None


def align(first: Sequence, second: Sequence) -> Alignment:
    """Align two token sequences: the common beginning, then the longest matching runs.

    Only equal tokens share a column; of a replaced run, the first sequence's columns come first.

    Examples
    --------
    >>> align("abcd", "abxd")
    Alignment(first=[0, 1, 2, -1, 3], second=[0, 1, -1, 2, 3], divergence=2)
    """
    common = 0
    while common < min(len(first), len(second)) and first[common] == second[common]:
        common += 1
    columns = [(step, step) for step in range(common)]
    matcher = SequenceMatcher(None, first[common:], second[common:], autojunk=False)
    for tag, i0, i1, j0, j1 in matcher.get_opcodes():
        if tag == "equal":
            columns += [(common + i, common + j) for i, j in zip(range(i0, i1), range(j0, j1), strict=True)]
        else:
            columns += [(common + i, -1) for i in range(i0, i1)]
            columns += [(-1, common + j) for j in range(j0, j1)]
    return Alignment(
        first=[column[0] for column in columns],
        second=[column[1] for column in columns],
        divergence=common if common < len(columns) else None,
    )
