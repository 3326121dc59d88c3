"""The three stages in sentences and a table, every number computed and every sentence chosen by an interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from visionpulse_analysis.metrics.claims import from_json
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.studies.shared.sentences import Finding
from visionpulse_analysis.studies.three_stages.measure import PLACES, ThreeStages, over_samples

PROMPT, VISUAL = range(len(PLACES))
WITHDRAWN = 0.003  # nats: VTW's bound for LLaVA-1.5-7B


def withdrawal_layer(stages: ThreeStages, place: int, threshold: float = WITHDRAWN) -> int | None:
    """VTW's layer: the first, from 5 of 32 on, whose mean divergence is at most ``threshold``; None without one."""
    curve = stages.curve("withdrawn", place)
    first = max(1, round(5 / 32 * stages.n_layers))
    return next((layer for layer in range(first, stages.n_layers) if curve[layer].value <= threshold), None)


def contribution_order(stages: ThreeStages, place: int) -> list[int]:
    """ShortV's order: layers by their mean contribution, the least first."""
    return np.argsort(stages.frozen[place].mean(axis=1), kind="stable").tolist()


def reading_layer(stages: ThreeStages, place: int) -> int | None:
    """The first layer from which on the logit lens reads the final word in half of the samples; the output counts."""
    wrong = np.flatnonzero(stages.lens_right[place].mean(axis=1) < 0.5)
    first = 0 if len(wrong) == 0 else int(wrong[-1]) + 1
    return first if first <= stages.n_layers else None


def deep_layer(n_layers: int) -> int:
    """Where VisiPruner reports that the image can go: 26 of 32 layers."""
    return round(26 / 32 * n_layers)


def side(interval: Estimate, level: float) -> str:
    """Where a whole interval lies: "below" or "above" the level, or else "open"."""
    return "below" if interval.high < level else "above" if interval.low > level else "open"


STATEMENTS = 6
TOGETHER = 1 - 0.05 / STATEMENTS  # confidence at which all statements together are wrong in 5 % of studies at most


