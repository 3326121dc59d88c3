"""Files of the paper authors' collector into a trace store: all of them or, where one cannot be, none."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from visionpulse_analysis.media.images import ImageLike
from visionpulse_analysis.traces import Trace
from visionpulse_analysis.traces.exchange.authors_npz import read_npz
from visionpulse_analysis.traces.store import TraceStore

NAME = "trace.npz"


def import_traces(
    source: str | Path,
    store: str | Path,
    *,
    id: str | None = None,
    image: ImageLike | None = None,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Bring ``trace.npz`` files into a trace store, after checking every one of them.

    Parameters
    ----------
    source : str or Path
        A file, or a folder with files named ``trace.npz`` anywhere below it. What other programs hide (names that begin
        with a dot) is passed over.
    store : str or Path
        Made if there is none.
    id : str, optional
        Name of a single file's trace in the store. Left out, a file is named by its ``sample_id``, and the files of a
        folder by their place in it: ``runs/a/trace.npz`` below ``runs`` is ``a``, and ``runs/a/b/trace.npz`` is
        ``a-b-`` and some letters, see `safe_id`. The ``sample_id`` stays in ``meta["sample_id"]``.
    image : image, optional
        The picture of a single file; left out, ``image.png`` beside it.
    overwrite : bool
        Replace traces of the same ids.

    Returns
    -------
    dict of id to Path
        The file of each trace.

    Raises
    ------
    FileNotFoundError
        There is no such file, or none in the folder.
    ValueError, StoreVersionError
        A file cannot be read, `id` or `image` is given for several, or ids are no names of traces.
    FileExistsError
        The store has one of the ids and `overwrite` is False.
    OSError
        The disk is full or the folder cannot be written.
    """
    files = _files(Path(source))
    if len(files) > 1 and (id is not None or image is not None):
        raise ValueError(
            f"--id and --image are for one file, but {source} holds {len(files)}: leave them out, and the traces are "
            f"named by their folders ({', '.join(list(files)[:3])}{', ...' * (len(files) > 3)})"
        )
    named = {name if id is None else id: file for name, file in files.items()}
    for name, file in named.items():  # one at a time: a collection may be larger than the memory
        _read(file, image, name)
    target = TraceStore(store, mode="a")
    for name in named:
        target.check_new(name, overwrite)
    new = [name for name in named if name not in target]
    try:
        for name, file in named.items():
            target.add(_read(file, image, name), overwrite=overwrite)
    except BaseException:
        for name in new:  # as before, also after Ctrl-C or on a full disk; what was replaced is whole, old or new
            shutil.rmtree(target.path / name, ignore_errors=True)
        raise
    return named


def _read(file: Path, image: ImageLike | None, id: str) -> Trace:
    trace = read_npz(file, image=image, id=id)
    return trace.with_meta({"sample_id": str(trace.meta.get("id", "")), **trace.meta, "id": id})


def _files(source: Path) -> dict[str, Path]:
    """The files to import, by the ids that they get; FileNotFoundError where there is none."""
    if not source.is_dir():
        sample = str(read_npz(source).meta.get("id", ""))
        return {safe_id(sample or source.resolve().parent.name): source}
    places = {file.relative_to(source).parent: file for file in sorted(source.rglob(NAME)) if file.is_file()}
    seen = {place: file for place, file in places.items() if not any(part.startswith(".") for part in place.parts)}
    if not seen:
        others = sorted(file.name for file in source.rglob("*.npz") if not file.name.startswith("."))
        hint = f"; it holds {', '.join(others[:3])}: name a file itself to import it" if others else ""
        raise FileNotFoundError(f"no {NAME} under {source}{hint}")
    top = source.resolve().name  # of a file that lies in the folder itself
    named: dict[str, Path] = {}
    taken: set[str] = set()  # without regard to case: on some disks "A" and "a" are one folder
    for place, file in seen.items():
        text = place.as_posix() if place.parts else top
        name = safe_id(text)
        name = name if name.lower() not in taken else safe_id(f"{text}/{NAME}")
        taken.add(name.lower())
        named[name] = file
    return named


def safe_id(text: str) -> str:
    """A name that a store takes, the text itself where it is one, else what is like it and a digest of it.

    So the same text always gives the same name, and two texts never give one.

    Examples
    --------
    >>> safe_id("sample_0003"), safe_id("chart 12: left/right")
    ('sample_0003', 'chart-12-left-right-2ab7b0bf')
    """
    if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}", text):
        return text
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:150].strip("-.")
    return f"{readable or 'trace'}-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
