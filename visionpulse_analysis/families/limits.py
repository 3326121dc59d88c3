"""Limits of pictures: an image processor with other settings, in the place of the model's own."""

from __future__ import annotations

import copy
from typing import Any

from visionpulse_analysis.families.prompt_options import PromptOptions

TILES = ("max_patches", "max_image_tiles", "max_num_tiles", "max_tiles")  # what processors call tiles at most


def limited(image_processor: Any, options: PromptOptions, name: str) -> Any:
    """The image processor, or a copy within the limits that `options` state, by the names of its own settings.

    Raises ValueError for limits that it does not have; ``name`` is the model's, for the message.
    """
    for limit in options.limits:
        image_processor = (
            _tiles(image_processor, options.limits[limit], name) if limit == "max_tiles" else image_processor
        )
    if options.min_pixels is None and options.max_pixels is None:
        return image_processor
    annotated = getattr(getattr(image_processor, "valid_kwargs", None), "__annotations__", {})
    if not {"min_pixels", "max_pixels"} <= set(annotated):
        raise refused(name, image_processor, "min_pixels and max_pixels", "no fewest and most pixels are stated")
    return within_pixels(image_processor, options)


def within_pixels(image_processor: Any, options: PromptOptions, pictures: int = 1) -> Any:
    """A copy of a processor whose ``size`` counts pixels, so many times each; raises as `edges`."""
    changed = copy.copy(image_processor)
    changed.size = type(image_processor.size)(**edges(dict(image_processor.size), options, pictures))
    for limit, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
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
    found = next((limit for limit in TILES if isinstance(getattr(image_processor, limit, None), int)), None)
    if found is None:
        raise refused(name, image_processor, "max_tiles", "no number of tiles is stated")
    changed = copy.copy(image_processor)
    setattr(changed, found, most)
    fewest = found.replace("max_", "min_")
    if isinstance(getattr(changed, fewest, None), int):
        setattr(changed, fewest, min(getattr(changed, fewest), most))
    return changed


def refused(name: str, image_processor: Any, limit: str, why: str, instead: str = "leave it out") -> ValueError:
    """The error for a limit that a model does not have."""
    kind = type(image_processor).__name__
    return ValueError(f"{name} knows no {limit}: by its {kind} {why}; {instead}, or scale the pictures beforehand")
