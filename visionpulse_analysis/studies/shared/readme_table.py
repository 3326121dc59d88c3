"""What the notebooks found, in the README and in ``docs/findings.md``, from the numbers inside their headline figures.

``python -m visionpulse_analysis.studies.shared.readme_table`` copies the headline figures into ``figures/readme`` and
rewrites both pages between their marks; a test compares them. A notebook ``NN_name.ipynb`` saves its headline figure
under its own name; its title is the question, and the answer is ``finding(numbers)`` of the `report` of the one folder
of `studies` that it imports.
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

from visionpulse_analysis.figures import read_provenance
from visionpulse_analysis.studies.shared.sentences import Finding

ROOT = Path(__file__).parents[3]
NOTEBOOKS = ROOT / "notebooks"
KEPT = ROOT / "figures" / "readme"
BEGIN, END = "<!-- findings", "<!-- end of findings -->"
STUDY = re.compile(r"^from (visionpulse_analysis\.studies\.(?!shared)\w+) import ", re.M)


def question_and_study(notebook: Path) -> tuple[str, str]:
    """The question that a notebook asks, and the module of the folder that answers it.

    Raises ValueError: it imports modules of no folder of `studies`, or of several.
    """
    cells = ["".join(cell["source"]) for cell in json.loads(notebook.read_text("utf-8"))["cells"]]
    studies = set(STUDY.findall("\n".join(cells)))
    if len(studies) != 1:
        raise ValueError(
            f"{notebook.name} imports modules of {len(studies)} folders of studies ({', '.join(sorted(studies))}); "
            "expected one, `from visionpulse_analysis.studies.FOLDER import report`: what it found is told there"
        )
    return cells[0].splitlines()[0].removeprefix("# "), studies.pop()


def found_by(notebook: Path, figures: Path = KEPT) -> Finding:
    """What a notebook found, from the numbers inside its headline figure in `figures`.

    Raises ValueError: as `question_and_study`; or the report of its folder has no ``finding``; FileNotFoundError: there
    is no such figure.
    """
    _, study = question_and_study(notebook)
    finding = getattr(import_module(f"{study}.report"), "finding", None)
    if finding is None:
        raise ValueError(f"{study}.report has no finding(numbers), which tells what {notebook.name} found")
    return finding(read_provenance(figures / f"{notebook.stem}.png")["numbers"])


def headlines(figures: Path = KEPT, notebooks: Path = NOTEBOOKS) -> str:
    """A row for each notebook, for the README: its figure, its question, and a sentence."""
    rows = ["| | |", "|---|---|"]
    for path in sorted(notebooks.glob("*.ipynb")):
        name, (question, _), found = path.stem, question_and_study(path), found_by(path, figures)
        picture = f'<img src="figures/readme/{name}.png" width="360" alt="{question}">'
        more = f"[more](docs/findings.md#{name}), [notebook](notebooks/{name}.ipynb)"
        rows.append(f"| {picture} | **{question}** {found.short} ({more}) |")
    return "\n".join(rows)


def sections(figures: Path = KEPT, notebooks: Path = NOTEBOOKS) -> str:
    """A section for each notebook, for ``docs/findings.md``: all that it found."""
    parts = []
    for path in sorted(notebooks.glob("*.ipynb")):
        name, (question, _), found = path.stem, question_and_study(path), found_by(path, figures)
        picture = f"[![{question}](../figures/readme/{name}.png)](../notebooks/{name}.ipynb)"
        parts.append(f"## {name}\n\n**{question}** {found.long}\n\n{picture}\n")
    return "\n".join(parts)


def between(page: str, begin: str, end: str, text: str) -> str:
    """A page with another text between the line of one mark and the other mark; ValueError where one is missing."""
    first, last = page.find(begin), page.find(end)
    if first < 0 or last < first:
        raise ValueError(f"the page has lost its marks {begin!r} and {end!r}; put them back")
    first_line = page[first:].split("\n", 1)[0]
    return f"{page[:first]}{first_line}\n{text}\n{page[last:]}"


def rewritten() -> dict[Path, str]:
    """Both pages as the kept figures want them."""
    parts = {ROOT / "README.md": headlines(), ROOT / "docs" / "findings.md": sections()}
    return {page: between(page.read_text(), BEGIN, END, text) for page, text in parts.items()}


def main(figures: Path = ROOT / "figures") -> None:
    """Keep the headline figures and rewrite both pages; a figure that is missing changes nothing."""
    drawn = {name: (figures / name).read_bytes() for name in (f"{path.stem}.png" for path in NOTEBOOKS.glob("*.ipynb"))}
    KEPT.mkdir(parents=True, exist_ok=True)
    for name, picture in drawn.items():
        (KEPT / name).write_bytes(picture)
    for page, text in rewritten().items():
        page.write_text(text)


if __name__ == "__main__":
    main()
