"""The only place where figures become files."""

import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.image import imsave
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox
from PIL import Image, UnidentifiedImageError

from visionpulse_analysis._util import ledger as _ledger
from visionpulse_analysis._util.files import write_whole

from .style import style

KEY = "visionpulse_analysis"  # PNG keyword, and the start of the text by which the other formats know it
_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = ("visionpulse_analysis", "numpy", "matplotlib", "torch", "transformers")


def describe(
    name: str,
    parameters: Mapping[str, Any] | None,
    seed: int | None,
    data_hash: str | None,
    numbers: Mapping[str, Any] | None,
    drawn: str | None = None,
) -> str:
    """Return the provenance of a figure as one line of JSON in ASCII: the same input gives the same text.

    Raises ValueError: if a value has no place in JSON (NaN, infinity, an object).
    """
    record = {
        "figure": name,
        "parameters": dict(parameters or {}),
        "seed": seed,
        "data_hash": data_hash,
        "numbers": dict(numbers or {}),
        "drawn": drawn,
        "versions": _versions(),
        "commit": _commit(),
        "process": _process(),
        "made_by": _made_by(),
    }
    try:
        text = json.dumps({KEY: record}, sort_keys=True, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the provenance of figure {name!r} cannot be written as JSON: {error}; "
            "use plain numbers, strings, lists and dicts, and None for what is missing"
        ) from error
    return text


def read_provenance(path: str | Path) -> dict[str, Any]:
    """Read back what `save` wrote into a figure.

    Parameters
    ----------
    path : str or Path
        A PNG, PDF or SVG file made by `save`.

    Returns
    -------
    dict
        With the keys figure, parameters, seed, data_hash, numbers, versions and commit; of figures since format 2 also
        drawn (sha256 of the pixels), process (threads, what it had loaded and read) and made_by (the notebook and all
        its parameters, or the command, where one drew it).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no figure of these kinds, is damaged, or carries no provenance.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no figure at {path}; name a PNG, PDF or SVG file written by save()")
    content = path.read_bytes()
    if content.startswith(b"\x89PNG"):
        text = _text_in_png(path)
    elif content.startswith(b"%PDF"):
        text = _text_in_pdf(content)
    elif b"<svg" in content[:2000]:
        text = _text_in_svg(path)
    else:
        raise ValueError(f"{path} is no PNG, PDF or SVG file; provenance is inside figures written by save()")
    try:
        return json.loads(text)[KEY]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} carries no provenance: figures.save() did not write it, or another program rewrote it"
        ) from error


def _text_in_png(path: Path) -> str:
    try:
        with Image.open(path) as image:
            return str(image.info.get(KEY, ""))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is a damaged PNG file: {error}") from error


def _text_in_pdf(content: bytes) -> str:
    # matplotlib writes the Info dictionary in clear text, as a string in which \ ( ) are escaped.
    found = re.search(rb"/Keywords \(((?:\\.|[^\\()])*)\)", content, re.DOTALL)
    return re.sub(r"\\(.)", r"\1", found[1].decode("latin-1")) if found else ""


def _text_in_svg(path: Path) -> str:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is a damaged SVG file: {error}") from error
    return root.findtext(".//{http://purl.org/dc/elements/1.1/}description") or ""


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):  # an Estimate, a Claim
        return value.to_json()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{value!r} of type {type(value).__name__}")


@cache
def _versions() -> dict[str, str | None]:
    """Versions as installed, read without importing the libraries; None if one is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = None
    return versions


def _commit() -> str | None:
    """Commit of this package's own repository, with "-modified" if code or notebooks differ; None outside of one."""
    # Only code and notebooks count: figures may be tracked, and writing one must not change the next.
    try:
        commit, top = _git("rev-parse", "HEAD", "--show-toplevel").stdout.split("\n")[:2]
        if Path(top).resolve() != _PACKAGE.parent:
            return None  # installed into somebody else's repository
        changed = _git("status", "--porcelain", "--untracked-files=all", "--", str(_PACKAGE), *_beside()).stdout
    except (OSError, ValueError):
        return None
    return f"{commit}-modified" if changed.strip() else commit