def verdicts(stages: ThreeStages, level: float = 0.05) -> str:
    """What of the three stages shows in this model, as Markdown; a change below ``level`` nats counts as none.

    The intervals shown are of 95 %; what decides are wider ones, that hold for all sentences together (Bonferroni).
    """
    deep = stages.withdrawn[VISUAL][deep_layer(stages.n_layers)].astype(float)
    sinks = stages.sink_ratio[VISUAL, : max(1, stages.n_shallow)].mean(axis=0)
    contrast = depth_contrast(stages)
    largest = max(stages.curve("frozen", VISUAL), key=lambda interval: interval.value)
    prompt, visual = (over_samples(values, least=0.0) for values in stages.effect)
    lines = [
        f"What decides each of these {STATEMENTS} sentences is an interval of {100 * TOGETHER:.1f} %, so that all hold "
        "together at 95 %; shown are intervals of 95 % each.",
        f"Hiding the whole image changes the token after the prompt by {prompt:.2g} nats, that of the most visual "
        f"step by {visual:.2g} ({len(stages.asked)} samples).",
        sentence(
            "Whether measures at the end of the prompt can show where this model reads the image:",
            _decided(stages.effect[PROMPT], level),
            below="they cannot, because the token after it does not depend on the image",
            above="they can, because the token after it depends on the image",
        ),
        sentence(
            "That the most visual step depends on the image",
            _decided(stages.effect[VISUAL], level),
            below="does not show: it does not",
            above="shows",
        ),
        sentence(
            f"The shallow stage (the first {stages.n_shallow} layers skip the image: "
            f"{over_samples(stages.shallow[VISUAL], least=0.0):.2g} nats)",
            _decided(stages.shallow[VISUAL], level),
            below="transfers: these layers do not need the image",
            above="does not transfer: these layers need the image",
        ),
        sentence(
            f"The deep stage (the image is withdrawn from layer {deep_layer(stages.n_layers)} on: "
            f"{over_samples(deep, least=0.0):.2g} nats)",
            _decided(deep, level),
            below="transfers: the image has been read by then",
            above="does not transfer: the image is still read there",
        ),
        sentence(
            "That shallow layers attend most to patches of small value (their norm over that of all: "
            f"{over_samples(sinks):.2g})",
            _decided(sinks, 1.0),
            below="transfers",
            above="does not transfer: there they have larger values than the rest",
        ),
        sentence(
            f"That the deepest quarter of the layers changes the patches to less effect than the rest (ShortV; "
            f"difference {over_samples(contrast):.2g} nats, the largest effect of any layer {largest:.2g} nats)",
            _decided(contrast, 0.0),
            below="transfers",
            above="does not transfer: it matters more",
        ),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _decided(values: np.ndarray, level: float) -> str:
    return side(over_samples(values, TOGETHER), level)


def depth_contrast(stages: ThreeStages) -> np.ndarray:
    """Layer Contribution of the deepest quarter of the layers minus that of all others: float64 [sample]."""
    first = stages.n_layers - max(1, round(stages.n_layers / 4))
    frozen = stages.frozen[VISUAL]
    return frozen[first:].mean(axis=0) - frozen[:first].mean(axis=0)


def paper_table(stages: ThreeStages, threshold: float = WITHDRAWN) -> pd.DataFrame:
    """What the papers report for LLaVA-1.5-7B, 32 layers, beside what was measured here."""
    n, deep = stages.n_layers, deep_layer(stages.n_layers)
    cosine = [interval.value for interval in stages.curve("cosine", VISUAL)]
    rows = {
        "logit lens reads the final word from": ("layer 10 or 11 (counting)", _both(stages, reading_layer, n)),
        "shallow layers that skip the image": (
            "6 of 32, little loss",
            f"{stages.n_shallow} of {n}: {over_samples(stages.shallow[VISUAL], least=0.0):.2g} nats",
        ),
        "all patches dropped in the deep layers": (
            "from 26 of 32: GQA 61.95 to 61.91",
            f"from {deep} of {n}: {stages.curve('withdrawn', VISUAL)[deep]:.2g} nats",
        ),
        f"VTW's layer, KL <= {threshold:g} nats": (
            "15 of 32",
            _both(stages, lambda s, place: withdrawal_layer(s, place, threshold), n),
        ),
        "value norm of attention sinks": (
            "low in shallow layers",
            f"layer 0: {stages.curve('sink_ratio', VISUAL)[0]:.2g} of the mean",
        ),
        "one patch turns the output most in": (
            "one middle layer of each sample",
            f"layer {int(np.argmin(cosine))} of {n} (cosine {min(cosine):.4f})",
        ),
        "least contribution to the patches": (
            "31, 29, 30, 28, 0 of 32",
            f"{', '.join(map(str, contribution_order(stages, VISUAL)[:5]))} of {n}",
        ),
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["papers (LLaVA-1.5-7B)", "here, most visual step"])


def sentence(claim: str, where: str, *, below: str, above: str) -> str:
    """A claim and how it ends, by the `side` on which its interval lies."""
    ends = {"below": below, "above": above, "open": "cannot be decided with these samples"}
    return f"{claim} {ends[where]}."


def _both(stages: ThreeStages, measure, n_layers: int) -> str:
    """A layer at the most visual step, and at the end of the prompt."""
    found = [measure(stages, place) for place in (VISUAL, PROMPT)]
    visual, prompt = ("none" if layer is None else f"{layer} of {n_layers}" for layer in found)
    return f"{visual} (end of the prompt: {prompt})"


def finding(numbers: dict[str, Any]) -> Finding:
    n = from_json(numbers)
    visual, prompt = n["most visual step"], n["end of the prompt"]
    deep = round(26 / 32 * n["n_layers"])
    told = (
        f"Skipping the image in the first {n['n_shallow']} layers moves the most visual step of an answer by "
        f"{visual['shallow']:.2g nats}; withdrawing it from layer {deep} on, by {visual['withdrawn'][deep]:.2g nats}."
    )
    prompt_told = "At the end of the prompt, where the methods look, hiding the whole image moves"
    return Finding(told, f"{told} {prompt_told} {prompt['effect']:.2g nats}.")
