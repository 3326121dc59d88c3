"""Does attention meet the object that a step names? Answered on scenes, where the truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.attention import coverage, relevance_hit
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.studies.step_dependence.measure import masses_of, mean_over_samples, rows_of
from visionpulse_analysis.testbed.scenes.scene import Scene
from visionpulse_analysis.testbed.scenes.truth import annotate, object_patches
from visionpulse_analysis.testbed.truth import SHOWN_KINDS, kinds_said, parts_said
from visionpulse_analysis.traces import Trace


@dataclass(frozen=True)
class ObjectAttention:
    """Results over scenes, by kind of the token that a step produces; intervals resample scenes."""

    layer: int
    # mass, text_share: image mass, and share of the steps with less of it than ``text_below``
    mass: dict[str, Estimate]
    text_share: dict[str, Estimate]
    # Share of the step's image mass on the cell of the object that the step names
    share: dict[str, Estimate]
    hit: dict[str, Estimate]  # how often the patch with the most attention lies in that cell
    # ``share`` for the scene's other objects, mean of one: what any object draws, named or not. Without the kinds that
    # occur only in scenes of a single object.
    other: dict[str, Estimate]
    # ``share`` and ``other`` at a confidence that makes 95 % for all kinds together
    together: dict[str, tuple[Estimate, Estimate]]
    # share_named, hit_named, other_named: the same over all steps that name an object; ``other_named`` is None where
    # every scene holds a single one
    share_named: Estimate
    hit_named: Estimate
    other_named: Estimate | None
    chance: float  # share of the patches that lie in the cell: what even attention gives ``share`` and ``hit``
    layers: list[int]
    by_layer: np.ndarray  # float64 [kind, layer]: ``share`` at every recorded layer, in the order of ``share``
    unknown: float  # share of the naming steps left out, because what they name is not in the scene

    def numbers(self) -> dict[str, Any]:
        """Headline numbers, JSON-ready."""
        named = {name: getattr(self, name) for name in ("chance", "unknown", "share_named", "hit_named", "other_named")}
        return as_json(named | {f"{name}_by_kind": getattr(self, name) for name in ("mass", "share", "hit")})


def object_attention(
    traces: Sequence[Trace],
    samples: Sequence[Sample],
    layer: int,
    *,
    text_below: float = 0.5,
    n_resamples: int = 1000,
) -> ObjectAttention | None:
    """Measure how much of each step's image mass lies on the object that the step names.

    Returns None where no truth is known: no sample has a scene, or no trace names an object of its scene. Raises
    ValueError: not as many traces as samples; IndexError: the layer was not recorded.

    Parameters
    ----------
    traces, samples : aligned
    layer : model index of a recorded layer
    text_below : a step with less image mass than this is called text-dominated
    """
    if len(traces) != len(samples):
        raise ValueError(f"{len(traces)} traces and {len(samples)} samples: expected one trace per sample")
    known = [_known(trace, sample, layer) for trace, sample in zip(traces, samples, strict=True) if sample.scene]
    if not any(one["named"].any() for one in known):
        return None

    def mean(columns: list[np.ndarray], of: int = 1) -> Estimate:
        return mean_over_samples(columns, n_resamples * of, unit="scene", confidence=1 - 0.05 / of)

    def by_kind(column: str, kinds: Sequence[str], of: int = 1) -> dict[str, Estimate]:
        return {kind: mean([one[column][one["kind"] == kind] for one in known], of) for kind in kinds}

    def over_named(column: str) -> Estimate:
        return mean([one[column][one["named"]] for one in known])

    def occurs(kind: str, column: str) -> bool:
        return any(np.isfinite(one[column][one["kind"] == kind]).any() for one in known)

    for one in known:
        one["text"] = (one["mass"] < text_below).astype(float)
    all_kinds = [kind for kind in SHOWN_KINDS if occurs(kind, "mass")]
    naming = [kind for kind in SHOWN_KINDS if occurs(kind, "share")]
    beside_others = [kind for kind in naming if occurs(kind, "other")]
    wide = {column: by_kind(column, beside_others, 2 * len(beside_others)) for column in ("share", "other")}
    layers = traces[0].layers
    of_kind = [np.concatenate([one["by_layer"][one["kind"] == kind] for one in known]) for kind in naming]
    about = np.concatenate([one["named"] | one["unknown"] for one in known])
    return ObjectAttention(
        layer=layer,
        mass=by_kind("mass", all_kinds),
        text_share=by_kind("text", all_kinds),
        share=by_kind("share", naming),
        hit=by_kind("hit", naming),
        other=by_kind("other", beside_others),
        together={kind: (wide["share"][kind], wide["other"][kind]) for kind in beside_others},
        share_named=over_named("share"),
        hit_named=over_named("hit"),
        other_named=over_named("other") if beside_others else None,
        chance=float(np.concatenate([one["chance"][one["named"]] for one in known]).mean()),
        layers=layers,
        by_layer=np.array([np.nanmean(values, axis=0) for values in of_kind]),
        unknown=float(np.concatenate([one["unknown"] for one in known]).sum() / about.sum()),
    )


def named_objects(trace: Trace, sample: Sample) -> list[int | None]:
    """Index of the scene's object that each step names, or None; all None where a picture has no numbered objects."""
    if not isinstance(sample.scene, Scene):
        return [None] * len(trace)
    return [truth.object for truth in annotate(sample.scene, trace.tokens)]


def _known(trace: Trace, sample: Sample, layer: int) -> dict[str, np.ndarray]:
    """Everything by step of one trace; NaN where a step names no object of the scene."""
    scene = sample.scene
    if scene is None:
        raise ValueError(f"sample {sample.id!r} has no scene, so no truth")
    kind = np.array(kinds_said(scene, sample.truth, trace.tokens))
    target = parts_said(scene, sample.truth, trace.tokens, trace.grid)
    named, rows = np.asarray(target.any(axis=1)), rows_of(trace, layer)
    relevance = relevance_hit(rows, target)
    # What stands on a chart overlaps, so that others cannot be told from what is named.
    where = object_patches(scene, trace.grid) if isinstance(scene, Scene) else target[:0]
    n_others = max(0, len(where) - 1)
    on_objects = coverage(rows[:, None], where[None]).sum(axis=1) if n_others else np.full(len(rows), np.nan)
    # All layers at once: a stored trace is read from disk again at every access.
    attention = trace.attention.values
    attention = attention if trace.heads is None else attention.astype(np.float32).mean(axis=2)
    return {
        "kind": kind,
        "named": named,
        "unknown": ~named & np.isin(kind, ("colour", "shape", "row", "column")),
        "mass": masses_of(trace, layer),
        "share": relevance.share,
        "hit": relevance.hit,
        "chance": relevance.chance_share,
        "other": (on_objects - relevance.share) / max(n_others, 1),
        "by_layer": np.where(named[:, None], coverage(attention, target[:, None]), np.nan),
    }
