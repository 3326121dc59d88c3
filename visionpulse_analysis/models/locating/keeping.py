"""Measured maps are kept, in memory and on disk: those of a model's pictures depend on few sizes and settings."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from visionpulse_analysis._util.files import cache_folder, write_whole
from visionpulse_analysis._util.fingerprints.objects import Remembered
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.models import locating
from visionpulse_analysis.models.locating.probing import Inputs

KEEP = 256  # maps in memory
COLUMNS = ("position", "image", "frame", "row", "col", "box", "image_size")
logger = logging.getLogger(__name__)


class Shelf(Remembered):
    """Located, by what it depends on: the newest in memory, all on disk.

    Where the folder of the caches lies is no part of what a result depends on, nor what is there.
    """

    def find(self, key: str) -> locating.Located | None:
        if key not in self:
            found = _read(_path(key))
            if found is None:
                return None
            self._take(key, found)
        return self[key]

    def put(self, key: str, located: locating.Located) -> None:
        self._take(key, located)
        _write(_path(key), located)

    def _take(self, key: str, located: locating.Located) -> None:
        self[key] = located
        if len(self) > KEEP:
            del self[next(iter(self))]


_maps = Shelf()
# That there is no map may be due to the weights, and holds for the very model.
_without: WeakKeyDictionary[Any, dict[str, locating.NoMapError]] = WeakKeyDictionary()


def measured(model: Any, inputs: Inputs, sizes: Sequence[tuple[int, int]], settings: Sequence[str]) -> locating.Located:
    """As `measure`, once for the same kind of model, sizes and ``settings`` of what makes the inputs.

    Kept in the folder of the caches (``VISIONPULSE_CACHE``), under what the map depends on: the model's class and
    configuration, the settings, the sizes, the library's version, and the code that builds prompts and measures.
    """
    parts = [type(model).__name__, model.config.to_json_string(), *settings, str(list(sizes)), version("transformers")]
    key = hashlib.sha256("\0".join([*parts, _code()]).encode()).hexdigest()
    failed = _without.setdefault(model, {})
    if key in failed:
        raise failed[key]
    found = _maps.find(key)
    if found is None:
        try:
            found = locating.measure(model, inputs, sizes)
        except locating.NoMapError as error:
            failed[key] = error.with_traceback(None)
            raise
        _maps.put(key, found)
    return found


def _path(key: str) -> Path:
    return cache_folder() / f"map-{key[:24]}.json"


@cache
def _code() -> str:
    rooms = Path(__file__).parents[1]
    files = sorted(rooms.rglob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _write(path: Path, located: locating.Located) -> None:
    arrays = {name: getattr(located.grid, name).tolist() for name in COLUMNS}
    facts = {"way": located.way, "forwards": located.forwards, "share": located.share}
    body = json.dumps({"grid": arrays, "others": located.others.tolist(), "ids": located.ids.tolist(), **facts})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}".encode())
    except OSError as error:  # it is measured again next time
        logger.warning("a measured map is not kept: %s", error)


def _read(path: Path) -> locating.Located | None:
    """What `_write` wrote; None where there is nothing, or something else by now."""
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(body).hexdigest().encode() != digest:
        logger.warning("%s is damaged, and the map is measured again", path)
        return None
    kept = json.loads(body)
    grid = PatchGrid(**{name: np.array(values) for name, values in kept.pop("grid").items()})
    others, ids = (np.array(kept.pop(name), np.int64) for name in ("others", "ids"))
    return locating.Located(grid, others, ids, **kept)
