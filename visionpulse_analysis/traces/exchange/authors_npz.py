"""Reading and writing the paper authors' ``trace.npz``, without loss in either direction."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionpulse_analysis._util.files import all_or_none, written_whole
from visionpulse_analysis.media.images import ImageLike, lies_at, read_image
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.metrics.attention import layer_cosines
from visionpulse_analysis.traces import StoreVersionError, Trace, create_trace
from visionpulse_analysis.traces.data import from_parts, to_parts
from visionpulse_analysis.traces.frames import pruner_text
from visionpulse_analysis.traces.store import TraceStore

FORMAT_VERSION = 1
REQUIRED = ("visual_scores", "token_ids", "token_texts", "grid_hw", "layer_indices", "metadata")
OPTIONAL = ("similarity_by_step",)
OURS = "visionpulse."  # fields of that name hold the rest of a trace that this package wrote; others ignore them
_LARGEST_RATIO, _SMALL = 200, 2**30
# Weights of bfloat16 are rounded by up to 2^-9 of their value, and their mean over heads once more.
_LARGEST_SUM = 1 + 2**-7


def load_fields(path: Path) -> dict[str, np.ndarray]:
    """Read every array of a ``trace.npz``; nothing is unpickled, and nothing is written to disk.

    Raises FileNotFoundError: there is no such file; ValueError: it is no ``trace.npz``, or damaged, or unpacks to far
    more than real data would.
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

    Raises ValueError: a field is missing, unknown, or does not fit; the message names it; StoreVersionError: the file
    says another version.
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


HEAD_MEAN = "dense eager, head-mean probabilities, temperature=1"  # the authors' name of what they collect
DRAWN = ("temperature", "top_p", "top_k")  # how tokens are drawn, in their metadata and in ours
_IMAGE = "image.png"  # where the authors' tools look for the picture, beside the file


def read_npz(path: str | Path, image: ImageLike | None = None, id: str | None = None) -> Trace:
    """Read a ``trace.npz`` (``format_version`` 1) of the paper's authors, or one that `write_npz` wrote.

    Attention keeps the file's float32; log probabilities, which the format does not have, are NaN, and positions in
    the prompt are counted from 0. The file's own metadata is kept as text in ``meta["trace_npz"]``, so that `write_npz`
    gives the same arrays back. A file of `write_npz` gives the whole trace back that was written.

    Parameters
    ----------
    path : str or Path
    image : image, optional
        The picture; left out, ``image.png`` beside the file. Without one, boxes count patches, not pixels.
    id : str, optional
        Left out, the file's ``sample_id``.

    Returns
    -------
    Trace

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError, StoreVersionError
        It is damaged, of another version, or says what version 1 does not know; the message names the file.
    """
    path = Path(path)
    fields = load_fields(path)
    ours = {name.removeprefix(OURS): fields.pop(name) for name in list(fields) if name.startswith(OURS)}
    metadata = check_fields(fields, path)
    if ours:
        return _restored(ours, fields, metadata, path)
    picture = _picture(path, image)
    try:
        return _imported(fields, metadata, picture, _meta(metadata, fields, path, id))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _picture(path: Path, image: ImageLike | None) -> np.ndarray | None:
    if image is None and not path.with_name(_IMAGE).is_file():
        return None
    return read_image(path.with_name(_IMAGE) if image is None else image)


def _imported(fields: dict[str, Any], metadata: dict[str, Any], picture: np.ndarray | None, meta: dict) -> Trace:
    scores, similarity = fields["visual_scores"], fields.get("similarity_by_step")
    rows, cols = (int(n) for n in fields["grid_hw"])
    size = (rows, cols) if picture is None else picture.shape[:2]
    return create_trace(
        attention=scores[:, None],
        mass=scores.sum(axis=1, dtype=np.float64).clip(max=1.0)[:, None],  # rows of rounded weights may sum to more
        tokens=fields["token_texts"].tolist(),
        token_ids=fields["token_ids"],
        logprobs=np.full(len(scores), np.nan),
        grid=PatchGrid.from_grid(range(rows * cols), rows, cols, [size]),
        layers=[metadata["layer"]],
        similarity=similarity,
        similarity_layers=None if similarity is None else fields["layer_indices"].tolist(),
        images=[] if picture is None else [picture],
        meta=meta,
        precision="float32",
    )