def _beside() -> list[str]:
    return [str(folder) for folder in (_PACKAGE.parent / "notebooks", _PACKAGE.parent / "data") if folder.is_dir()]


def _process() -> dict[str, Any]:
    """What of this process changes digits, and what it has used."""
    torch = sys.modules.get("torch")  # not imported for this: then nothing was computed with it
    return {"threads": None if torch is None else torch.get_num_threads(), **_ledger.noted()}


def _made_by() -> dict[str, Any] | None:
    """The notebook that runs, as the runner tells its kernel; else the command, as the command line tells."""
    told = os.environ.get(_ledger.NOTEBOOK)
    if told is not None:
        return json.loads(told)
    return None if _ledger.command is None else {"command": _ledger.command}


def command_for(record: Mapping[str, Any]) -> str | None:
    """The command that draws a figure again, from its provenance alone; None where it is not known.

    Parameters
    ----------
    record : as `read_provenance` gives it

    Returns
    -------
    str
        For a shell, at the commit that the record names: in the project's folder where a notebook drew it, else in
        the folder where the command was given.
    """
    made = record.get("made_by")
    if not made:
        return None
    threads = (record.get("process") or {}).get("threads")
    words = [f"OMP_NUM_THREADS={threads}"] if threads else []
    if "command" in made:
        out = ["--figure", f"again/{record['figure']}"] if made["command"][1] == "explore" else ["--out", "again"]
        return " ".join([*words, shlex.join([*made["command"][:2], *out, *made["command"][2:]])])
    words += ["visionpulse", "figures", made["notebook"]]
    for name, value in made["parameters"].items():
        words += ["-p", shlex.quote(f"{name}={value if isinstance(value, str) else repr(value)}")]
    return " ".join([*words, "--out", "again"])


