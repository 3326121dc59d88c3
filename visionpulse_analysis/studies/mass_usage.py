"""Does visual attention mass predict how many patches are used? Three meanings of "used", each beside its null."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from visionpulse_analysis.measures import (
    PAPER_THRESHOLDS,
    UNIFORM_MULTIPLES,
    active_count,
    effective_count,
    participation_ratio,
    patches_for_share,
)
from visionpulse_analysis.statistics import Interval, ShapeNull, correlation, shape_permutation_null
from visionpulse_analysis.studies.causal_usage import CausalUsage
from visionpulse_analysis.studies.step_dependence import mean_over_samples, rows_of
from visionpulse_analysis.traces import Trace

SHAPES = ("participation ratio", "2^entropy", "patches for 90 % of mass")
KINDS: tuple[Literal["pooled"], Literal["within"]] = ("pooled", "within")
CAUSAL = ("patches needed", "cost of seeing none (nats)")


@dataclass(frozen=True)
class Relation:
    """How a step's mass goes with one kind of usage: Pearson r over all steps, and within samples.

    The nulls are shape permutations inside each sample; None where 0 is the null, because the usage does not depend
    on the mass by construction.
    """

    name: str
    pooled: Interval
    within: Interval
    pooled_null: ShapeNull | None = None
    within_null: ShapeNull | None = None


@dataclass(frozen=True)
class MassUsage:
    """Results over samples; every interval resamples samples, never steps.

    Attributes
    ----------
    thresholds : tuple of float
        Of ``paper``, in units of attention.
    paper, multiples : list of Relation
        Active counts at these thresholds, and at multiples of the uniform level 1/n.
    shapes : list of Relation
        Scale-free usage: the number of patches that the *normalised* row amounts to, in three ways.
    causal : list of Relation
        Patches needed, and the KL when no patch is visible; empty when they were not measured.
    columns : dict of name -> float64 [step]
        All of the above and ``mass``, steps of all samples in a row; NaN where undefined.
    sample : int64 [step]
        The sample of each step.
    enough : dict of share -> Interval
        Share of the steps after prefill that need no more than this share of the patches.
    steady : float
        Share of the steps after prefill at which twice the patches needed also pass.
    """

    layer: int
    level: float
    n_patches: list[int]
    thresholds: tuple[float, ...]
    paper: list[Relation]
    multiples: list[Relation]
    shapes: list[Relation]
    causal: list[Relation]
    columns: dict[str, np.ndarray]
    sample: np.ndarray
    enough: dict[float, Interval]
    steady: float

    def numbers(self) -> dict[str, Any]:
        """Headline numbers, JSON-ready."""
        relations = [*self.paper, *self.multiples, *self.shapes, *self.causal]
        return {
            "layer": self.layer,
            "level": self.level,
            "n_samples": len(np.unique(self.sample)),
            "n_steps": len(self.sample),
            "r": {
                r.name: {"pooled": r.pooled.to_dict(), "within": r.within.to_dict(), "null": _band(r)}
                for r in relations
            },
            "enough": {f"{share:g}": interval.to_dict() for share, interval in self.enough.items()},
            "steady": _or_none(self.steady),
        }


def mass_usage(
    traces: Sequence[Trace],
    layer: int,
    usage: Sequence[CausalUsage] = (),
    *,
    level: float = float("nan"),
    thresholds: Sequence[float] = PAPER_THRESHOLDS,
    shares: Sequence[float] = (0.05, 0.1),
    n_resamples: int = 1000,
    n_permutations: int = 200,
    seed: int = 0,
) -> MassUsage:
    """Correlate each step's visual attention mass with the number of patches it uses.

    Parameters
    ----------
    traces : dense, one per sample
    layer : model index of a recorded layer
    usage : of the same traces, from ``causal_usage`` at ``level`` nats; optional
    thresholds : of the active count, above 0, in units of attention
    shares : of the patches, for ``enough``

    Raises
    ------
    ValueError
        No trace is given, ``usage`` does not belong to the traces, or a threshold is not above 0 or given twice.
    IndexError
        The layer was not recorded.
    """
    if not len(traces) or (len(usage) and [len(u.needed) + 1 for u in usage] != [len(t) for t in traces]):
        raise ValueError(
            f"{len(traces)} traces with usage of {len(usage)}: expected at least one trace, and usage of all or none"
        )
    if not len(thresholds) or len({*thresholds}) < len(thresholds) or not all(0 < t < 1 for t in thresholds):
        raise ValueError(f"thresholds are shares of attention between 0 and 1, each once; got {list(thresholds)}")
    rows = [rows_of(trace, layer).astype(np.float64) for trace in traces]
    sample = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    columns = {"mass": _joined(rows, lambda row: row.sum(-1))}

    def related(name: str, values: np.ndarray, **null: Any) -> Relation:
        columns[name] = values
        defined = np.isfinite(values)
        x, y, owner = columns["mass"][defined], values[defined], sample[defined]
        r = {kind: correlation(x, y, owner, kind=kind, n_resamples=n_resamples) for kind in KINDS}
        bands = {
            kind: shape_permutation_null(rows, kind=kind, n_permutations=n_permutations, seed=seed, **null)
            for kind in (KINDS if null else ())
        }
        return Relation(name, r["pooled"], r["within"], bands.get("pooled"), bands.get("within"))

    def counted(name: str, threshold: float, relative: bool) -> Relation:
        counts = _joined(rows, lambda row: active_count(row, threshold, relative=relative))
        return related(name, counts, threshold=threshold, relative=relative)

    measures = zip(SHAPES, (participation_ratio, effective_count, patches_for_share), strict=True)
    return MassUsage(
        layer=layer,
        level=level,
        n_patches=sorted({row.shape[-1] for row in rows}),
        thresholds=tuple(thresholds),
        paper=[counted(f"above {threshold:g}", threshold, False) for threshold in thresholds],
        multiples=[counted(f"above {multiple:g}/n", multiple, True) for multiple in UNIFORM_MULTIPLES],
        shapes=[related(name, _joined(rows, measure)) for name, measure in measures],
        causal=[related(name, values) for name, values in _causal_columns(usage).items()],
        columns=columns,
        sample=sample,
        enough={
            share: mean_over_samples([u.needed <= share * u.n_patches for u in usage], n_resamples)
            for share in (shares if len(usage) else ())
        },
        steady=float(np.concatenate([u.steady for u in usage]).mean()) if len(usage) else float("nan"),
    )


def _causal_columns(usage: Sequence[CausalUsage]) -> dict[str, np.ndarray]:
    """Needed patches and cost of blindness by step, NaN at prefill; empty without measurements."""
    if not len(usage):
        return {}
    pairs = zip(CAUSAL, ("needed", "blind_kl"), strict=True)
    return {name: np.concatenate([np.append(np.nan, getattr(u, field)) for u in usage]) for name, field in pairs}


def _joined(rows: list[np.ndarray], measure: Any) -> np.ndarray:
    return np.concatenate([np.asarray(measure(row), dtype=np.float64) for row in rows])


def _band(relation: Relation) -> dict[str, Any] | None:
    nulls = {"pooled": relation.pooled_null, "within": relation.within_null}
    return {
        kind: {end: _or_none(getattr(null, end)) for end in ("mean", "low", "high", "p")}
        for kind, null in nulls.items()
        if null is not None
    } or None


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
