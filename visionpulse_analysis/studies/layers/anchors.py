"""Which anchor layers would do? Each candidate's choice of patches against random ones, none, and what matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionpulse_analysis.decoding.interventions.single_steps import SingleSteps, keep_exactly, keep_top
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.studies.mass_and_usage.causal_usage import smallest_k
from visionpulse_analysis.studies.step_dependence.measure import mean_over_samples
from visionpulse_analysis.traces import Trace

BLOCK = 2  # patches: a removal hides a square of this side


@dataclass(frozen=True)
class Anchors:
    """Results by candidate anchor layer, over the steps that read the image; intervals resample samples.

    A step *reads the image* if hiding all patches in every layer moves its next-token distribution by more than
    ``level`` nats. Its *relevant set* are the squares of 2 x 2 patches whose removal, one at a time and in every layer,
    moves the distribution most; as many as hold the ``fraction`` of the patches, at least one.
    """

    # The candidates, of ``n_layers``; ``default`` is the model's own anchor. From a candidate on, and in that step
    # alone, all but some patches are hidden:
    layers: list[int]
    n_layers: int
    default: int
    fraction: float
    level: float
    # top, random, none: [layer]: share of the steps whose most probable token changes, when the ``fraction`` with the
    # highest head-mean logits at that layer stays visible, a random set of that size, or nothing. ``none`` falls where
    # the reading is done.
    top: list[Estimate]
    random: list[Estimate]
    none: list[Estimate]
    # top_kl, random_kl: [layer]: mean KL(dense || pruned), nats
    top_kl: list[Estimate]
    random_kl: list[Estimate]
    gain: list[Estimate]  # [layer]: ``random - top``, paired by step: what choosing is worth
    # [layer]: Smallest share of the patches, by that layer's ranking, that stays within ``level`` nats
    needed: list[Estimate]
    # [layer]: Share of the relevant set inside the layer's top set; ``overlap_null`` : of a random set
    overlap: list[Estimate]
    overlap_null: float
    reading: Estimate  # share of the steps after prefill that read the image
    # ``top``, ``gain`` and ``none`` again, with wider intervals: those of one name hold at all layers together at 95 %
    # (Bonferroni), so that layers may be picked by them
    together: dict[str, list[Estimate]]

    def suitable(self, tolerance: float = 0.05) -> list[int]:
        """Layers that would do: their choice changes at most ``tolerance`` of the tokens, and beats a random one.

        Both by the whole interval of ``together``; a layer without an interval is undecided.
        """
        return self._where(lambda top, gain: top.high <= tolerance and gain.low > 0)

    def unsuitable(self, tolerance: float = 0.05) -> list[int]:
        """Layers that would not do: by its whole interval, one of the two conditions of ``suitable`` fails."""
        return self._where(lambda top, gain: top.low > tolerance or gain.high <= 0)

    def _where(self, holds: Callable[[Estimate, Estimate], bool]) -> list[int]:
        """Layers of which the `top` and `gain` of ``together`` are so."""
        pairs = zip(self.layers, self.together["top"], self.together["gain"], strict=True)
        return [layer for layer, top, gain in pairs if holds(top, gain)]

    def undecided(self, tolerance: float = 0.05) -> list[int]:
        """Layers of which these samples cannot tell whether they would do."""
        decided = {*self.suitable(tolerance), *self.unsuitable(tolerance)}
        return [layer for layer in self.layers if layer not in decided]

    def numbers(self) -> dict[str, Any]:
        """Headline numbers, JSON-ready."""
        told = {name: value for name, value in vars(self).items() if name not in ("n_layers", "together")}
        return as_json(told | {"suitable": self.suitable(), "undecided": self.undecided()})


def compare_anchors(
    vlm: VLM,
    traces: Sequence[Trace],
    layers: Sequence[int],
    *,
    fraction: float = 0.05,
    level: float = 0.05,
    most_steps: int = 12,
    seed: int = 0,
    n_resamples: int = 1000,
) -> Anchors:
    """Prune single steps at every candidate anchor layer, and compare with what the steps depend on.

    Raises ValueError: if no layer or trace is given, or no step reads the image; or as :class:`SingleSteps`.

    Parameters
    ----------
    traces : dense
    layers : candidates
    fraction : of the patches that stay visible, in (0, 1]
    level : KL in nats that counts as a change, above 0
    most_steps : per trace, evenly spaced among the steps that read the image
    """
    if not len(layers) or not len(traces) or most_steps < 1 or not 0 < fraction <= 1:
        raise ValueError(
            f"{len(layers)} layers, {len(traces)} traces, most_steps {most_steps}, fraction {fraction}: expected at "
            "least one of each, and a fraction in (0, 1]"
        )
    found: dict[str, list[np.ndarray]] = {}
    reading, null = [], []
    for number, trace in enumerate(traces):
        replay = SingleSteps.of(vlm, trace)
        reads = replay.run(replay.steps, 0, keep_exactly(_nothing(replay, replay.steps))).kl > level
        reading.append(reads)
        steps = replay.steps[reads]
        if len(steps) > most_steps:
            steps = steps[np.linspace(0, len(steps) - 1, most_steps).round().astype(int)]
        if len(steps):
            rng = np.random.default_rng([seed, number])
            relevant = relevant_patches(replay, trace.grid, steps, fraction)
            for name, values in _one_trace(replay, steps, relevant, layers, fraction, level, rng).items():
                found.setdefault(name, []).append(values)
            null.append(max(1, int(fraction * replay.n_patches)) / replay.n_patches)
    if not null:
        raise ValueError(
            f"no step reads the image: hiding it moves no next-token distribution by more than {level} nats; "
            "lower the level or use another model"
        )
    summary = {
        name: [mean_over_samples([v[i] for v in values], n_resamples) for i in range(len(layers))]
        for name, values in found.items()
    }
    confidence = 1 - 0.05 / len(layers)
    together = {
        name: [
            mean_over_samples([v[i] for v in found[name]], n_resamples * len(layers), confidence=confidence)
            for i in range(len(layers))
        ]
        for name in ("top", "gain", "none")
    }
    return Anchors(
        layers=list(layers),
        n_layers=vlm.n_layers,
        default=vlm.default_anchor,
        fraction=fraction,
        level=level,
        overlap_null=float(np.mean(null)),
        reading=mean_over_samples([r.astype(float) for r in reading], n_resamples),
        together=together,
        **summary,
    )


def relevant_patches(replay: SingleSteps, grid: PatchGrid, steps: np.ndarray, fraction: float) -> np.ndarray:
    """The squares of patches that single steps depend on most: bool [step, patch].

    Each square of 2 x 2 patches is hidden alone, in every layer of that step; the squares with the largest KL are
    marked, ``fraction`` of all squares rounded down and at least one, ties by index.
    """
    square = squares(grid)
    n = int(square.max()) + 1
    kept = np.tile(square[None] != np.arange(n)[:, None], (len(steps), 1))  # [step * square, patch]
    kl = replay.run(np.repeat(steps, n), 0, keep_exactly(kept)).kl.reshape(len(steps), n)
    worst = np.argsort(-kl, axis=1, kind="stable")[:, : max(1, int(fraction * n))]
    return (square[None, None] == worst[:, :, None]).any(axis=1)


def squares(grid: PatchGrid) -> np.ndarray:
    """Number of the square of 2 x 2 patches that each patch belongs to: int [patch], 0, 1, ..."""
    place = np.stack([grid.image, grid.frame, grid.row // BLOCK, grid.col // BLOCK])
    return np.unique(place, axis=1, return_inverse=True)[1].ravel()


def _one_trace(
    replay: SingleSteps,
    steps: np.ndarray,
    relevant: np.ndarray,
    layers: Sequence[int],
    fraction: float,
    level: float,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Everything that is compared, each [layer, step]: float64, and bool where it is yes or no."""
    k = max(1, int(fraction * replay.n_patches))
    drawn = np.argsort(rng.random((len(steps), replay.n_patches)), axis=1) < k
    rows: dict[str, list[np.ndarray]] = {}
    for layer in layers:
        top = replay.run(steps, layer, keep_top(k))
        random = replay.run(steps, layer, keep_exactly(drawn))
        none = replay.run(steps, layer, keep_exactly(_nothing(replay, steps)))
        values = {
            "top": top.changed,
            "random": random.changed,
            "none": none.changed,
            "top_kl": top.kl,
            "random_kl": random.kl,
            "gain": random.changed.astype(float) - top.changed,
            "needed": smallest_k(replay, layer, level, steps) / replay.n_patches,
            "overlap": (relevant & top.kept).sum(axis=1) / relevant.sum(axis=1),
        }
        for name, value in values.items():
            rows.setdefault(name, []).append(value)
    return {name: np.array(value) for name, value in rows.items()}


def _nothing(replay: SingleSteps, steps: np.ndarray) -> np.ndarray:
    return np.zeros((len(steps), replay.n_patches), dtype=bool)
