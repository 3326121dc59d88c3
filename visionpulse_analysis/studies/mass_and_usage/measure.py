"""Does visual attention mass predict how many patches are used? Three meanings of "used", each beside its null.

What steps need is asked twice: over all steps, most of which need nothing, and over those that need the image. Only the
second can tell whether steps with more mass need more; the first mostly tells steps about the image from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from visionpulse_analysis.metrics.attention import (
    PAPER_THRESHOLDS,
    UNIFORM_MULTIPLES,
    active_count,
    effective_count,
    participation_ratio,
    patches_for_share,
)
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import (
    Estimate,
    Null,
    correlation,
    exchange_null,
    shape_permutation_null,
)
from visionpulse_analysis.studies.mass_and_usage.causal_usage import ORDERS, CausalUsage
from visionpulse_analysis.studies.step_dependence.measure import rows_of, share_over_samples
from visionpulse_analysis.traces import Trace

SHAPES = ("participation ratio", "2^entropy", "patches for 90 % of mass")
KINDS: tuple[Literal["pooled"], Literal["within"]] = ("pooled", "within")
BLIND = "KL of seeing nothing (nats)"


@dataclass(frozen=True)
class Relation:
    """How a step's mass goes with one kind of usage of its attention: Pearson r over all steps, and within samples.

    The nulls are shape permutations inside each sample; None where 0 is the null, because the usage does not depend
    on the mass by construction. Then `together` is the interval of `within` at a confidence that makes 95 % for all
    such usages of a study together.
    """

    name: str
    pooled: Estimate
    within: Estimate
    pooled_null: Null | None = None
    within_null: Null | None = None
    together: Estimate | None = None

    @property
    def nulls(self) -> dict[str, Null]:
        """Those that there are, by kind."""
        known = {"pooled": self.pooled_null, "within": self.within_null}
        return {kind: null for kind, null in known.items() if null is not None}


@dataclass(frozen=True)
class Need:
    """How a step's mass goes with one measure of its need: Pearson r within samples, over the steps after prefill."""

    name: str  # of the measure; a number of patches is an upper bound in an `order`, see :class:`CausalUsage`
    order: str | None
    level: float  # nats; a step needs the image where seeing nothing moves it by more
    every: Estimate  # over all steps that the measure is known for, `n_every` of them
    needing: Estimate  # over those of them that need the image, `n_needing`
    together: Estimate  # the interval of `needing` at a confidence that makes 95 % for all measures of a study together
    # every_null, needing_null: masses exchanged between steps of a sample that are alike in needing the image or not
    every_null: Null
    needing_null: Null
    n_every: int
    n_needing: int


@dataclass(frozen=True)
class MassUsage:
    """Results over samples; every interval resamples samples, never steps."""

    layer: int
    levels: tuple[float, ...]
    n_patches: list[int]
    thresholds: tuple[float, ...]  # of ``paper``, in units of attention
    # paper, multiples: active counts at these thresholds, and at multiples of the uniform level 1/n
    paper: list[Relation]
    multiples: list[Relation]
    # Scale-free usage: the number of patches that the *normalised* row amounts to, in three ways
    shapes: list[Relation]
    # The KL when no patch is visible, which has no threshold; then patches needed, for every order and level. Empty
    # when they were not measured.
    needs: list[Need]
    need_image: dict[float, Estimate]  # share of the steps after prefill that need the image
    # [step]: All of the above and ``mass``, steps of all samples in a row; NaN where undefined
    columns: dict[str, np.ndarray]
    sample: np.ndarray  # int64 [step]: the sample of each step
    # Share of the steps after prefill that need no more than this share of the patches, in the anchor's order
    enough: dict[float, Estimate]
    # Share of the steps that need the image at which twice the patches needed also pass, in the anchor's order
    steady: float

    def numbers(self) -> dict[str, Any]:
        """Headline numbers, JSON-ready."""
        relations = [*self.paper, *self.multiples, *self.shapes]
        return as_json(
            {
                "layer": self.layer,
                "levels": self.levels,
                "n_samples": len(np.unique(self.sample)),
                "n_steps": len(self.sample),
                "r": {r.name: {"pooled": r.pooled, "within": r.within, "null": r.nulls or None} for r in relations},
                "needs": self.needs,
                "need_image": {f"{level:g}": interval for level, interval in self.need_image.items()},
                "enough": {f"{share:g}": interval for share, interval in self.enough.items()},
                "steady": self.steady,
            }
        )


