"""Layers and anchors in sentences and a table, every number computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from visionpulse_analysis.metrics.claims import from_json
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.studies.layers.anchors import Anchors
from visionpulse_analysis.studies.layers.measure import LayerMaps
from visionpulse_analysis.studies.shared.sentences import Finding

WITHOUT_MODEL = "Stored traces: which anchors would do is found by replaying steps, which needs the model."


def verdict(anchors: Anchors, tolerance: float = 0.05) -> str:
    """State in one paragraph which anchor layers would do, from the intervals alone."""
    fits, misfits = anchors.suitable(tolerance), anchors.unsuitable(tolerance)
    undecided = anchors.undecided(tolerance)
    rule = (
        f"the {100 * anchors.fraction:g} % of the patches ranked highest there change at most {100 * tolerance:g} % of "
        "the tokens that depend on the image, and fewer than random patches do"
    )
    if fits:
        text = [f"By intervals that hold at all layers together, {_named(fits)} would do: {rule}."]
    else:
        place = int(np.argmin([i.value for i in anchors.top]))
        text = [
            f"No layer is shown to do what is asked, that {rule}; the fewest tokens change at layer "
            f"{anchors.layers[place]}, {anchors.top[place]:.1%}."
        ]
    if misfits:
        text.append(f"Not so {_named(misfits)}.")
    if undecided:
        text.append(f"Undecided with these samples: {_named(undecided)}.")
    if anchors.default in anchors.layers:
        place = anchors.layers.index(anchors.default)
        text.append(
            f"The default anchor, layer {anchors.default}, {_answer(anchors, anchors.default, tolerance)}: there "
            f"{anchors.top[place]:.1%} of these tokens change with its own choice, "
            f"{anchors.random[place]:.1%} with random patches and {anchors.none[place]:.1%} with none."
        )
    text.append(_without_patches(anchors, tolerance))
    return " ".join(text)


def transfers(anchors: Anchors, tolerance: float = 0.05) -> str:
    """Say what of the paper's choice of the middle layer transfers to this model and what does not."""
    rule, default = _rule(anchors), anchors.default
    ending = {
        "would do": "transfers: that layer does what is asked of it",
        "would not do": "does not transfer: that layer does not do what is asked of it",
        "is undecided": "may or may not transfer: that layer is undecided with these samples",
        "was not tried": "is not tested: that layer was not tried",
    }[_answer(anchors, rule, tolerance)]
    text = [f"The paper's rule, an anchor in the middle, means layer {rule} here; it {ending}."]
    if default == rule:
        text.append("It is also the model's default anchor.")
    else:
        text.append(f"The model's default anchor, layer {default}, {_answer(anchors, default, tolerance)}.")
    fits = anchors.suitable(tolerance)
    if fits and not {rule, default} & {*fits}:
        text.append(f"Here {_named(fits)} would do.")
    if not fits:
        text.append("That few patches chosen at one layer are enough is shown at no layer at this tolerance.")
    return " ".join([*text, "This is one model: measure yours before you prune it."])


def layer_numbers(
    maps: LayerMaps, anchors: Anchors | None, reading: dict[str, list[Estimate]] | None, tolerance: float = 0.05
) -> dict[str, Any]:
    """All headline numbers in one mapping, JSON-ready; those of the anchors where a model was there to find them."""
    if anchors is None:
        return maps.numbers()
    return {
        **maps.numbers(),
        **anchors.numbers(),
        "horizon": as_json(reading),
        "suitable": anchors.suitable(tolerance),
        "undecided": anchors.undecided(tolerance),
    }


def paper_table(maps: LayerMaps, anchors: Anchors | None, tolerance: float = 0.05) -> pd.DataFrame:
    """What the paper reports beside what was measured here; without ``anchors`` only how alike the layers are."""
    rows = {
        "cosine of neighbouring layers": ("shown as a picture", f"{maps.adjacent:.2f}"),
        "cosine of layers at least half the depth apart": ("shown as a picture", f"{maps.distant:.2f}"),
    }
    if anchors is not None:
        rows |= _of_anchors(anchors, tolerance)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["paper", "here"])


def _of_anchors(anchors: Anchors, tolerance: float) -> dict[str, tuple[str, str]]:
    place = anchors.layers.index(anchors.default) if anchors.default in anchors.layers else None
    percent = f"{100 * anchors.fraction:g} %"
    rows = {
        "anchor layer": (
            "17 of 36, the middle",
            f"{anchors.default} of {anchors.n_layers} by default; the middle: {_rule(anchors)}",
        ),
        "layers that would do": ("not reported", _listed(anchors.suitable(tolerance)) or "none"),
        "layers undecided": ("not reported", _listed(anchors.undecided(tolerance)) or "none"),
    }
    if place is not None:
        rows[f"tokens unchanged, {percent} chosen at the default anchor"] = (
            "98.2 % of full accuracy (<= 5 %, whole traces)",
            f"{1 - anchors.top[place]:.1%} of image-dependent tokens",
        )
        rows["the same, random patches"] = ("not reported", f"{1 - anchors.random[place]:.1%}")
        rows["relevant patches among them"] = (
            "not reported",
            f"{anchors.overlap[place]:.2f} (random {anchors.overlap_null:.3f})",
        )
    return rows


def _without_patches(anchors: Anchors, tolerance: float) -> str:
    """Say from which layer on the image has been read, as far as whole intervals tell."""
    none = anchors.together["none"]
    needy = [place for place, i in enumerate(none) if not i.high <= tolerance]  # NaN: no interval
    free = anchors.layers[needy[-1] + 1 :] if needy else anchors.layers
    if free:
        return f"From layer {free[0]} on even no patch at all is enough, so a good score there proves nothing."
    if all(i.low > tolerance for i in none):
        return f"At every layer more than {100 * tolerance:g} % of these tokens depend on the patches above it."
    return "From no layer on is it shown that no patch at all is enough."


def _rule(anchors: Anchors) -> int:
    """The layer of the paper's rule, which the model's own default anchor need not follow."""
    return max(0, anchors.n_layers // 2 - 1)


def _answer(anchors: Anchors, layer: int, tolerance: float) -> str:
    if layer not in anchors.layers:
        return "was not tried"
    if layer in anchors.suitable(tolerance):
        return "would do"
    return "would not do" if layer in anchors.unsuitable(tolerance) else "is undecided"


def _named(layers: list[int]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {_listed(layers)}"


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))


def finding(numbers: dict[str, Any]) -> Finding:
    n = from_json(numbers)
    suitable, undecided = (_listed(n[group]) or "none" for group in ("suitable", "undecided"))
    choice = f"own choice of {100 * n['fraction']:g} %"
    short = f"Layers whose {choice} would do: {suitable}; undecided: {undecided}"
    if n["default"] in n["layers"]:
        place = n["layers"].index(n["default"])
        short += (
            f"; at the default anchor, layer {n['default']}, {n['top'][place]:.1%} of the words that depend on the "
            f"image change, {n['random'][place]:.1%} with random patches"
        )
    return Finding(
        f"{short}.",
        f"Default anchor: layer {n['default']}; layers whose {choice} would do: {suitable}; undecided: {undecided}.",
    )
