"""Limits of pictures: an image processor with other settings, in the place of the model's own.

Which limits a processor has is told by its own settings, as far as they say so.
"""

from __future__ import annotations

import copy
from typing import Any

from visionpulse_analysis.models.asking import PromptOptions

EDGES = ("shortest_edge", "longest_edge")  # what processors call pixels at least and at most
CROPS = {"min_crop_size": 256, "max_num_crops": 4, "min_ratio_to_activate": 1.2}  # of pan and scan, where not stated


def limited(image_processor: Any, options: PromptOptions, name: str) -> Any:
    """The image processor, or a copy within the limits that `options` state, by the names of its own settings.

    Raises ValueError for limits that it does not have; ``name`` is the model's, for the message.
    """
    if not options.limits:
        return image_processor
    pixels = options.min_pixels is not None or options.max_pixels is not None
    if getattr(image_processor, "image_grid_pinpoints", None):
        raise refused(
            name, image_processor, " and ".join(options.limits),
            "pictures are cut as the image_grid_pinpoints say, which the model reads in its own configuration too",
            "give fewer of these in both, vlm.model.config and vlm.image_processor",
        )  # fmt: skip
    if _scaled_to_tiles(image_processor):  # how far depends on the shape of a picture: see `for_size`
        if pixels:
            raise refused(name, image_processor, "min_pixels and max_pixels", "pictures are cut into tiles of one size",
                          "give max_tiles")  # fmt: skip
        return image_processor
    if options.max_tiles is not None:
        image_processor = _tiles(image_processor, options.max_tiles, name)
    return _within_pixels(image_processor, options, name) if pixels else image_processor


def _within_pixels(image_processor: Any, options: PromptOptions, name: str) -> Any:
    annotated = getattr(getattr(image_processor, "valid_kwargs", None), "__annotations__", {})
    size = dict(getattr(image_processor, "size", None) or {})
    known = {"min_pixels", "max_pixels"} <= set(annotated) or _counts_frames(image_processor)
    if not known or not all(size.get(edge) for edge in EDGES):
        raise refused(name, image_processor, "min_pixels and max_pixels", "no fewest and most pixels are stated")
    if _merges(image_processor):
        token = (image_processor.patch_size * image_processor.merge_size) ** 2
        if (options.max_pixels or token) < token:
            raise ValueError(f"max_pixels={options.max_pixels} is less than the {token} pixels that one token of "
                             f"{name} reads; give at least that")  # fmt: skip
    # GLM counts a picture as often as frames of a video become one.
    pictures = image_processor.temporal_patch_size if _counts_frames(image_processor) else 1
    changed = copy.copy(image_processor)
    changed.size = type(image_processor.size)(**edges(size, options, pictures))
    for limit, edge in zip(("min_pixels", "max_pixels"), EDGES, strict=True):
        if getattr(changed, limit, None) is not None:
            setattr(changed, limit, changed.size[edge])
    return changed


def edges(size: dict[str, int], options: PromptOptions, pictures: int = 1) -> dict[str, int]:
    """Fewest and most pixels of so many pictures together, as processors write them: shortest and longest "edge"."""
    fewest, most = size["shortest_edge"], size["longest_edge"]
    fewest = fewest if options.min_pixels is None else options.min_pixels * pictures
    most = most if options.max_pixels is None else options.max_pixels * pictures
    if fewest > most:  # the limit given goes before the model's own
        fewest, most = (most, most) if options.min_pixels is None else (fewest, fewest)
    return {**size, "shortest_edge": fewest, "longest_edge": most}


def _tiles(image_processor: Any, most: int, name: str) -> Any:
    if _merges(image_processor):
        raise refused(name, image_processor, "max_tiles", "a picture is read as one", "give max_pixels")
    changed = copy.copy(image_processor)
    if getattr(image_processor, "do_pan_and_scan", False):
        changed.do_pan_and_scan, changed.pan_and_scan_max_num_crops = most > 1, most
        return changed
    # Others call the patches of the vision tower so: of tiles there is a fewest, too, or a canvas of them.
    of_tiles = any(hasattr(image_processor, mark) for mark in ("min_patches", "resize_to_max_canvas"))
    found = "max_patches" if of_tiles else "max_num_tiles"
    if not isinstance(getattr(image_processor, found, None), int):
        raise refused(name, image_processor, "max_tiles", "no number of tiles is stated")
    setattr(changed, found, most)
    for other in (found.replace("max_", "min_"), f"dense_{found}"):  # of fewest tiles, and of pages full of text
        if isinstance(getattr(changed, other, None), int):
            setattr(changed, other, min(getattr(changed, other), most))
    return changed


def for_size(image_processor: Any, options: PromptOptions, *sizes: tuple[int, int]) -> dict[str, Any]:
    """What the image processor is told of tiles at most where they depend on the shapes of pictures.

    Idefics3 and SmolVLM scale the longer edge to whole tiles: to so many that none of these pictures has more.
    """
    most = options.max_tiles
    if most is None or not _scaled_to_tiles(image_processor) or not image_processor.do_image_splitting:
        return {}
    tile, own = image_processor.max_image_size["longest_edge"], image_processor.size["longest_edge"]
    for longest in (own, *range((own - 1) // tile * tile, tile, -tile)):
        told = {"size": {"longest_edge": longest}}
        counts = [image_processor.get_number_of_image_patches(*size, told)[1:] for size in sizes]
        if all(rows * cols <= most for rows, cols in counts):
            return told
    return {"size": {"longest_edge": tile}}  # an overview alone


def pan_and_scan(image_processor: Any) -> dict[str, Any]:
    """What a processor is told where its image processor's files ask for crops (Gemma 3): it would not look there."""
    if not getattr(image_processor, "do_pan_and_scan", False):
        return {}
    given = {f"pan_and_scan_{name}": value for name, value in CROPS.items()}
    stated = {name: getattr(image_processor, name, None) or value for name, value in given.items()}
    return {"do_pan_and_scan": True, **stated}


def _merges(image_processor: Any) -> bool:
    """Whether a picture is read as one grid, patches merged in squares."""
    return all(isinstance(getattr(image_processor, name, None), int) for name in ("patch_size", "merge_size"))


def _scaled_to_tiles(image_processor: Any) -> bool:
    return all(hasattr(image_processor, name) for name in ("max_image_size", "do_image_splitting"))


def _counts_frames(image_processor: Any) -> bool:
    return type(image_processor).__name__.startswith(("Glm4vImage", "Glm46VImage"))


def refused(name: str, image_processor: Any, limit: str, why: str, instead: str = "leave it out") -> ValueError:
    """The error for a limit that a model does not have."""
    kind = type(image_processor).__name__
    return ValueError(f"{name} knows no {limit}: by its {kind} {why}; {instead}, or scale the pictures beforehand")