def _meta(metadata: dict[str, Any], fields: dict[str, np.ndarray], path: Path, id: str | None) -> dict[str, Any]:
    generation = metadata.get("generation")
    generation = generation if isinstance(generation, dict) else {}
    return {
        "id": str(metadata.get("sample_id", "")) if id is None else id,
        "sample_id": str(metadata.get("sample_id", "")),
        "question": str(metadata.get("question", "")),
        "model": str(metadata.get("model", "unknown")),
        "attention": str(metadata.get("attention", "unknown")),
        "sample": {name: generation.get(name) for name in DRAWN} if generation.get("do_sample") else None,
        "seed": metadata["seed"] if isinstance(metadata.get("seed"), int) else None,
        "pruner": None,
        "execution": "dense",
        "finished": bool(metadata.get("stopped_on_eos", False)),
        "max_new_tokens": generation["max_new_tokens"] if isinstance(generation.get("max_new_tokens"), int) else None,
        "trace_npz": {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "metadata": str(fields["metadata"].item()),
            "layer_indices": fields["layer_indices"].tolist(),
            "dtypes": {name: array.dtype.str for name, array in fields.items()},
        },
    }


def _restored(ours: dict[str, Any], fields: dict[str, Any], metadata: dict[str, Any], path: Path) -> Trace:
    """The trace that `write_npz` was given, after checking that nobody changed the authors' fields beside it."""
    try:
        attributes = json.loads(str(ours.pop("attributes").item()))
        trace = Trace(from_parts(ours, attributes))
        written = npz_fields(trace, metadata["layer"])
    except Exception as error:
        raise ValueError(f"{path} is damaged: its fields {OURS}* cannot be read ({error})") from error
    changed = [name for name in {*written, *fields} if not _same(written.get(name), fields.get(name))]
    if changed:
        raise ValueError(
            f"{path} was changed since it was written: {sorted(changed)} do not fit its fields {OURS}*; "
            "delete those fields to read it as another program's file"
        )
    return trace


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is not None and b is not None and a.dtype.kind == b.dtype.kind and np.array_equal(a, b)


def write_npz(
    trace: Trace, path: str | Path, layer: int | None = None, *, whole: bool = True, overwrite: bool = False
) -> list[Path]:
    """Write a trace as ``trace.npz`` (``format_version`` 1), readable by the paper authors' tools, and its picture.

    Parameters
    ----------
    trace : Trace
        Of one still image. Heads are averaged over those recorded.
    path : str or Path
        Its folder is made if it does not exist; the picture becomes ``image.png`` beside it.
    layer : int, optional
        Model index of the layer to write; may be left out when only one was recorded.
    whole : bool
        Add the rest of the trace (all layers and heads, masses, kept sets, picture, provenance) in fields that the
        authors' tools ignore, so that `read_npz` gives the very same trace back.
    overwrite : bool
        Replace files that are there.

    Returns
    -------
    list of Path
        The file, and the picture if the trace has one.

    Raises
    ------
    ValueError
        The trace has several images or frames, or no step.
    IndexError
        The layer was not recorded, or must be chosen.
    FileExistsError
        A file is there, another one than this trace's picture, and `overwrite` is False.
    OSError
        The disk is full or the folder cannot be written.
    """
    path = Path(path)
    targets, fields = _targets(trace, path, overwrite), npz_fields(trace, layer)
    if whole and "trace_npz" not in trace.meta:
        arrays, attributes = to_parts(trace.dataset)
        fields |= {OURS + name: array for name, array in arrays.items()}
        fields[OURS + "attributes"] = np.asarray(json.dumps(attributes))
    with all_or_none(targets):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as draft, draft.open("xb") as file:
            np.savez_compressed(file, **fields)  # pyright: ignore[reportArgumentType]
        if trace.images:
            with written_whole(targets[1]) as draft:
                Image.fromarray(trace.images[0]).save(draft, "PNG")
    return targets


def write_npz_folder(
    traces: Mapping[str, Trace],
    folder: str | Path,
    layer: int | None = None,
    *,
    whole: bool = True,
    overwrite: bool = False,
) -> list[Path]:
    """Write every trace as ``trace.npz`` into a folder of its own: all of them, or none where one cannot be.

    Parameters
    ----------
    traces : mapping of id to Trace
        Such as a `TraceStore`; the id becomes the name of the trace's folder.
    folder : str or Path
        Made if it does not exist.
    layer, whole, overwrite
        As in `write_npz`.

    Returns
    -------
    list of Path
        All files.

    Raises
    ------
    ValueError, IndexError, FileExistsError, OSError
        As `write_npz`, with the id of the trace; nothing new is left behind.
    """
    places = {id: Path(folder) / id / "trace.npz" for id in traces}
    targets: list[Path] = []
    for id, place in places.items():  # one at a time: a store may be larger than the memory
        trace = traces[id]
        targets += _targets(trace, place, overwrite)
        try:
            npz_fields(trace, layer)
        except (ValueError, IndexError) as error:
            raise type(error)(f"trace {id!r}: {error}") from error
    with all_or_none(targets):
        for id, place in places.items():
            write_npz(traces[id], place, layer, whole=whole, overwrite=overwrite)
    return targets


