"""The fields of the paper authors' ``trace.npz`` (``format_version`` 1): which there are, and whether they fit.

One still image, one layer: ``visual_scores`` [step, patch], head means of softmax rows; ``token_ids`` and
``token_texts`` [step]; ``grid_hw`` [2]; ``layer_indices`` [layer]; ``metadata``, a JSON text; and perhaps
``similarity_by_step`` [step, layer, layer], cosines between layers. Row t predicts token t.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from visionpulse_analysis.traces import StoreVersionError

FORMAT_VERSION = 1
REQUIRED = ("visual_scores", "token_ids", "token_texts", "grid_hw", "layer_indices", "metadata")
OPTIONAL = ("similarity_by_step",)
OURS = "visionpulse."  # fields of that name hold the rest of a trace that this package wrote; others ignore them
_LARGEST_RATIO, _SMALL = 200, 2**30
# Weights of bfloat16 are rounded by up to 2^-9 of their value, and their mean over heads once more.
_LARGEST_SUM = 1 + 2**-7


def load_fields(path: Path) -> dict[str, np.ndarray]:
    """Read every array of a ``trace.npz``; nothing is unpickled, and nothing is written to disk.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no ``trace.npz``, or damaged, or unpacks to far more than real data would.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no trace.npz at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_bombs(archive)
        with np.load(path, allow_pickle=False) as file:
            fields = dict(file)
    except Exception as error:  # zip files and headers can be broken in many ways
        raise ValueError(f"{path} is not a readable trace.npz: {error}") from error
    if strange := [name for name, value in fields.items() if not isinstance(value, np.ndarray)]:
        raise ValueError(f"{path} is not a readable trace.npz: {strange[0]!r} is no array")
    return fields


def _refuse_bombs(archive: zipfile.ZipFile) -> None:
    """Attention and texts shrink a few times; megabytes that come from next to nothing are meant to fill the memory."""
    for entry in archive.infolist():
        if entry.file_size > max(_SMALL, _LARGEST_RATIO * entry.compress_size):
            raise ValueError(f"{entry.filename!r} would unpack from {entry.compress_size} to {entry.file_size} bytes")


def check_fields(fields: dict[str, np.ndarray], path: Path) -> dict[str, Any]:
    """Return the metadata after checking that the fields are those of version 1 and fit each other.

    Raises
    ------
    ValueError
        A field is missing, unknown, or does not fit; the message names it.
    StoreVersionError
        The file says another version.
    """
    missing, unknown = set(REQUIRED) - set(fields), set(fields) - {*REQUIRED, *OPTIONAL}
    if missing or unknown:
        raise ValueError(
            f"{path} is not a trace.npz of version 1: missing {sorted(missing)}, unknown {sorted(unknown)}"
        )
    try:
        metadata = json.loads(str(fields["metadata"].item()))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: its metadata is no JSON ({error})") from error
    version = metadata.get("format_version") if isinstance(metadata, dict) else None
    if version != FORMAT_VERSION:
        raise StoreVersionError(f"{path} has format version {version!r}, this package reads version {FORMAT_VERSION}")
    scores, layers = fields["visual_scores"], fields["layer_indices"]
    steps, square = scores.shape[:1], (*scores.shape[:1], *layers.shape, *layers.shape)
    fit = {
        "visual_scores": scores.ndim == 2 and scores.size > 0 and scores.dtype.kind == "f",
        "token_ids": _is(fields["token_ids"], "iu", steps),
        "token_texts": _is(fields["token_texts"], "U", steps),
        "grid_hw": _is(fields["grid_hw"], "iu", (2,)),
        "layer_indices": layers.ndim == 1 and layers.size > 0 and layers.dtype.kind in "iu",
        "similarity_by_step": "similarity_by_step" not in fields or _is(fields["similarity_by_step"], "f", square),
    }
    for name in (name for name, right in fit.items() if not right):
        raise ValueError(f"{path} is damaged: {name} has shape {fields[name].shape} and dtype {fields[name].dtype}")
    rows, cols = (int(n) for n in fields["grid_hw"])
    if min(rows, cols) < 1 or rows * cols != scores.shape[1]:
        raise ValueError(f"{path} is damaged: grid_hw is {rows} x {cols}, but there are {scores.shape[1]} patches")
    if not (np.isfinite(scores).all() and (scores >= 0).all()):
        raise ValueError(f"{path} is damaged: visual_scores has values that are negative or not finite")
    if (sums := scores.sum(axis=1, dtype=np.float64)).max() > _LARGEST_SUM:
        raise ValueError(
            f"{path} is damaged: a row of visual_scores sums to {sums.max():.4g}, softmax rows to at most 1"
        )
    for name in ("visual_scores", "similarity_by_step"):
        if name in fields and not np.array_equal(fields[name], fields[name].astype(np.float32)):
            raise ValueError(f"{path}: {name} is {fields[name].dtype} and does not fit float32 without rounding")
    if (layer := metadata.get("layer", int(layers[0]))) not in layers.tolist():
        raise ValueError(f"{path} is damaged: its layer is {layer!r}, but layer_indices is {layers.tolist()}")
    return {**metadata, "layer": int(layer)}


def _is(array: np.ndarray, kinds: str, shape: tuple[int, ...]) -> bool:
    return array.dtype.kind in kinds and array.shape == shape
