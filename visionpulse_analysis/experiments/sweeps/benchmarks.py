"""Benchmarks as VLMEvalKit keeps them: how each is asked and judged, and its table of questions and pictures.

A table is tab-separated, with the pictures inside in base64, gigabytes perhaps: it is read row by row, never as a
whole, and a worker reads the one row that its picture lies in. Every row asked for is checked before anything is
decoded, down to the kind and size of its pictures. The csv module would refuse pictures (cells above its limit, one for
the whole process), and tells no places.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from visionpulse_analysis.experiments.judging import LANGUAGE_MODEL, Reference, check_judge
from visionpulse_analysis.media.images import check_image_header, image_of_bytes

FIELDS = ("question", "options", "hint")


@dataclass(frozen=True)
class Stated:
    """Names of a prompt of `PROMPTS` and of a judge."""

    prompt: str
    judge: str


# As VLMEvalKit asks (`vlmeval/dataset`: image_vqa.py, image_mcq.py, charxiv.py), without the space at the end.
PROMPTS = {
    "question": "{question}",
    "short answer": "{question}\nAnswer the question using a single word or phrase.",
    "options": "Hint: {hint}\nQuestion: {question}\nOptions:\n{options}\n"
    "Please select the correct answer from the options above.",
}
BENCHMARKS = {
    "chartqa": Stated("short answer", "relaxed"),
    "infovqa": Stated("short answer", "anls"),
    "charxiv_reasoning": Stated("question", LANGUAGE_MODEL),
    "charxiv_descriptive": Stated("question", LANGUAGE_MODEL),
    "realworldqa": Stated("options", "choice"),
    "mmstar": Stated("options", "choice"),
}


def guess_benchmark(stem: str) -> str:
    """The benchmark that a file's name (without its ending) tells: "ChartQA_TEST" is chartqa.

    Raises ValueError where it tells none, or several.
    """
    parts = re.split("[^a-z0-9]+", stem.lower())
    found = [name for name in BENCHMARKS if set(name.split("_")) <= set(parts)]
    if len(found) != 1:
        several = f"could be {' or '.join(found)}" if found else f"names none of {', '.join(BENCHMARKS)}"
        raise ValueError(f"the file name {stem!r} {several}; say which with name:, or give prompt: and judge: too")
    return found[0]


def check_prompt(prompt: str) -> None:
    """Raise ValueError unless it is a name of `PROMPTS` or a text with {question} in it."""
    if prompt in PROMPTS:
        return
    try:
        found = [name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None]
    except ValueError as error:
        raise ValueError(f"prompt {prompt!r} is no template ({error}); a brace itself is written twice") from error
    if "question" not in found or set(found) - set(FIELDS):
        raise ValueError(
            f"prompt takes one of {', '.join(PROMPTS)}, or a text with {{question}} and perhaps {{options}} and "
            f"{{hint}}; got {prompt!r}"
        )


def ask(prompt: str, question: str, options: Mapping[str, str], hint: str | None) -> str:
    """A question as the model is given it.

    Parameters
    ----------
    prompt : a name of `PROMPTS`, whose lines about a hint or options are left out where there are none; or a template
    question : str
    options : mapping of letter -> text
    hint : str, optional
    """
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    template = PROMPTS.get(prompt, prompt)
    if prompt == "options":
        template = template if options else "Hint: {hint}\nQuestion: {question}"
        template = template if hint else template.removeprefix("Hint: {hint}\n")
    return template.format(question=question, options=listed, hint=hint or "").strip()


@dataclass(frozen=True)
class Benchmark:
    """Rows of a benchmark's table as VLMEvalKit keeps it (TSV), asked and judged as is stated of the benchmark."""

    path: str
    name: str = ""  # one of `BENCHMARKS`; guessed from the file's name where empty
    n: int | None = None  # the first rows only, of those with the ``split`` and ``category``, one or some
    split: str | list[str] | None = None
    category: str | list[str] | None = None
    prompt: str = ""  # a name of `PROMPTS` or a text with {question}
    judge: str = ""  # a name of `JUDGES` or "language model"; both as stated where empty

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        if self.prompt:
            check_prompt(self.prompt)
        if self.judge:
            check_judge(self.judge)
        own = bool(self.prompt and self.judge)
        if not own and self.name and self.name not in BENCHMARKS:
            raise ValueError(
                f"nothing is stated of a benchmark {self.name!r}; known: {', '.join(BENCHMARKS)}; of any other, give "
                "prompt: and judge:"
            )
        if not self.name:
            object.__setattr__(self, "name", Path(self.path).stem if own else guess_benchmark(Path(self.path).stem))

    @property
    def stated(self) -> Stated:
        """Prompt and judge in force."""
        known = BENCHMARKS.get(self.name, Stated(self.prompt, self.judge))
        return Stated(self.prompt or known.prompt, self.judge or known.judge)


