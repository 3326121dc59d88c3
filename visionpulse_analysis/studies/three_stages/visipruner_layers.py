"""Which layers VisiPruner takes as filter and exit layer in each sample, and how many patches it leaves between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis._util.progress import over
from visionpulse_analysis.attention.prefill import Prefill
from visionpulse_analysis.decoding.interventions.passes import TeacherForced
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Estimate, proportion_interval
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.visipruner import VisiPruner
from visionpulse_analysis.studies.three_stages.measure import PLACES, Asked, over_samples
from visionpulse_analysis.studies.three_stages.report import sentence, side

NONE = -1


@dataclass(frozen=True)
class Chosen:
    """What VisiPruner does at one query of every sample."""

    n_layers: int
    # filter_layer, exit_layer: int64 [sample], NONE where there is none
    filter_layer: np.ndarray
    exit_layer: np.ndarray
    # Float64 [sample], share of the patches that the filter leaves, NaN without a filter layer or where it is the last
    # layer
    kept: np.ndarray
    changed: np.ndarray  # bool [sample], whether the next token is another one than dense

    def shares(self, confidence: float = 0.95) -> dict[str, Estimate]:
        """Shares of all samples: those with a filter layer, with an exit layer, and with another next token."""
        has = {"has_filter_layer": self.filter_layer != NONE, "has_exit_layer": self.exit_layer != NONE}
        shares = {**has, "changed": self.changed}
        return {name: proportion_interval(share, confidence=confidence) for name, share in shares.items()}

    def means(self) -> dict[str, Estimate | None]:
        """The shares, and means over the samples that have the value; None where none has."""
        found = {"filter_layer": self.filter_layer, "exit_layer": self.exit_layer}
        values = {name: np.where(layers == NONE, np.nan, layers) for name, layers in found.items()}
        values["kept"] = self.kept
        means = {name: over_samples(v) if np.isfinite(v).any() else None for name, v in values.items()}
        return {**self.shares(), **means}

    def numbers(self) -> dict[str, Any]:
        """The means, JSON-ready."""
        return as_json(self.means())


def choices(vlm: VLM, asked: Sequence[Asked], pruner: VisiPruner, *, batch_size: int = 16) -> list[Chosen]:
    """Run VisiPruner to the end of each prompt, and to each most visual step: one result per place."""
    return over(lambda place: _choose(vlm, asked, pruner, place, batch_size), range(len(PLACES)), "choose", "place")


def _choose(vlm: VLM, asked: Sequence[Asked], pruner: VisiPruner, place: int, batch_size: int) -> Chosen:
    parts = []
    for start in range(0, len(asked), batch_size):
        some = asked[start : start + batch_size]
        # VisiPruner judges by the last token of what it is given, so the passage ends at the query.
        prompts = [one.passage if place else vlm.prompt(one.sample.image, one.sample.question) for one in some]
        passages = TeacherForced(vlm, prompts, [[one.queries[place]] for one in some])
        under = passages.under(pruner)
        dense, pruned = passages.read(), passages.read(under)
        chosen: Any = under.selection
        layers = chosen.filter_layer.cpu().numpy()
        kept = [_share_left(passages, under.prefill, row, layer) for row, layer in enumerate(layers)]
        changed = pruned[:, 0].argmax(-1) != dense[:, 0].argmax(-1)
        parts.append((layers, chosen.exit_layer.cpu().numpy(), np.array(kept), changed))
    return Chosen(vlm.n_layers, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def _share_left(passages: TeacherForced, prefill: Prefill, row: int, layer: int) -> float:
    if layer in (NONE, len(prefill.kept) - 1):
        return float("nan")
    left = prefill.kept[layer + 1]
    return 1.0 if left is None else float(left[row].sum() / passages.layout.counts[row])


def choices_figure(chosen: Sequence[Chosen]) -> Figure:
    """Draw how often each layer is the filter and the exit layer; "none" at the right."""
    fig, axes = figures.new_figure(figures.DOUBLE, 2.4, 1, 2, sharey=True)
    n = chosen[0].n_layers
    edges = np.arange(n + 2) - 0.5
    for ax, name, label in ((axes[0], "filter_layer", "filter layer"), (axes[1], "exit_layer", "exit layer")):
        found = [getattr(one, name) for one in chosen]
        values = {place: np.where(v == NONE, n, v) for place, v in zip(PLACES, found, strict=True)}
        figures.draw_histogram(ax, values, edges, xlabel=label)
        step = -(-(n + 1) // 12)
        ax.set_xticks([*range(0, n, step), n], [*map(str, range(0, n, step)), "none"])
    return figures.finish(fig, axes, f"n = {len(chosen[0].filter_layer):,} samples at each place.", legend=True)


def choices_table(chosen: Sequence[Chosen]) -> pd.DataFrame:
    """VisiPruner's choices beside what the paper reports for LLaVA-1.5-7B; layers are counted from 0."""
    n = chosen[0].n_layers
    rows = {
        "samples with a filter layer": ("has_filter_layer", "not reported", ".1%"),
        "mean filter layer": ("filter_layer", "not reported", f".1f of {n}"),
        "patches that it leaves": ("kept", "10.3 of 576 (1.8 %)", ".1%"),
        "samples with an exit layer": ("has_exit_layer", "not reported", ".1%"),
        "mean exit layer": ("exit_layer", "23.9 of 32", f".1f of {n}"),
        "next tokens changed": ("changed", "average score 63.8 to 61.9", ".1%"),
    }
    found = [one.means() for one in chosen]
    table = {
        label: [paper, *("none" if means[name] is None else f"{means[name]:{form}}" for means in found)]
        for label, (name, paper, form) in rows.items()
    }
    return pd.DataFrame.from_dict(table, orient="index", columns=["paper (LLaVA-1.5-7B)", *PLACES])


def choices_verdicts(chosen: Sequence[Chosen], most_changed: float = 0.1) -> str:
    """What of the filter and the exit shows at the most visual step, as Markdown.

    most_changed : a filter that changes clearly fewer next tokens than this does its work
    """
    shares, kept = chosen[1].shares(), chosen[1].means()["kept"]
    together = chosen[1].shares(1 - 0.05 / 2)  # two sentences: what decides holds for both together
    changed, exits = shares["changed"], shares["has_exit_layer"]
    filters = sentence(
        f"That one filter layer is enough (found in {shares['has_filter_layer']:.1%} of the samples; it leaves "
        f"{'none' if kept is None else f'{kept:.1%}'} of the patches and changes {changed:.1%} of the next tokens)",
        side(together["changed"], most_changed),
        below="transfers",
        above="does not transfer with these thresholds",
    )
    exit_layers = sentence(
        f"That the image can go at an exit layer (found in {exits:.1%} of the samples)",
        side(together["has_exit_layer"], 0.5),
        below="does not transfer: most samples have none",
        above="transfers: most samples have one",
    )
    return f"- {filters}\n- {exit_layers}"


def choices_numbers(chosen: Sequence[Chosen]) -> dict[str, Any]:
    """Headline numbers by place, JSON-ready."""
    return {place: one.numbers() for place, one in zip(PLACES, chosen, strict=True)}
