"""Where pruned traces leave the dense ones: tokens side by side, the first difference, and the kind of token there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.explorer.pairing import Alignment, align
from visionpulse_analysis.figures import DOUBLE
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Estimate, proportion_interval
from visionpulse_analysis.testbed.truth import kinds_said

ROWS = 10  # of the tokens of a long trace


@dataclass(frozen=True)
class Comparison:
    """The tokens of one sample, dense and pruned."""

    dense: list[str]
    pruned: list[str]
    alignment: Alignment  # columns of both

    @property
    def divergence(self) -> int | None:
        """First step at which the two differ (or at which only one goes on), None when they are equal."""
        return self.alignment.divergence  # the columns before it hold a token of each, so its column is its step

    @property
    def alone_dense(self) -> list[int]:
        """Steps whose token the pruned trace does not have at that place."""
        return [a for a, b in zip(self.alignment.first, self.alignment.second, strict=True) if b < 0]

    @property
    def alone_pruned(self) -> list[int]:
        """The same of the pruned trace."""
        return [b for a, b in zip(self.alignment.first, self.alignment.second, strict=True) if a < 0]


def compare_tokens(dense: Sequence[str], pruned: Sequence[str]) -> Comparison:
    """Align two traces token by token.

    Examples
    --------
    >>> found = compare_tokens("see red star".split(), "see blue star .".split())
    >>> found.divergence, found.alone_dense, found.alone_pruned
    (1, [1], [1, 3])
    """
    return Comparison(list(dense), list(pruned), align(list(dense), list(pruned)))


@dataclass(frozen=True)
class Divergences:
    """Where pruned traces first leave the dense ones, over samples."""

    equal: Estimate  # share of the traces that never do
    steps: np.ndarray  # int [diverging sample], the first step that differs
    at_kind: dict[str, Estimate]  # kind of the dense token there -> share of the diverging traces (scenes only)
    # The same shares among all dense tokens, what would be expected if any token could be the first
    all_kinds: dict[str, float]

    def numbers(self) -> dict[str, Any]:
        """Headline numbers, JSON-ready."""
        return {
            "equal": self.equal.to_json(),
            "median_first_difference": float(np.median(self.steps)) if len(self.steps) else None,
            "at_kind": as_json(self.at_kind),
            "all_kinds": self.all_kinds,
        }


def first_divergences(
    dense: Sequence[Sequence[str]], pruned: Sequence[Sequence[str]], samples: Sequence[Sample]
) -> Divergences:
    """Find the first difference of every pair of traces, and what kind of token the dense trace has there."""
    found = [align(list(a), list(b)).divergence for a, b in zip(dense, pruned, strict=True)]
    apart = {number: step for number, step in enumerate(found) if step is not None}
    at_kind: dict[str, Estimate] = {}
    all_kinds: dict[str, float] = {}
    scenes = [(sample.scene, sample.truth) for sample in samples if sample.scene is not None]
    if apart and len(scenes) == len(samples):
        kinds = [kinds_said(scene, question, a) for (scene, question), a in zip(scenes, dense, strict=True)]
        # A dense trace that has ended has no token there: only the pruned one goes on.
        first = [(kinds[number] + ["end"])[step] for number, step in apart.items()]
        together = [kind for of_sample in kinds for kind in of_sample]
        for kind in sorted(set(first), key=lambda kind: -first.count(kind)):
            at_kind[kind] = proportion_interval(np.array([k == kind for k in first]))
            all_kinds[kind] = together.count(kind) / len(together)
    equal = proportion_interval(np.array([step is None for step in found]))
    return Divergences(equal, np.array(list(apart.values()), dtype=int), at_kind, all_kinds)


def example_number(dense: Sequence[Sequence[str]], pruned: Sequence[Sequence[str]], wanted: int = -1) -> int:
    """Which sample to show: the wanted one, or with -1 the first whose traces differ (the first of all if none does).

    Raises IndexError when there is no such sample.
    """
    if not -1 <= wanted < len(dense):
        raise IndexError(f"sample {wanted} does not exist; there are {len(dense)}, and -1 chooses one")
    differ = [n for n, (a, b) in enumerate(zip(dense, pruned, strict=True)) if list(a) != list(b)]
    return wanted if wanted >= 0 else (differ[0] if differ else 0)


def strips_height(comparison: Comparison) -> list[float]:
    """Inches that the two token strips need on a page, titles included."""
    tokens = comparison.dense, comparison.pruned
    return [figures.token_strip_height(one, DOUBLE - 0.1, _first(comparison, one), ROWS) + 0.28 for one in tokens]


def _first(comparison: Comparison, tokens: Sequence[str]) -> list[int]:
    step = comparison.divergence
    return [] if step is None or step >= len(tokens) else [step]


def draw_strips(bands: Sequence[SubFigure], comparison: Comparison) -> list[Axes]:
    """Write the dense tokens over the pruned ones; those without a partner shaded, the first difference outlined."""
    found, axes = comparison, []
    shown = ("dense", found.dense, found.alone_dense), ("pruned", found.pruned, found.alone_pruned)
    for band, (name, tokens, alone) in zip(bands, shown, strict=True):
        with figures.style():
            ax = band.subplots()
            ax.set_title(f"{name}: {len(tokens)} tokens, {len(alone)} of them only here", loc="left")
        shade = np.isin(np.arange(len(tokens)), alone).astype(float)
        marked = {"marked_steps": _first(comparison, tokens), "most_rows": ROWS}
        figures.draw_token_strip(ax, tokens, shade, vmin=0, vmax=2, **marked)
        axes.append(ax)
    return axes


def divergence_figure(found: Divergences) -> Figure:
    """Draw at which step pruned traces leave the dense ones, and at what kind of token where that is known."""
    fig, axes = figures.new_figure(DOUBLE, 2.0, 1, 2 if found.at_kind else 1)
    first, *rest = np.atleast_1d(axes)
    if not len(found.steps):
        first.set(xlabel="first step that differs", ylabel="samples", xticks=[], yticks=[])
        with figures.style():
            first.set_title("no pruned trace differs from its dense one")
        figures.draw_caption(fig, f"n = {found.equal.n_values} pruned traces.")
        return fig
    # One bin per step as long as that can be read.
    edges = np.arange(-0.5, found.steps.max() + 1.5, max(1, found.steps.max() // 30))
    edges = np.append(edges, found.steps.max() + 0.5) if edges[-1] < found.steps.max() else edges
    figures.draw_histogram(first, found.steps, edges, xlabel="first step that differs", ylabel="samples")
    for ax in rest:
        by_chance = {
            "null_low": np.zeros(len(found.at_kind)),
            "null_high": np.array([found.all_kinds[kind] for kind in found.at_kind]),
            "null_label": "share among all tokens",
        }
        figures.draw_estimates(ax, found.at_kind, xlabel="share of first differences", **by_chance)
        figures.draw_legend(ax)
    return figures.finish(fig, axes, f"n = {found.equal.n_values} pruned traces, {len(found.steps)} of which differ.")
