"""The site of ``make docs``: the pages of the repository, executed notebooks, a gallery of figures, the API.

``python docs/build.py [--fast]`` runs what was not run yet, or has changed since, lays everything out in ``build/docs``
as it lies in the repository, so that links are the same in both, and has Sphinx write ``build/site/index.html``.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

import visionpulse_analysis as vpa
from visionpulse_analysis.cli.notebooks import run as notebooks
from visionpulse_analysis.figures import read_provenance
from visionpulse_analysis.figures.saving import command_for

ROOT = Path(__file__).resolve().parents[1]
LAID_OUT, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "data/README.md", "tests/README.md")
# What the reader finds first; a page that is in no list follows under "More".
PAGES = {
    "Start": ["docs/own-model", "docs/python", "docs/commands", "docs/read-a-trace", "docs/from-the-authors"],
    "Do": [
        "docs/benchmark",
        "docs/sweeps",
        "docs/add-a-pruner",
        "docs/interventions",
        "docs/prompts",
        "docs/lmms-eval",
    ],
    "Found": ["docs/findings", "figures/gallery", "docs/claims"],
    "Know": ["docs/models", "docs/types", "docs/guarantees", "api/index"],
}
ROOMS = {
    "decoding": "Decode, watch, intervene",
    "models": "Models",
    "traces": "Traces",
    "pruners": "Pruners",
    "explorer": "The explorer",
    "attention": "Quantities",
    "experiments": "Sweeps",
    "media": "Images and videos",
    "metrics": "Costs",
    "studies": "On screen",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="notebooks in their fast mode: figures/fast/")
    fast = parser.parse_args().fast
    folder = notebooks.FIGURES / "fast" if fast else notebooks.FIGURES
    run_what_is_missing(folder, fast)
    lay_out(LAID_OUT, folder)
    from sphinx.cmd.build import build_main

    failed = build_main(["-q", "-j", "auto", "-c", str(ROOT / "docs"), str(LAID_OUT), str(SITE)])
    print(f"{SITE / 'index.html'}")
    return failed


def run_what_is_missing(folder: Path, fast: bool) -> None:
    """Run the notebooks whose executed copy is not there, or has other code."""
    stale = [path for path in notebooks.list_notebooks() if not is_executed(folder / "executed" / path.name, path)]
    if len(stale) == len(notebooks.list_notebooks()):
        notebooks.run_all(fast=fast)
        return
    for path in stale:
        print(f"{path.stem} is run, for its copy in {folder} is missing or of another version")
        notebooks.run(path.stem, fast=fast)


def is_executed(copy: Path, source: Path) -> bool:
    """Whether a copy holds the cells of the notebook, whatever parameters it was run with."""
    if not copy.exists():
        return False
    cells = nbformat.read(copy, as_version=4).cells
    ran = [cell.source for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    return ran == [cell.source for cell in nbformat.read(source, as_version=4).cells]


def lay_out(to: Path, figures: Path) -> None:
    """Write all sources of the site into the folder `to`, from the repository and the `figures` of a run."""
    shutil.rmtree(to, ignore_errors=True)
    for name in BESIDE:
        _copy(ROOT / name, to / name)
    for page in (ROOT / "docs").glob("*.md"):
        _copy(page, to / "docs" / page.name)
    for source in notebooks.list_notebooks():
        notebook = nbformat.read(figures / "executed" / source.name, as_version=4)
        notebook.metadata.pop("widgets", None)  # the output shows the same without a widget manager
        notebook.cells = [shown(cell) for cell in notebook.cells]
        (to / "notebooks").mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, to / "notebooks" / source.name)
    for picture in (*figures.glob("[0-9][0-9]_*.png"), *(ROOT / "figures" / "readme").glob("*.png")):
        kept = "readme" if picture.parent.name == "readme" else "."
        _copy(picture, to / "figures" / kept / picture.name)
    (to / "figures" / "gallery.md").write_text(gallery(figures))
    for name, text in api().items():
        (to / "api").mkdir(exist_ok=True)
        (to / "api" / f"{name}.rst").write_text(text)
    (to / "index.md").write_text(f"{(ROOT / 'README.md').read_text()}\n{contents(to)}")


def shown(cell: Any) -> Any:
    """A cell without what nobody reads on a page: warnings, and widgets beside their HTML."""
    if cell.cell_type == "code":
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return cell


def contents(to: Path) -> str:
    """The table of contents, as MyST reads it: every page is in one list."""
    found = {str(path.relative_to(to).with_suffix("")) for kind in ("*.md", "*.rst") for path in to.rglob(kind)}
    asked = [f"notebooks/{path.stem}" for path in notebooks.list_notebooks()]
    lists = {**PAGES, "Notebooks": asked}
    named = {page for pages in lists.values() for page in pages}
    lists["More"] = sorted(page for page in found - named if not page.startswith("api/"))
    return "\n".join(
        f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(pages) + "\n```\n"
        for title, pages in lists.items()
    )


def gallery(figures: Path) -> str:
    """A page of all figures of a folder: each with what it shows, and what it was made from."""
    parts = [
        "# Gallery",
        "Every figure that the notebooks write; each file holds what it was made from.",
    ]
    for source in notebooks.list_notebooks():
        told = dict(captions(source))
        title = nbformat.read(source, as_version=4).cells[0].source.splitlines()[0].removeprefix("# ")
        parts += [f"## {source.stem}", f"[{title}](../notebooks/{source.name})"]
        for picture in sorted(figures.glob(f"{source.stem[:2]}_*.png")):
            try:
                record = read_provenance(picture)
            except ValueError:  # a picture that was asked about, kept beside what was drawn of it
                continue
            parts += [f"### {picture.stem}", told.get(picture.stem, title), f"![{picture.stem}]({picture.name})"]
            if command := command_for(record):
                data = str(record["data_hash"])[:12]
                parts.append(f"Drawn again by `{command}`, with seed {record['seed']}, from data `{data}`.")
    return "\n\n".join(parts)


def captions(source: Path) -> Iterator[tuple[str, str]]:
    """Figure by figure, by name, the text above the cell of a notebook in which it is drawn."""
    above, text, drawn = {}, "", {}
    for cell in nbformat.read(source, as_version=4).cells:
        if cell.cell_type == "markdown":
            text = cell.source
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Assign):
                names = [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
                above.update(dict.fromkeys(names, text))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "save":
                if len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
                    drawn[node.args[1].value] = above.get(getattr(node.args[0], "id", ""), text)
    for name, text in drawn.items():
        paragraphs = [part for part in text.split("\n\n") if part.strip()]
        heading = paragraphs[0].splitlines()
        body = "\n".join([*heading[1:], *paragraphs[1:]]) if heading[0].startswith("#") else text
        yield name, f"**{heading[0].lstrip('# ')}**\n\n{body}" if heading[0].startswith("#") else body


def api() -> dict[str, str]:
    """The pages of the reference: an index, a page for each public name, and one of all pruners."""
    pages = {}
    by_room: dict[str, list[str]] = {room: [] for room in ROOMS}
    for name, module in vpa._MODULE_OF.items():
        by_room.setdefault(module.partition(".")[0], []).append(name)
        what = getattr(vpa, name)
        pages[name] = f"{name}\n{'=' * len(name)}\n\n{_directive(f'visionpulse_analysis.{name}', what)}"
    pruners = [f"{name}\n{'-' * len(name)}\n\n{_directive(f'{kind.__module__}.{kind.__name__}', kind)}"
               for name, kind in vpa.list_pruners().items()]  # fmt: skip
    pages["methods"] = "All pruners\n===========\n\n" + "\n".join(pruners)
    lines = ["The package, name by name", "=========================", ""]
    lines += ["All of these are names of ``visionpulse_analysis``, which loads each on first use.", ""]
    for room, names in by_room.items():
        extra = ["methods"] if room == "pruners" else []
        title = ROOMS.get(room, room)
        lines += [title, "-" * len(title), "", ".. toctree::", "   :maxdepth: 1", ""]
        lines += [f"   {name}" for name in [*names, *extra]] + [""]
    pages["index"] = "\n".join(lines)
    return pages


def _directive(path: str, what: Any) -> str:
    kind = "autoclass" if inspect.isclass(what) else "autofunction"
    return f".. {kind}:: {path}\n" + "   :members:\n" * (kind == "autoclass")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


if __name__ == "__main__":
    sys.exit(main())
