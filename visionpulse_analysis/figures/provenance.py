"""What a figure carries inside its file: where it comes from and the numbers it shows."""

import json
import platform
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

KEY = "visionpulse_analysis"  # PNG keyword, and the start of the text by which the other formats know it
_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = ("visionpulse_analysis", "numpy", "matplotlib", "torch", "transformers")


def describe(
    name: str,
    parameters: Mapping[str, Any] | None,
    seed: int | None,
    data_hash: str | None,
    numbers: Mapping[str, Any] | None,
) -> str:
    """Return the provenance of a figure as one line of JSON in ASCII: the same input gives the same text.

    Raises
    ------
    ValueError
        If a value has no place in JSON (NaN, infinity, an object).
    """
    record = {
        "figure": name,
        "parameters": dict(parameters or {}),
        "seed": seed,
        "data_hash": data_hash,
        "numbers": dict(numbers or {}),
        "versions": _versions(),
        "commit": _commit(),
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
        With the keys figure, parameters, seed, data_hash, numbers, versions and commit.

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


@cache
def _commit() -> str | None:
    """Commit of this package's own repository, with "-modified" if its code differs; None outside of one."""
    # Only the code counts as modified: figures may be tracked, and writing one must not change the next.
    try:
        commit, top = _git("rev-parse", "HEAD", "--show-toplevel").stdout.split("\n")[:2]
        if Path(top).resolve() != _PACKAGE.parent:
            return None  # installed into somebody else's repository
        modified = _git("diff", "--quiet", "HEAD", "--", str(_PACKAGE)).returncode != 0
    except (OSError, ValueError):
        return None
    return f"{commit}-modified" if modified else commit


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(_PACKAGE), "--no-optional-locks", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
