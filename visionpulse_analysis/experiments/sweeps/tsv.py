"""Rows of a tab-separated table of any size, one at a time, each with the place where it lies in the file.

The csv module would refuse pictures (cells above its limit, one for the whole process), and tells no places.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

LARGEST_ROW = 1 << 30  # bytes: a quote that is never closed must not take the whole file into memory


class Row(NamedTuple):
    """cells : as in the file, without their quotes. start, size : where the row lies, in bytes."""

    cells: list[bytes]
    start: int
    size: int


def read_rows(path: Path) -> Iterator[Row]:
    """All rows, the header first; lines without anything are left out.

    Raises
    ------
    ValueError
        A quote is never closed, text follows one, or a row is longer than a gibibyte; the row is named: 1 is the
        first after the header.
    """
    with path.open("rb") as file:
        start, number = 0, 0
        while first := file.readline(LARGEST_ROW + 1):
            try:
                cells = _cells(first, file)
            except ValueError as error:
                raise ValueError(f"{path.name}, {f'row {number}' if number else 'header'}: {error}") from error
            end = file.tell()
            if cells != [b""]:
                yield Row(cells, start, end - start)
                number += 1
            start = end


def read_row(path: Path, start: int, size: int) -> list[bytes]:
    """The cells of the row that lies there."""
    with path.open("rb") as file:
        file.seek(start)
        return _cells(file.readline(size), file)


def _cells(line: bytes, file: IO[bytes]) -> list[bytes]:
    """The cells of a row that begins with this line; quoted ones may hold tabs, line ends and doubled quotes."""
    if len(line) > LARGEST_ROW:
        raise ValueError("longer than a gibibyte; expected tab-separated rows, one line each")
    if b'"' not in line:
        return line.rstrip(b"\r\n").split(b"\t")
    cells, place = list[bytes](), 0
    while True:
        if line[place : place + 1] != b'"':
            end = line.find(b"\t", place)
            if end < 0:
                return [*cells, line[place:].rstrip(b"\r\n")]
            cells.append(line[place:end])
            place = end + 1
            continue
        closing = _closing(line, place + 1)
        while closing < 0:
            more = file.readline(LARGEST_ROW + 1 - len(line))
            if not more:
                raise ValueError("a quote is never closed; expected one at the end of the cell, those inside doubled")
            line += more
            if len(line) > LARGEST_ROW:
                raise ValueError("longer than a gibibyte; is a quote never closed ?")
            closing = _closing(line, place + 1)
        cells.append(line[place + 1 : closing].replace(b'""', b'"'))
        rest = line[closing + 1 :]
        if not rest.strip(b"\r\n"):
            return cells
        if rest[:1] != b"\t":
            raise ValueError(f"text follows a closing quote ({rest[:20]!r}); expected a tab, or the quotes doubled")
        place = closing + 2


def _closing(line: bytes, place: int) -> int:
    """Where the quote is that ends a cell; -1 where it is not in this line."""
    while (found := line.find(b'"', place)) >= 0 and line[found + 1 : found + 2] == b'"':
        place = found + 2
    return found
