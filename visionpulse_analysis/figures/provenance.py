"""What a figure carries inside its file: where it comes from and the numbers it shows."""

import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from visionpulse_analysis._util import ledger as _ledger

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
    record : mapping
        As `read_provenance` gives it.

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
