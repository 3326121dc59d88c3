"""A trace that was recorded without a map, with the places of its image tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from visionpulse_analysis.media.images import read_image
from visionpulse_analysis.traces.data import build_dataset
from visionpulse_analysis.traces.frames import without_map


def placed(trace: Any, images: Any, located: Any) -> Any:
    """As `Trace.locate`."""
    if without_map(trace) is None:
        raise ValueError("this trace has a map already: trace.grid says where its patches lie")
    pictures = [read_image(image) for image in (images if isinstance(images, list | tuple) else [images])]
    sizes = [list(picture.shape[:2]) for picture in pictures]
    if sizes != located.grid.image_size.tolist():
        raise ValueError(f"the images have {sizes} rows and columns of pixels, but what was measured was of "
                         f"{located.grid.image_size.tolist()}; give the images that vpa.locate was given")  # fmt: skip
    tokens = np.sort(np.concatenate([located.grid.position, located.others]))
    if len(tokens) != len(trace.grid):
        raise ValueError(
            f"the prompt of the trace had {len(trace.grid)} image tokens, the images given have {len(tokens)} by the "
            "processor that measured; give the images of this prompt, and its processor with its settings"
        )
    chosen = np.searchsorted(tokens, located.grid.position)
    others = np.setdiff1d(np.arange(len(tokens)), chosen)
    if len(others) and trace.kept is not None:
        raise ValueError(
            f"a pruner hid image tokens of this trace, of which {len(others)} are no patches, and how many of them at "
            "each layer is not known; record it with the images: vpa.watch(model, processor, images=...)"
        )
    names = ("token_id", "logprob", "budget", "k", "pruner_mass", "k_per_layer")
    arrays: dict[str, Any] = {name: trace.dataset[name].values for name in names if name in trace.dataset}
    attention = trace.attention.values
    arrays["attention"] = attention[..., chosen]
    arrays["mass"] = trace.mass.values - attention[..., others].sum(axis=-1, dtype=np.float32)
    if trace.kept is not None:
        arrays["kept"] = trace.kept.values[:, chosen]
    arrays["pixels"] = np.concatenate([picture.reshape(-1) for picture in pictures])
    dataset = build_dataset(
        arrays,
        grid=replace(located.grid, position=trace.grid.position[chosen]),
        tokens=trace.tokens,
        prompt_tokens=trace.prompt_tokens,
        layers=trace.layers,
        heads=trace.heads,
        image_shapes=[picture.shape for picture in pictures],
        meta={**trace.meta, "map": "measured"},
        precision=attention.dtype,
    )
    return type(trace)(dataset)
