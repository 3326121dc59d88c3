"""Limits of pictures: an image processor with other settings, in the place of the model's own."""

from __future__ import annotations

import copy
from typing import Any

from visionpulse_analysis.models.asking import PromptOptions

EDGES = ("shortest_edge", "longest_edge")  # what processors call pixels at least and at most


def limited(image_processor: Any, options: PromptOptions, name: str) -> Any:
    """The image processor, or a copy within the limits that `options` state, by the names of its own settings.

    Raises ValueError for limits that it does not have; ``name`` is the model's, for the message.
    """
    if options.max_tiles is not None:
        image_processor = _tiles(image_processor, options.max_tiles, name)
    if options.min_pixels is None and options.max_pixels is None:
        return image_processor
    annotated = getattr(getattr(image_processor, "valid_kwargs", None), "__annotations__", {})
    size = dict(getattr(image_processor, "size", None) or {})
    if not {"min_pixels", "max_pixels"} <= set(annotated) or not all(size.get(edge) for edge in EDGES):
        raise refused(name, image_processor, "min_pixels and max_pixels", "no fewest and most pixels are stated")
    return within_pixels(image_processor, options)


def within_pixels(image_processor: Any, options: PromptOptions, pictures: int = 1) -> Any:
    """A copy of a processor whose ``size`` counts pixels, so many times each; raises as `edges`."""
    changed = copy.copy(image_processor)
    changed.size = type(image_processor.size)(**edges(dict(image_processor.size), options, pictures))
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
    # Others call the patches of the vision tower so: of tiles there is a fewest, too, or a canvas of them.
    of_tiles = any(hasattr(image_processor, mark) for mark in ("min_patches", "resize_to_max_canvas"))
    found = "max_patches" if of_tiles else "max_num_tiles"
    if not isinstance(getattr(image_processor, found, None), int):
        raise refused(name, image_processor, "max_tiles", "no number of tiles is stated")
    changed = copy.copy(image_processor)
    setattr(changed, found, most)
    for other in (found.replace("max_", "min_"), f"dense_{found}"):  # of fewest tiles, and of pages full of text
        if isinstance(getattr(changed, other, None), int):
            setattr(changed, other, min(getattr(changed, other), most))
    return changed


def refused(name: str, image_processor: Any, limit: str, why: str, instead: str = "leave it out") -> ValueError:
    """The error for a limit that a model does not have."""
    kind = type(image_processor).__name__
    return ValueError(f"{name} knows no {limit}: by its {kind} {why}; {instead}, or scale the pictures beforehand")