LONGEST_INDEX = 64  # characters: a shorter cell of pictures is the index of the row whose pictures are meant


class TablePicture(NamedTuple):
    """Where a picture lies: a file, the bytes of a row in it, a column, and its number in a list of pictures.

    digest : SHA-256 of the picture's file.
    """

    path: str
    start: int
    size: int
    column: int
    number: int
    digest: str

    def read(self) -> np.ndarray:
        """Uint8 [row_px, col_px, 3]; ValueError where it cannot be read, or the table has changed."""
        name = f"picture {self.number} of the row at byte {self.start} of {self.path}"
        try:
            content = _pictures(read_row(Path(self.path), self.start, self.size)[self.column])[self.number]
        except (ValueError, IndexError) as error:
            raise ValueError(f"{name} is not there any more: the table has changed; run the sweep again") from error
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise ValueError(f"{name} is another one now: the table has changed; run the sweep again")
        return image_of_bytes(content, name)


@dataclass(frozen=True)
class Question:
    """One row: what is asked, about which pictures, and what is right. grading : what to ask a judging model."""

    index: str
    text: str
    category: str | None
    pictures: tuple[str | TablePicture, ...]
    reference: Reference
    grading: str | None


def read_benchmark(path: Path, asked: Benchmark) -> list[Question]:
    """The rows that are asked for, in the order of the table.

    Raises FileNotFoundError: there is no such table; ValueError: a column is missing, a row lacks something or its
    picture cannot be read, or no row is left; row (1 is the first after the header), column and what is expected are
    named.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no table of a benchmark at {path}")
    if path.suffix.lower() != ".tsv":
        raise ValueError(
            f"{path.name} is no .tsv; a benchmark is a table of VLMEvalKit, samples of one's own are table:"
        )
    reader = _Reader(path, asked)
    questions = reader.questions()
    if not questions:
        chosen = [f"{name} {getattr(asked, name)!r}" for name in ("split", "category") if getattr(asked, name)]
        raise ValueError(f"{path.name} holds no rows{' of ' if chosen else ''}{' and '.join(chosen)}")
    return questions


@dataclass
class _Row:
    number: int
    cells: dict[str, str]
    pictures: bytes
    start: int
    size: int


class _Reader:
    def __init__(self, path: Path, asked: Benchmark) -> None:
        self.path, self.asked = path, asked
        self.prompt, self.judge = asked.stated.prompt, asked.stated.judge
        self.places: dict[str, tuple[int, int]] = {}  # index -> where the row lies
        self.numbers: dict[str, int] = {}

    def questions(self) -> list[Question]:
        rows = read_rows(self.path)
        self._take_header(next(rows, None))
        chosen: list[Question | _Row] = []
        for number, row in enumerate(rows, 1):
            cells = self._cells(number, row.cells)
            index = self._index(number, cells)
            self.places[index] = row.start, row.size
            if self._is_asked(number, cells) and (self.asked.n is None or len(chosen) < self.asked.n):
                pictures = b"" if self.image is None else row.cells[self.image]
                found = _Row(number, cells, pictures, row.start, row.size)
                chosen.append(found if self._is_elsewhere(found) else self._question(found))
            if len(chosen) == self.asked.n and all(map(self._is_at_hand, chosen)):
                break
        return [self._question(one) if isinstance(one, _Row) else one for one in chosen]

    def _take_header(self, header: tuple[list[bytes], int, int] | None) -> None:
        if header is None:
            raise ValueError(f"{self.path.name} is empty")
        try:
            names = [name.decode("utf-8-sig" if place == 0 else "utf-8") for place, name in enumerate(header[0])]
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path.name}, header: not in UTF-8 ({error}); save it as UTF-8") from error
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{self.path.name}: the column {twice[0]!r} stands twice; keep one")
        needed = ["index", "question"]
        needed += ["answer"] if self.judge != LANGUAGE_MODEL else []
        needed += [name for name in ("split", "category") if getattr(self.asked, name)]
        for name in needed:
            if name not in names:
                raise ValueError(f"{self.path.name}: no column {name!r}; it has {', '.join(map(repr, names))}")
        if not {"image", "image_path"} & set(names):
            raise ValueError(
                f"{self.path.name}: no column 'image' (base64) or 'image_path'; it has {', '.join(map(repr, names))}"
            )
        self.names = names
        self.image = names.index("image") if "image" in names else None
        self.letters = [letter for letter in string.ascii_uppercase if letter in names]

    def _cells(self, number: int, found: list[bytes]) -> dict[str, str]:
        """The cells of a row but for its pictures, as text."""
        if len(found) != len(self.names):
            raise ValueError(f"{self._row(number)}: {len(found)} cells; expected {len(self.names)}, as in the header")
        cells = {}
        for place, (name, cell) in enumerate(zip(self.names, found, strict=True)):
            if place != self.image:
                try:
                    cells[name] = cell.decode().strip()
                except UnicodeDecodeError as error:
                    raise ValueError(f"{self._row(number, name)}: not in UTF-8 ({error}); save it as UTF-8") from error
        return cells

    def _index(self, number: int, cells: dict[str, str]) -> str:
        index = cells["index"]
        if not index:
            raise ValueError(f"{self._row(number, 'index')}: empty; expected a name of its own for every row")
        if index in self.numbers:
            raise ValueError(
                f"{self._row(number, 'index')}: {index!r} stands in row {self.numbers[index]} already; expected a name "
                "of its own for every row"
            )
        self.numbers[index] = number
        return index

    def _is_asked(self, number: int, cells: dict[str, str]) -> bool:
        for name in ("split", "category"):
            wanted = getattr(self.asked, name)
            if wanted and cells[name] not in ([wanted] if isinstance(wanted, str) else wanted):
                return False
        return True

    def _is_elsewhere(self, row: _Row) -> bool:
        return self.image is not None and 0 < len(row.pictures) <= LONGEST_INDEX

    def _is_at_hand(self, one: Question | _Row) -> bool:
        return isinstance(one, Question) or _index_meant(one.pictures) in self.places

    def _question(self, row: _Row) -> Question:
        cells = row.cells
        if not cells["question"]:
            raise ValueError(f"{self._row(row.number, 'question')}: empty; expected what to ask")
        options = {letter: cells[letter] for letter in self.letters if cells[letter]}
        text = ask(self.prompt, cells["question"], options, cells.get("hint"))
        return Question(
            index=cells["index"],
            text=text,
            category=cells.get("category") or None,
            pictures=self._files(row) if self.image is None else self._inside(row),
            reference=self._reference(row.number, cells, options),
            grading=cells.get("grading_query") or None,
        )

    def _reference(self, number: int, cells: dict[str, str], options: dict[str, str]) -> Reference:
        answer = cells.get("answer", "")
        if not answer and self.judge != LANGUAGE_MODEL:
            raise ValueError(
                f"{self._row(number, 'answer')}: empty; expected what is right (a table without answers, as of a test "
                f"set kept secret, is asked with judge: {LANGUAGE_MODEL})"
            )
        # Some rows of a table of choices have none to choose from: yes or no, a number.
        judge = "exact" if self.judge == "choice" and not options and not self.asked.judge else self.judge
        answers = (answer,) if judge == "choice" else tuple(_listed(answer)) if answer else ()
        try:
            return Reference(judge, answers, options)
        except ValueError as error:
            raise ValueError(f"{self._row(number, 'answer')}: {error}") from error

    def _inside(self, row: _Row) -> tuple[TablePicture, ...]:
        """Pictures in base64, in this row or in the one it names."""
        column, start, size, cell = self.names.index("image"), row.start, row.size, row.pictures
        where = self._row(row.number, "image")
        if self._is_elsewhere(row):
            meant = _index_meant(cell)
            if meant not in self.places:
                raise ValueError(
                    f"{where}: {meant!r} is neither a picture in base64 nor the index of a row that has it"
                )
            start, size = self.places[meant]
            cell = read_row(self.path, start, size)[column]
            if len(cell) <= LONGEST_INDEX:
                raise ValueError(f"{where}: the row of index {meant!r} has no picture of its own; name one that has it")
        try:
            contents = _pictures(cell)
            for place, content in enumerate(contents):
                check_image_header(content, f"picture {place}")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        digests = [hashlib.sha256(content).hexdigest() for content in contents]
        return tuple(
            TablePicture(str(self.path.resolve()), start, size, column, place, digest)
            for place, digest in enumerate(digests)
        )

    def _files(self, row: _Row) -> tuple[str, ...]:
        """Pictures in files, their paths counted from the table."""
        where, paths = self._row(row.number, "image_path"), _listed(row.cells["image_path"])
        if not all(paths):
            raise ValueError(f"{where}: empty; expected a path, or a list of paths")
        files = [self.path.parent / path for path in paths]
        for file in files:
            try:
                check_image_header(file.read_bytes(), str(file))
            except OSError as error:
                raise ValueError(f"{where}: no picture at {file} ({error.strerror})") from error
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        return tuple(str(file) for file in files)

    def _row(self, number: int, column: str = "") -> str:
        return f"{self.path.name}, row {number}{column and f', column {column!r}'}"


def _index_meant(cell: bytes) -> str:
    return cell.decode(errors="replace").strip()


def _listed(cell: str) -> list[str]:
    """A cell's texts: those of a list as Python writes it, or the cell itself."""
    if cell.startswith("[") and cell.endswith("]"):
        try:
            found = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [cell]  # "[Yes, No]" is a text in brackets
        if found and all(isinstance(one, str | int | float) for one in found):
            return [str(one) for one in found]
    return [cell]