def _targets(trace: Trace, path: Path, overwrite: bool) -> list[Path]:
    """The files of a trace; FileExistsError where one is there that is not to be replaced."""
    targets = [path, path.with_name(_IMAGE)] if trace.images else [path]
    for target in targets:
        if target.exists() and not overwrite and not (target.name == _IMAGE and lies_at(target, trace.images[0])):
            raise FileExistsError(f"{target} exists; choose another place, or say overwrite=True (--overwrite)")
    return targets


def npz_fields(trace: Trace, layer: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of format version 1 for one layer of a trace; those of an imported file are the file's own.

    Raises ValueError for a trace without steps, of several frames, or of a grid with gaps.
    """
    if len(trace) == 0 or trace.grid.n_images != 1 or len(np.asarray(trace.grid.frames)) != 1:
        raise ValueError(
            f"trace.npz holds the steps of one still image; this trace has {len(trace)} steps, "
            f"{trace.grid.n_images} images and {len(np.asarray(trace.grid.frames))} frames or tiles"
        )
    trace.at(0, layer)  # says which layers there are
    layer = trace.layers[0] if layer is None else layer
    recorded = trace.attention.sel(layer=layer).values.astype(np.float32)
    rows = trace.grid.to_map(recorded if trace.heads is None else recorded.mean(axis=1))
    if np.isnan(rows).any():
        raise ValueError(f"trace.npz holds a full grid; this one of {trace.grid.shape()} has places without a patch")
    fields = {
        "visual_scores": rows.reshape(len(trace), -1),
        "token_ids": trace.token_ids,
        "token_texts": np.asarray(trace.tokens),
        "grid_hw": np.asarray(trace.grid.shape(), dtype=np.int64),
        "layer_indices": np.asarray(trace.layers, dtype=np.int64),
        "metadata": np.asarray(json.dumps(_metadata(trace, layer))),
    }
    imported = trace.meta.get("trace_npz")
    if imported is None:
        return fields | ({"similarity_by_step": _cosines(trace)} if len(trace.layers) > 1 else {})
    fields["metadata"], fields["layer_indices"] = (
        np.asarray(imported["metadata"]),
        np.asarray(imported["layer_indices"]),
    )
    if "similarity" in trace.dataset:
        fields["similarity_by_step"] = trace.dataset["similarity"].values
    return {name: fields[name].astype(dtype) for name, dtype in imported["dtypes"].items()}


def _metadata(trace: Trace, layer: int) -> dict[str, Any]:
    sample = trace.meta.get("sample")
    return {
        "format_version": FORMAT_VERSION,
        "sample_id": str(trace.meta.get("id", "")),
        "question": trace.question,
        "model": trace.meta.get("model"),
        "layer": layer,
        "layers": trace.layers,
        "seed": trace.meta.get("seed"),
        "attention": attention_definition(trace),
        "generation": {
            "max_new_tokens": trace.meta.get("max_new_tokens"),
            "do_sample": sample is not None,
            "use_cache": True,
            **({} if sample is None else {name: sample.get(name) for name in DRAWN}),
        },
        "generated_tokens": len(trace),
        "stopped_on_eos": bool(trace.meta.get("finished", False)),
        "pruner": trace.meta.get("pruner"),
    }


def attention_definition(trace: Trace) -> str:
    """What the rows of a trace are, by which the authors' tools decide what may be pooled.

    Their own words for what they collect, dense softmax rows averaged over all heads; other words for other rows.

    Parameters
    ----------
    trace : Trace

    Returns
    -------
    str
    """
    if "trace_npz" in trace.meta:
        return str(trace.meta.get("attention", "unknown"))
    pruner, shape = trace.meta.get("pruner"), (trace.meta.get("costs") or {}).get("shape") or {}
    if pruner is None and (trace.heads is None or sorted(trace.heads) == list(range(shape.get("heads", 0)))):
        return HEAD_MEAN
    heads = "all heads" if trace.heads is None else f"heads {trace.heads}"
    under = "dense" if pruner is None else f"pruned by {pruner_text(pruner)}"
    return f"{under}, mean of the probabilities of {heads}, temperature=1"


def _cosines(trace: Trace) -> np.ndarray:
    """float32 [step, layer, layer]: cosine between the layers' rows of each step; 0 for a row without mass."""
    rows = trace.attention.values.astype(np.float64)
    return np.nan_to_num(layer_cosines(rows if trace.heads is None else rows.mean(axis=2))).astype(np.float32)


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
