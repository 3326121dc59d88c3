"""Layers and anchors in sentences and a table, every number computed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from visionpulse_analysis.studies.anchors import Anchors
from visionpulse_analysis.studies.layers import LayerMaps


def verdict(anchors: Anchors, tolerance: float = 0.05) -> str:
    """State in one paragraph which anchor layers would do, from the numbers alone."""
    fits = anchors.suitable(tolerance)
    percent = f"{100 * anchors.fraction:g} %"
    rule = (
        f"their top {percent} of the patches change at most {100 * tolerance:g} % of the tokens that depend on the "
        "image, and clearly fewer than random patches do"
    )
    if fits:
        listed = ", ".join(str(layer) for layer in fits)
        text = [f"As anchors would do the layers {listed}: {rule}."]
    else:
        best = anchors.layers[int(np.argmin([i.estimate for i in anchors.top]))]
        text = [f"No layer would do by the rule that {rule}; the least harm is done at layer {best}."]
    if anchors.default in anchors.layers:
        where = "is" if anchors.default in fits else "is not"
        place = anchors.layers.index(anchors.default)
        text.append(
            f"The default anchor, layer {anchors.default}, {where} among those that would do: there "
            f"{100 * anchors.top[place].estimate:.0f} % of these tokens change with its own choice, "
            f"{100 * anchors.random[place].estimate:.0f} % with random patches and "
            f"{100 * anchors.none[place].estimate:.0f} % with none."
        )
    free = [layer for layer, i in zip(anchors.layers, anchors.none, strict=True) if i.estimate <= tolerance]
    text.append(
        f"From layer {min(free)} on even no patch at all is enough, so a good score there proves nothing."
        if free
        else "At every layer some of these tokens still depend on the patches above it."
    )
    return " ".join(text)


def transfers(anchors: Anchors, tolerance: float = 0.05) -> str:
    """Say what of the paper's choice of the middle layer transfers to this model and what does not."""
    fits = anchors.suitable(tolerance)
    if anchors.default in fits:
        text = "The rule of an anchor in the middle transfers: the default anchor does what is asked of it."
    elif fits:
        text = f"The default anchor does not transfer as it is: here layers {_listed(fits)} do what is asked."
    else:
        text = "That few patches chosen at one layer are enough does not transfer at this tolerance."
    return f"{text} How deep a model reads the image is its own property: measure it before you prune."


def paper_table(maps: LayerMaps, anchors: Anchors, tolerance: float = 0.05) -> pd.DataFrame:
    """What the paper reports beside what was measured here."""
    place = anchors.layers.index(anchors.default) if anchors.default in anchors.layers else None
    percent = f"{100 * anchors.fraction:g} %"
    rows = {
        "anchor layer": ("17 of 36, the middle", f"{anchors.default} of {anchors.n_layers} by default"),
        "layers that would do": ("not reported", _listed(anchors.suitable(tolerance)) or "none"),
        "cosine of neighbouring layers": ("shown as a picture", str(maps.adjacent)),
        "cosine of layers half the depth apart": ("shown as a picture", str(maps.distant)),
    }
    if place is not None:
        rows[f"{percent} of the patches, chosen at the anchor"] = (
            "98.2 % of full accuracy (<= 5 %, whole traces)",
            f"{100 * (1 - anchors.top[place].estimate):.0f} % of image-dependent tokens unchanged",
        )
        rows["the same, random patches"] = (
            "not reported",
            f"{100 * (1 - anchors.random[place].estimate):.0f} %",
        )
        rows["relevant patches among them"] = (
            "not reported",
            f"{anchors.overlap[place]} (random {anchors.overlap_null:.3f})",
        )
    return pd.DataFrame.from_dict(rows, orient="index", columns=["paper", "here"])


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))