def _pictures(cell: bytes) -> Sequence[bytes]:
    """The files of the pictures in a cell: one in base64, or a list of such as Python writes it."""
    cell = cell.strip()
    if not cell:
        raise ValueError("empty; expected a picture in base64, a list of such, or the index of a row that has it")
    try:
        texts = _listed(cell.decode("ascii"))
        return [base64.b64decode("".join(text.rpartition(",")[2].split()), validate=True) for text in texts]
    except ValueError as error:  # binascii's own, and that of the decoding, are ValueErrors
        raise ValueError(f"{cell[:20].decode(errors='replace')!r}... is no picture in base64 ({error})") from error


LARGEST_ROW = 1 << 30  # bytes: a quote that is never closed must not take the whole file into memory


class Row(NamedTuple):
    """cells : as in the file, without their quotes. start, size : where the row lies, in bytes."""

    cells: list[bytes]
    start: int
    size: int


def read_rows(path: Path) -> Iterator[Row]:
    """All rows, the header first; lines without anything are left out.

    Raises ValueError: a quote is never closed, text follows one, or a row is longer than a gibibyte; the row is named:
    1 is the first after the header.
    """
    with path.open("rb") as file:
        start, number = 0, 0
        while first := file.readline(LARGEST_ROW + 1):
            try:
                cells = _split(first, file)
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
        return _split(file.readline(size), file)


def _split(line: bytes, file: IO[bytes]) -> list[bytes]:
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
