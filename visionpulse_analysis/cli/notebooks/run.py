"""Run the notebooks of ``notebooks/`` through papermill, with checked parameters and the running Python.

>>> from visionpulse_analysis.cli.notebooks.run import run
>>> run("01_step_dependence", {"n_samples": 50, "seed": 1}, fast=True)  # doctest: +SKIP
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from visionpulse_analysis._util import progress
from visionpulse_analysis._util.checks import did_you_mean
from visionpulse_analysis._util.files import all_or_none, bundled, data_folder, working_folder, write_whole
from visionpulse_analysis._util.ledger import NOTEBOOK
from visionpulse_analysis._util.processes import available_cores, call_each
from visionpulse_analysis.cli.notebooks import NotebookError
from visionpulse_analysis.cli.notebooks.parameters import check_parameters, read_parameters
from visionpulse_analysis.models.finding import place_of

__all__ = ["Executed", "NotebookError", "copy_to", "find", "list_notebooks", "run", "run_all"]

ROOT = working_folder()
FOLDER = bundled("notebooks")
FIGURES = ROOT / "figures"


@dataclass(frozen=True)
class Executed:
    """One finished notebook, by `name`: its executed copy's `path`, the `parameters` set, and the `seconds` it took."""

    name: str
    path: Path
    parameters: dict[str, Any]
    seconds: float


def list_notebooks(folder: Path = FOLDER) -> list[Path]:
    """Return the notebooks ``NN_name.ipynb`` of ``folder`` in reading order.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    list of Path

    Raises
    ------
    FileNotFoundError
        There are none.
    """
    found = sorted(path for path in folder.glob("*.ipynb") if re.match(r"\d\d_", path.name))
    if not found:
        raise FileNotFoundError(
            f"no notebooks named NN_name.ipynb in {folder}. They come with the repository, and inside an "
            "installed package: install it anew"
        )
    return found


def find(name: str, folder: Path = FOLDER) -> Path:
    """Return the notebook called ``name``: its number (``01``), its file name, or the part between.

    Parameters
    ----------
    name : str
    folder : Path

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        No notebook has that name; the message lists all and the closest.
    """
    available = list_notebooks(folder)
    for path in available:
        number, _, title = path.stem.partition("_")
        if name in (number, title, path.stem, path.name):
            return path
    stems = [path.stem for path in available]
    raise ValueError(f"no notebook {name!r}.{did_you_mean(name, stems, 0.4)} Available: {', '.join(stems)}")


def copy_to(folder: Path, overwrite: bool = False) -> list[Path]:
    """Copy the notebooks and the example picture to ``folder``, all or none.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    overwrite : bool
        Replace files that differ.

    Returns
    -------
    list of Path
        What was written: files that are there and the same are left alone.

    Raises
    ------
    FileExistsError
        A file that is there differs, and ``overwrite`` is False.
    ValueError
        It is the very folder that the notebooks come from.
    """
    if folder.resolve() == FOLDER.resolve():
        raise ValueError(f"the notebooks come from {folder}; name another folder, or work there")
    content = {folder / path.name: path.read_bytes() for path in [*list_notebooks(), data_folder() / "example.png"]}
    new = {path: given for path, given in content.items() if not path.exists() or path.read_bytes() != given}
    changed = [path for path in new if path.exists()]
    if changed and not overwrite:
        raise FileExistsError(
            f"{', '.join(map(str, changed))} would be replaced; nothing was written: name another folder, or say "
            "--overwrite to lose what is there"
        )
    with all_or_none(list(new)):
        folder.mkdir(parents=True, exist_ok=True)
        for path, given in new.items():
            write_whole(path, given)
    return list(new)


def run(
    name: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    fast: bool = False,
    folder: Path = FOLDER,
    cwd: str | os.PathLike[str] = ROOT,
) -> Executed:
    """Execute one notebook and keep the executed copy.

    Parameters
    ----------
    name
        As for :func:`find`.
    parameters
        Values by parameter name. Strings are read as Python literals where the parameter is not a string.
    out
        Folder for the results; default ``figures/``, or ``figures/fast/`` when ``fast``, so that a quick run
        never replaces real figures. The executed copy goes to ``out/executed/NN_name.ipynb``; a notebook with
        a parameter ``out`` gets this folder. ``parameters["out"]``, relative to ``cwd``, wins over both.
    fast
        Start from the small values in the notebook's metadata, ``visionpulse.fast``; ``parameters`` win.
    folder
        Where the notebooks are.
    cwd
        Working directory of the kernel.

    Returns
    -------
    Executed

    Raises
    ------
    ValueError
        Unknown notebook or parameter, or a value of the wrong type; nothing was run.
    NotebookError
        A cell failed or the kernel died. The copy up to there is ``out/executed/NN_name.failed.ipynb``.
    """
    plan = _plan(find(name, folder), parameters or {}, out, fast, Path(cwd))
    with _Bars([plan]) as bars:
        return _execute(plan, lambda done: bars.move(0, done))


