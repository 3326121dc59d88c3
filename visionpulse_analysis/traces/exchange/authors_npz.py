"""Reading and writing the paper authors' ``trace.npz``, without loss in either direction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionpulse_analysis._util.files import all_or_none, written_whole
from visionpulse_analysis.media.images import ImageLike, lies_at, read_image
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.metrics.attention import layer_cosines
from visionpulse_analysis.traces import Trace, create_trace
from visionpulse_analysis.traces.data import from_parts, to_parts
from visionpulse_analysis.traces.exchange.npz_fields import FORMAT_VERSION, OURS, check_fields, load_fields
from visionpulse_analysis.traces.html import pruner_text

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