def mass_usage(
    traces: Sequence[Trace],
    layer: int,
    usage: Sequence[CausalUsage] = (),
    *,
    thresholds: Sequence[float] = PAPER_THRESHOLDS,
    shares: Sequence[float] = (0.05, 0.1),
    n_resamples: int = 1000,
    n_permutations: int = 200,
    seed: int = 0,
) -> MassUsage:
    """Correlate each step's visual attention mass with the number of patches it uses.

    Raises ValueError: no trace is given, ``usage`` does not belong to the traces or is not at the same levels, or a
    threshold is not above 0 or given twice; IndexError: the layer was not recorded.

    Parameters
    ----------
    traces : dense, one per sample
    layer : model index of a recorded layer
    usage : of the same traces, from ``causal_usage``; optional
    thresholds : of the active count, above 0, in units of attention
    shares : of the patches, for ``enough``
    """
    if not len(traces) or (len(usage) and [len(u.blind_kl) + 1 for u in usage] != [len(t) for t in traces]):
        raise ValueError(
            f"{len(traces)} traces with usage of {len(usage)}: expected at least one trace, and usage of all or none"
        )
    if not len(thresholds) or len({*thresholds}) < len(thresholds) or not all(0 < t < 1 for t in thresholds):
        raise ValueError(f"thresholds are shares of attention between 0 and 1, each once; got {list(thresholds)}")
    if len({u.levels for u in usage}) > 1:
        raise ValueError(f"usage at different levels: {sorted({u.levels for u in usage})}; measure it at the same ones")
    levels = usage[0].levels if len(usage) else ()
    rows = [rows_of(trace, layer).astype(np.float64) for trace in traces]
    sample = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    columns = {"mass": _joined(rows, lambda row: row.sum(-1))}

    def related(name: str, values: np.ndarray, **null: Any) -> Relation:
        columns[name] = values
        defined = np.isfinite(values)
        x, y, owner = columns["mass"][defined], values[defined], sample[defined]
        r = {kind: correlation(x, y, owner, kind=kind, n_resamples=n_resamples) for kind in KINDS}
        if not null:
            wider = 1 - 0.05 / len(SHAPES)
            together = correlation(x, y, owner, kind="within", n_resamples=n_resamples, confidence=wider)
            return Relation(name, r["pooled"], r["within"], together=together)
        bands = {
            kind: shape_permutation_null(rows, kind=kind, n_permutations=n_permutations, seed=seed, **null)
            for kind in KINDS
        }
        return Relation(name, r["pooled"], r["within"], bands["pooled"], bands["within"])

    def counted(name: str, threshold: float, relative: bool) -> Relation:
        counts = _joined(rows, lambda row: active_count(row, threshold, relative=relative))
        return related(name, counts, threshold=threshold, relative=relative)

    causal = _causal_columns(usage)
    columns |= {name: values for name, (_, _, values) in causal.items()}

    def need(name: str, order: str | None, level: float, values: np.ndarray) -> Need:
        needs_image = columns[BLIND] > level
        known = np.isfinite(values)
        options = {"kind": "within", "n_resamples": n_resamples}

        def r(steps: np.ndarray, **more: Any) -> Estimate:
            if not steps.any():
                return Estimate(np.nan, np.nan, np.nan, 0, n_resamples, 0.95, "no step")
            return correlation(columns["mass"][steps], values[steps], sample[steps], **options, **more)

        def null(steps: np.ndarray) -> Null:
            if not steps.any():
                return Null(np.nan, np.nan, np.nan, np.nan, np.nan, n_permutations)
            given = columns["mass"][steps], values[steps], sample[steps], needs_image[steps]
            return exchange_null(*given, n_permutations=n_permutations, seed=seed)

        both = known & needs_image
        together = r(both, confidence=1 - 0.05 / len(causal)) if both.any() else r(both)
        return Need(
            name, order, level, r(known), r(both), together, null(known), null(both), int(known.sum()), int(both.sum())
        )

    measures = zip(SHAPES, (participation_ratio, effective_count, patches_for_share), strict=True)
    return MassUsage(
        layer=layer,
        levels=levels,
        n_patches=sorted({row.shape[-1] for row in rows}),
        thresholds=tuple(thresholds),
        paper=[counted(f"above {threshold:g}", threshold, False) for threshold in thresholds],
        multiples=[counted(f"above {multiple:g}/n", multiple, True) for multiple in UNIFORM_MULTIPLES],
        shapes=[related(name, _joined(rows, measure)) for name, measure in measures],
        needs=[need(name, *measure) for name, measure in causal.items()],
        need_image={level: share_over_samples([u.blind_kl > level for u in usage]) for level in levels},
        columns=columns,
        sample=sample,
        enough={
            share: share_over_samples([u.needed[ORDERS[0]][0] <= share * u.n_patches for u in usage])
            for share in (shares if len(usage) else ())
        },
        steady=_steady(usage),
    )


def needed_name(order: str, level: float) -> str:
    """The name of a number of patches needed, which is an upper bound."""
    return f"needed at most, {order}, {level:g} nats"


def _causal_columns(usage: Sequence[CausalUsage]) -> dict[str, tuple[str | None, float, np.ndarray]]:
    """Name -> order, level and values by step, NaN at prefill and where not known; empty without measurements."""
    if not len(usage):
        return {}
    levels, found = usage[0].levels, {}
    found[BLIND] = (None, levels[0], np.concatenate([np.append(np.nan, u.blind_kl) for u in usage]))
    for order in (order for order in ORDERS if any(order in u.needed for u in usage)):
        for place, level in enumerate(levels):
            parts = [np.append(np.nan, u.needed[order][place]) if order in u.needed else
                     np.full(len(u.blind_kl) + 1, np.nan) for u in usage]  # fmt: skip
            found[needed_name(order, level)] = (order, level, np.concatenate(parts))
    return found


def _steady(usage: Sequence[CausalUsage]) -> float:
    examined = [u.steady[u.blind_kl > u.levels[0]] for u in usage]
    return float(np.concatenate(examined).mean()) if sum(map(len, examined)) else float("nan")


def _joined(rows: list[np.ndarray], measure: Any) -> np.ndarray:
    return np.concatenate([np.asarray(measure(row), dtype=np.float64) for row in rows])