def run_all(
    parameters: Mapping[str, Any] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    fast: bool = False,
    folder: Path = FOLDER,
    cwd: str | os.PathLike[str] = ROOT,
    report: Callable[[str], object] = print,
    jobs: int | None = None,
) -> list[Executed]:
    """Execute every notebook and ``report`` a line with the time of each.

    ``parameters`` must be known to every notebook; all of them are checked before the first one starts. Stops
    at the first failure. Side by side, the first one is followed by the longest, as their metadata say
    (``visionpulse.minutes``).

    Parameters
    ----------
    parameters, out, fast, folder, cwd
        As for :func:`run`.
    report : callable of str
        Called with each line.
    jobs
        Notebooks that run side by side, sharing the cores. By default one for each core, up to four; a single one
        where ``parameters`` name a model, for each notebook loads it.

    Returns
    -------
    list of Executed, in reading order

    Raises
    ------
    ValueError, NotebookError
        As :func:`run`; or ``jobs`` below 1.
    """
    plans = [_plan(path, parameters or {}, out, fast, Path(cwd)) for path in list_notebooks(folder)]
    if jobs is None:
        jobs = 1 if "model" in (parameters or {}) else min(4, available_cores())
    if jobs < 1:
        raise ValueError(f"expected jobs of 1 or more, got {jobs}")
    start = time.perf_counter()
    results = {}
    if jobs > 1:
        plans[1:] = sorted(plans[1:], key=lambda plan: -plan.minutes)  # else a core idles while the last one runs
    with _Bars(plans) as bars:
        alone = ((i, _execute(plan, partial(bars.move, i))) for i, plan in enumerate(plans))
        for index, result in alone if jobs == 1 else call_each(_execute, plans, jobs, bars.move):
            results[result.name] = result
            bars.close(index)
            with bars.out_of_the_way():
                report(f"{result.name}: {result.seconds:.1f} s")
    report(f"all {len(results)} notebooks: {time.perf_counter() - start:.1f} s")
    return [results[name] for name in sorted(results)]


@dataclass(frozen=True)
class _Plan:
    """What one run will do, checked, before anything is written."""

    source: Path
    target: Path
    parameters: dict[str, Any]
    cwd: Path
    minutes: float
    cells: int


def _plan(
    source: Path, parameters: Mapping[str, Any], out: str | os.PathLike[str] | None, fast: bool, cwd: Path
) -> _Plan:
    notebook = json.loads(source.read_text("utf-8"))
    cwd = cwd.resolve()
    chosen = cwd / parameters["out"] if "out" in parameters else Path(out or (FIGURES / "fast" if fast else FIGURES))
    folder = chosen.resolve()
    try:
        known = read_parameters(notebook)
        settings = notebook["metadata"].get("visionpulse", {})
        quick = settings.get("fast", {}) if fast else {}
        # Relative where possible: figures carry their parameters and shall be equal on every machine.
        place = {"out": folder.relative_to(cwd) if folder.is_relative_to(cwd) else folder} if "out" in known else {}
        values = check_parameters(known, {**quick, **place, **parameters})
        _check_places(values, cwd)
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from error
    cells = len(notebook["cells"]) + bool(values)  # papermill puts one in
    return _Plan(source, folder / "executed" / source.name, values, cwd, settings.get("minutes", 0), cells)


def _check_places(values: Mapping[str, Any], cwd: Path) -> None:
    """Raise ValueError for a model or a file that is not there, before a kernel is started for it."""
    if "model" in values:
        given = str(values["model"])
        place_of(str(cwd / given) if (cwd / given).is_dir() else given)
    for name in ("image", "images", "traces"):
        if values.get(name) and not (cwd / values[name]).exists():
            raise ValueError(f"parameter {name!r}: there is nothing at {values[name]}, seen from {cwd}")


class _Bars:
    """A line for each notebook that runs, with its cells, where somebody looks."""

    def __init__(self, plans: Sequence[_Plan]):
        self.plans, self.shown = plans, progress.shown()
        self.open: dict[int, Any] = {}

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        for index in list(self.open):
            self.close(index)

    def move(self, index: int, done: int) -> None:
        """So many cells of a notebook are done."""
        if not self.shown:
            return
        if index not in self.open:
            from tqdm.auto import tqdm

            plan = self.plans[index]
            given = {"leave": False, "miniters": 0, "mininterval": progress.EVERY}
            self.open[index] = tqdm(total=plan.cells, desc=plan.source.stem, unit="cell", **given)
        self.open[index].update(done - self.open[index].n)

    def close(self, index: int) -> None:
        """A notebook has ended."""
        if index in self.open:
            self.open.pop(index).close()

    def out_of_the_way(self) -> AbstractContextManager[Any]:
        """Inside, something else may be written."""
        if not self.open:
            return nullcontext()
        from tqdm.auto import tqdm

        return tqdm.external_write_mode()


def _execute(plan: _Plan, tell: Callable[[int], None]) -> Executed:
    from visionpulse_analysis.cli.notebooks.execution import execute  # papermill: mistakes are told without it

    start = time.perf_counter()
    # Figures say which notebook drew them, with which parameters; where they are written changes nothing in them.
    told = {name: value for name, value in plan.parameters.items() if name != "out"}
    running = json.dumps({"notebook": plan.source.stem, "parameters": told}, default=str)
    tell(0)
    execute(plan.source, plan.target, plan.parameters, plan.cwd, {NOTEBOOK: running}, tell)
    return Executed(plan.source.stem, plan.target, plan.parameters, time.perf_counter() - start)
