"""The only place where figures become files."""

import os
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.image import imsave
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox
from PIL import Image

from visionpulse_analysis._util.files import write_whole

from .provenance import KEY, describe, drawn_hash
from .style import style

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
        Made if it does not exist. A relative one counts from ``VISIONPULSE_FOLDER``, where that is set (`make lab`).
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
    folder = Path(os.environ.get("VISIONPULSE_FOLDER", ""), folder)
    contents: dict[Path, bytes] = {}
    with style():
        engine = fig.get_layout_engine()
        _settle_layout(fig)
        fig.set_layout_engine("none")  # so that all three formats get this layout
        try:
            pixels = _pixels(fig)
            text = describe(name, parameters, seed, data_hash, numbers, drawn_hash(pixels))
            buffer = BytesIO()
            imsave(buffer, pixels, format="png", dpi=_DPI, metadata={KEY: text})
            contents[folder / f"{name}.png"] = buffer.getvalue()
            # No dates; matplotlib adds its own version, which is part of what makes the bytes.
            embedded: dict[str, dict[str, Any]] = {
                "pdf": {"Keywords": text, "CreationDate": None},
                "svg": {"Description": text, "Date": None},
            }
            for ending, data in embedded.items():
                buffer = BytesIO()
                fig.savefig(buffer, format=ending, dpi=_DPI, metadata=data)
                contents[folder / f"{name}.{ending}"] = buffer.getvalue()
        finally:
            fig.set_layout_engine(engine)
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        write_whole(path, content)
    return list(contents)


def _pixels(fig: Figure) -> np.ndarray:
    """The figure as it is printed, uint8 [row_px, col_px, 4]: drawn once, hashed, then written."""
    buffer = BytesIO()
    fig.savefig(buffer, format="png", dpi=_DPI, pil_kwargs={"compress_level": 0})
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGBA"))


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