def drawn_hash(pixels: np.ndarray) -> str:
    """sha256 (hex) of a picture, uint8 [row_px, col_px, channel]."""
    return hashlib.sha256(f"{pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(_PACKAGE), "--no-optional-locks", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)


_DPI = 300
_DIGITS = 6  # of a place in the figure: far below a dot, far above what the solver leaves open


def save(
    fig: Figure,
    name: str,
    *,
    folder: str | Path = "figures",
    parameters: Mapping[str, Any] | None = None,
    seed: int | None = None,
    data_hash: str | None = None,
    numbers: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a figure as PNG (300 dpi), PDF and SVG, each with its provenance inside.

    The same figure, input, versions and commit give the same bytes. Each file appears whole or not at all.

    Parameters
    ----------
    fig : Figure
    name : str
        Letters, digits, ``-``, ``_`` and ``.``; no folder, no ending.
    folder : str or Path
        Made if it does not exist.
    parameters : mapping, optional
        What the notebook or command was called with.
    seed : int, optional
    data_hash : str, optional
        Hash of the traces the figure was drawn from.
    numbers : mapping, optional
        Headline numbers that the figure shows.

    Returns
    -------
    list of Path
        The PNG, the PDF and the SVG file.

    Raises
    ------
    ValueError
        If the name could leave the folder or has an ending, or if the provenance cannot be written as JSON.
    OSError
        If the disk is full or the folder cannot be written.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError(f"figure name {name!r}: expected letters, digits, '-', '_', '.'; the folder is folder=...")
    if name.lower().endswith((".png", ".pdf", ".svg")):
        raise ValueError(f"figure name {name!r} has an ending: leave it out, all three formats are written")
    describe(name, parameters, seed, data_hash, numbers)  # raises before anything is drawn
    folder = Path(folder)
    contents: dict[Path, bytes] = {}
    with style(), _at_print_size(fig):
        pixels = _pixels(fig)
        text = describe(name, parameters, seed, data_hash, numbers, drawn_hash(pixels))
        buffer = BytesIO()
        imsave(buffer, pixels, format="png", dpi=_DPI, metadata={KEY: text})
        contents[folder / f"{name}.png"] = buffer.getvalue()
        # No dates; matplotlib adds its own version, which is part of what makes the bytes.
        FigureCanvasPdf(fig).print_pdf(buffer := BytesIO(), metadata={"Keywords": text, "CreationDate": None})
        contents[folder / f"{name}.pdf"] = buffer.getvalue()
        fig.dpi = _DPI  # both leave it at their own 72
        FigureCanvasSVG(fig).print_svg(buffer := BytesIO(), metadata={"Description": text, "Date": None})
        contents[folder / f"{name}.svg"] = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        write_whole(path, content)
    return list(contents)


@contextmanager
def _at_print_size(fig: Figure) -> Iterator[None]:
    """Lay the figure out, for all three formats; its layout, resolution and canvas come back afterwards.

    ``fig.savefig`` draws everything twice, the first time only for the layout.
    """
    canvas, engine, dpi = fig.canvas, fig.get_layout_engine(), fig.dpi
    with _measured_once(fig):
        _settle_layout(fig)
    fig.set_layout_engine("none")
    fig.dpi = _DPI
    try:
        yield
    finally:
        FigureCanvasAgg(fig)  # no window changes its size with the resolution
        fig.dpi = dpi
        fig.set_canvas(canvas)
        fig.set_layout_engine(engine)


def _pixels(fig: Figure) -> np.ndarray:
    """The figure as it is printed, uint8 [row_px, col_px, 4]: drawn once, hashed, then written."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return np.array(canvas.buffer_rgba())


@contextmanager
def _measured_once(fig: Figure) -> Iterator[None]:
    """Measure axes anew only at new places: on a page of many passes few still move, and text takes longest."""

    def remembering(ax: Axes) -> Callable[..., Any]:
        measure, found = ax.get_tightbbox, {}

        def tightbbox(*given: Any, **options: Any) -> Any:
            place = (*ax.get_position(original=True).bounds, *ax.figure.bbox.bounds)
            if place not in found:
                found[place] = measure(*given, **options)
            return found[place]

        return tightbbox

    axes = list(fig.axes)
    for ax in axes:
        vars(ax)["get_tightbbox"] = remembering(ax)
    try:
        yield
    finally:
        for ax in axes:
            del vars(ax)["get_tightbbox"]


def _settle_layout(fig: Figure) -> None:
    """Lay the figure out until nothing moves: then it does not matter how often it was drawn before.

    The solver of constrained layout adds up in the order of memory addresses: its last digits differ from process to
    process, and are rounded. Tight layout has no solver, and would start from the rounded places the next time.
    """
    FigureCanvasAgg(fig)
    engine, places = fig.get_layout_engine(), None
    for _ in range(20):  # each pass moves a colour bar a hundred times less than the one before
        if engine is None:
            return
        engine.execute(fig)
        if isinstance(engine, ConstrainedLayoutEngine):
            _round_places(fig)
        before, places = places, [ax.get_position(original=True).bounds for ax in fig.axes]
        if places == before:
            return


def _round_places(fig: Figure) -> None:
    """Round where subfigures and axes lie to a millionth of what they lie in."""
    for part in _subfigures(fig):
        part.bbox_relative.set_points(part.bbox_relative.get_points().round(_DIGITS))
    for ax in fig.axes:
        in_layout, place = ax.get_in_layout(), ax.get_position(original=True)
        ax.set_position(Bbox(place.get_points().round(_DIGITS)), which="original")
        ax.set_in_layout(in_layout)  # a place that is set takes the axes out of the layout


def _subfigures(fig: FigureBase) -> list[SubFigure]:
    return [inner for part in fig.subfigs for inner in (part, *_subfigures(part))]
