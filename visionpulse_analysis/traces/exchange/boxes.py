"""Patches as boxes in the layout of COCO's detection files, for annotation tools and other viewers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionpulse_analysis._util.files import all_or_none, written_whole
from visionpulse_analysis.media.images import lies_at
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.traces import Trace


def patch_boxes(
    trace: Trace, layer: int | None = None, *, steps: Sequence[int] | None = None, top: int | None = None
) -> dict[str, Any]:
    """Boxes of the patches at each step, strongest first, as a COCO detection dictionary.

    Every step is a category, named by number and token, so that a viewer can show one step at a time.

    Parameters
    ----------
    trace : Trace
    layer : int, optional
        Model index of a recorded layer; may be left out when only one was recorded. Heads are averaged.
    steps : sequence of int, optional
        Left out, all steps.
    top : int, optional
        Only the strongest patches of each step, at least 1; ties in the order of patches.

    Returns
    -------
    dict
        ``images`` (id from 1, width, height, file_name; each frame of a video is one), ``categories`` (id = step + 1,
        name) and ``annotations``: id, image_id (of frames that the model merges, the first), category_id, bbox [left,
        top, width, height] in pixels of the original image, area, iscrowd, score (the attention, 0..1), patch, row,
        col, frame, and kept where the trace is pruned.

    Raises
    ------
    IndexError
        A step or layer was not recorded.
    ValueError
        `top` is below 1.
    """
    if top is not None and top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    grid, kept = trace.grid, None if trace.kept is None else trace.kept.values
    left, upper, right, lower = grid.box.astype(float).T
    boxes = np.stack([left, upper, right - left, lower - upper], axis=1)
    chosen = list(range(len(trace))) if steps is None else list(steps)
    pictures = _pictures(grid)
    annotations: list[dict[str, Any]] = []
    for step in chosen:
        scores = trace.at(step, layer)
        for patch in np.argsort(-scores, kind="stable")[:top].tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": int(pictures[patch]) + 1,
                    "category_id": step + 1,
                    "bbox": boxes[patch].tolist(),
                    "area": float(boxes[patch, 2] * boxes[patch, 3]),
                    "iscrowd": 0,
                    "score": float(scores[patch]),
                    "patch": patch,
                    **{name: int(getattr(grid, name)[patch]) for name in ("row", "col", "frame")},
                    **({} if kept is None else {"kept": bool(kept[step, patch])}),
                }
            )
    return {
        "info": {
            "description": f"visionpulse_analysis: attention of trace {trace.meta.get('id', '')!r}",
            "layer": layer,
        },
        "images": [
            {"id": i + 1, "width": width, "height": height, "file_name": f"image_{i}.png"}
            for i, (height, width) in enumerate(_sizes(grid))
        ],
        "categories": [
            {"id": step + 1, "name": f"step {step}: {trace.tokens[step].strip()}", "supercategory": "step"}
            for step in sorted(set(chosen))
        ],
        "annotations": annotations,
    }


def _pictures(grid: PatchGrid) -> np.ndarray:
    """The first of the original pictures that each patch shows: int [patch]."""
    first = {tuple(line[:2]): begin for line, (begin, _) in zip(*_lines(grid), strict=True)}
    return np.array([first[place] for place in zip(grid.image.tolist(), grid.frame.tolist(), strict=True)])


def _sizes(grid: PatchGrid) -> list[tuple[int, int]]:
    """Height and width of each original picture."""
    image_of = {n: line[0] for line, (begin, end) in zip(*_lines(grid), strict=True) for n in range(begin, end)}
    return [tuple(grid.image_size[image_of[n]].tolist()) for n in sorted(image_of)]


def _lines(grid: PatchGrid) -> tuple[list[list[int]], list[list[int]]]:
    return np.asarray(grid.frames).tolist(), np.asarray(grid.pictures).tolist()


def write_boxes(
    trace: Trace,
    path: str | Path,
    layer: int | None = None,
    *,
    steps: Sequence[int] | None = None,
    top: int | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write `patch_boxes` as JSON, with the images beside it (``image_0.png``, ...).

    Where another file of that name lies, which is not to be replaced, an image is named after the JSON file instead.

    Parameters
    ----------
    trace, layer, steps, top
        As in `patch_boxes`.
    path : str or Path
        Of the JSON file; its folder is made if it does not exist.
    overwrite : bool
        Replace files that are there.

    Returns
    -------
    list of Path
        The JSON file, then the images.

    Raises
    ------
    FileExistsError
        The JSON file exists, or another image of that name, and `overwrite` is False.
    IndexError, ValueError, OSError
        As `patch_boxes`; or the disk is full or the folder cannot be written.
    """
    path = Path(path)
    boxes = patch_boxes(trace, layer, steps=steps, top=top)
    files = [path]
    for about, image in zip(boxes["images"], trace.images, strict=False):
        file = path.with_name(about["file_name"])
        if file.exists() and not overwrite and not lies_at(file, image):
            file = path.with_name(f"{path.stem}_{about['file_name']}")
        about["file_name"] = file.name
        files.append(file)
    there = [path, *(file for file, image in zip(files[1:], trace.images, strict=True) if not lies_at(file, image))]
    for file in there:
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} exists; choose another place, or say overwrite=True (--overwrite)")
    with all_or_none(files):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as draft:
            draft.write_text(json.dumps(boxes, allow_nan=False), "utf-8")
        for file, image in zip(files[1:], trace.images, strict=True):
            with written_whole(file) as draft:
                Image.fromarray(image).save(draft, "PNG")
    return files
