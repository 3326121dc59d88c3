"""Dense and pruned tokens laid side by side, and where they part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.explorer.alignment import Alignment, align
from visionpulse_analysis.figures import DOUBLE
from visionpulse_analysis.metrics.statistics import Estimate, cluster_bootstrap, proportion_interval
from visionpulse_analysis.testbed.scenes.truth import annotate


@dataclass(frozen=True)
class Comparison:
    """The tokens of one sample, dense and pruned.

    alignment : columns of both, see `Alignment`. divergence : first step at which the two differ (or at which only one
    goes on), None when they are equal. alone_dense, alone_pruned : steps whose token the other trace does not have
    at that place.
    """

    dense: list[str]
    pruned: list[str]
    alignment: Alignment
    divergence: int | None
    alone_dense: list[int]
    alone_pruned: list[int]


def compare_tokens(dense: Sequence[str], pruned: Sequence[str]) -> Comparison:
    """Align two traces token by token.

    Examples
    --------
    >>> found = compare_tokens("see red star".split(), "see blue star .".split())
    >>> found.divergence, found.alone_dense, found.alone_pruned
    (1, [1], [1, 3])
    """
    found = align(list(dense), list(pruned))
    columns = list(zip(found.first, found.second, strict=True))
    return Comparison(
        list(dense),
        list(pruned),
        found,
        found.divergence,  # the columns before it hold a token of each, so its column is its step
        [first for first, second in columns if second < 0],
        [second for first, second in columns if first < 0],
    )


@dataclass(frozen=True)
class Divergences:
    """Where pruned traces first leave the dense ones, over samples.

    equal : share of the traces that never do. steps : int [diverging sample], the first step that differs.
    at_kind : kind of the dense token there -> share of the diverging traces (scenes only);
    all_kinds : the same shares among all dense tokens, what would be expected if any token could be the first.
    """

    equal: Estimate
    steps: np.ndarray
    at_kind: dict[str, Estimate]
    all_kinds: dict[str, float]

    def numbers(self) -> dict[str, Any]:
        """Headline numbers, JSON-ready."""
        return {
            "equal": self.equal.to_json(),
            "median_first_difference": float(np.median(self.steps)) if len(self.steps) else None,
            "at_kind": {kind: share.to_json() for kind, share in self.at_kind.items()},
            "all_kinds": self.all_kinds,
        }


def first_divergences(
    dense: Sequence[Sequence[str]], pruned: Sequence[Sequence[str]], samples: Sequence[Sample]
) -> Divergences:
    """Find the first difference of every pair of traces, and what kind of token the dense trace has there."""
    found = [compare_tokens(a, b) for a, b in zip(dense, pruned, strict=True)]
    apart = [number for number, one in enumerate(found) if one.divergence is not None]
    steps = np.array([found[number].divergence for number in apart], dtype=int)
    at_kind: dict[str, Estimate] = {}
    all_kinds: dict[str, float] = {}
    scenes = [sample.scene for sample in samples if sample.scene is not None]
    if apart and len(scenes) == len(samples):
        kinds = [[truth.kind for truth in annotate(scene, list(a))] for scene, a in zip(scenes, dense, strict=True)]
        # A dense trace that has ended has no token there: only the pruned one goes on.
        first = [(kinds[n] + ["end"])[step] for n, step in zip(apart, steps, strict=True)]
        together = [kind for of_sample in kinds for kind in of_sample]
        for kind in sorted(set(first), key=lambda kind: -first.count(kind)):
            at_kind[kind] = proportion_interval(np.array([k == kind for k in first]))
            all_kinds[kind] = together.count(kind) / len(together)
    return Divergences(
        proportion_interval(np.array([one.divergence is None for one in found])), steps, at_kind, all_kinds
    )


def example_number(dense: Sequence[Sequence[str]], pruned: Sequence[Sequence[str]], wanted: int = -1) -> int:
    """Which sample to show: the wanted one, or with -1 the first whose traces differ (the first of all if none does).

    Raises IndexError when there is no such sample.
    """
    if not -1 <= wanted < len(dense):
        raise IndexError(f"sample {wanted} does not exist; there are {len(dense)}, and -1 chooses one")
    differ = [n for n, (a, b) in enumerate(zip(dense, pruned, strict=True)) if list(a) != list(b)]
    return wanted if wanted >= 0 else (differ[0] if differ else 0)


def token_rows(comparison: Comparison) -> list[tuple[list[str], list[str]]]:
    """Both traces as lines of the same columns, a gap where one has no token; never empty."""
    rows = []
    for steps, tokens in (
        (comparison.alignment.first, comparison.dense),
        (comparison.alignment.second, comparison.pruned),
    ):
        rows.append([tokens[step] if step >= 0 else "" for step in steps])
    return list(zip(*rows, strict=True))


def strips_height(comparison: Comparison) -> list[float]:
    """Inches that the two token strips need on a page, titles included."""
    return [figures.token_strip_height(tokens, DOUBLE - 0.1) + 0.28 for tokens in (comparison.dense, comparison.pruned)]


def draw_strips(bands: Sequence[SubFigure], comparison: Comparison) -> None:
    """Write the dense tokens over the pruned ones; those without a partner shaded, the first difference outlined."""
    for band, name, tokens, alone in (
        (bands[0], "dense", comparison.dense, comparison.alone_dense),
        (bands[1], "pruned", comparison.pruned, comparison.alone_pruned),
    ):
        with figures.style():
            ax = band.subplots()
            ax.set_title(f"{name}: {len(tokens)} tokens, {len(alone)} of them only here", loc="left")
        first = comparison.divergence
        marked = [first] if first is not None and first < len(tokens) else []
        shade = np.isin(np.arange(len(tokens)), alone).astype(float)
        figures.draw_token_strip(ax, tokens, shade, vmin=0, vmax=2, marked_steps=marked)


def strips(comparison: Comparison) -> Figure:
    """The two token strips as a page of their own."""
    fig, bands = figures.new_page(DOUBLE, strips_height(comparison))
    draw_strips(bands, comparison)
    return fig


def mean_first_difference(divergences: Divergences) -> Estimate | None:
    """Mean first step that differs, over the traces that do; None when none does."""
    steps = divergences.steps
    return cluster_bootstrap(steps.astype(float), np.arange(len(steps)), method="studentized") if len(steps) else None
