"""Mass and usage in sentences and tables, every number computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from visionpulse_analysis.measures import PAPER_THRESHOLDS
from visionpulse_analysis.nulls import ShapeNull
from visionpulse_analysis.statistics import Interval
from visionpulse_analysis.studies.findings_table import plain, share
from visionpulse_analysis.studies.mass_usage import CAUSAL, SHAPES, MassUsage, Relation
from visionpulse_analysis.studies.object_attention import KINDS
from visionpulse_analysis.studies.samples import Sample
from visionpulse_analysis.testbed.truth import annotate
from visionpulse_analysis.traces import Trace

PAPER_PATCHES = 1280  # the least for which its thresholds were chosen
PAPER_R = (0.82, 0.95)  # arXiv 2605.31457: Pearson r(mass, active count) over its thresholds
PREDICTS = 0.05  # share of variance explained, from which on more than the sign is claimed


def survivors(result: MassUsage) -> str:
    """State in one paragraph what the correlation of mass and usage is worth, from the numbers alone."""
    published = result.paper + result.multiples
    r = [relation.pooled.estimate for relation in published if np.isfinite(relation.pooled.estimate)]
    undefined = len(published) - len(r)
    text = [f"At layer {result.layer}, no active count varies: r(mass, active count) is undefined."]
    if r:
        text = [f"At layer {result.layer}, r(mass, active count) is {min(r):.2f} to {max(r):.2f} over all steps"]
        text[0] += f" (undefined at {undefined} thresholds, where the count never varies)." if undefined else "."
        text.append(
            "Against the same masses with shapes exchanged between the steps of a sample it lies "
            f"{_against_null(result, 'pooled')} over all steps, and {_against_null(result, 'within')} within samples."
        )
    text.append(_direction(result.shapes, "On the normalised rows, steps with more mass spread it over"))
    if result.causal:
        text.append(_direction(result.causal[:1], "What a step needs is the test: steps with more mass need"))
        explained = _explained(result.causal[0])
        endings = {
            "predicts": f"So the claim survives: within a trace, mass explains {explained} of the variance of how many "
            "patches the step needs.",
            "sign only": "So the sign of the claim survives and the prediction does not: within a trace, mass "
            f"explains {explained} of the variance of how many patches the step needs.",
            "reversed": "So the claim does not survive here: steps with more mass need fewer patches.",
            "open": "So the claim does not survive here: that steps with more mass need more patches is not shown.",
        }
        text.append(endings[_grade(result.causal[0])])
    return " ".join(text)


def transfers(result: MassUsage) -> str:
    """Say what of the paper's finding transfers to these traces and what does not."""
    r = [relation.pooled.estimate for relation in result.paper]
    inside = [value for value in r if PAPER_R[0] <= value <= PAPER_R[1]]
    size = {len(r): "transfers", 0: "does not transfer"}.get(len(inside), "transfers in part")
    text = [
        f"The size of the published correlation {size}: at {len(inside)} of {len(r)} thresholds r lies in the paper's "
        f"range. {_thresholds(result)}"
    ]
    if result.causal:
        explained = f"within a trace mass explains {_explained(result.causal[0])} of its variance"
        found = {
            "predicts": f"holds here too when use is what a step needs: {explained}.",
            "sign only": f"holds here in its sign alone when use is what a step needs: {explained}.",
            "reversed": "is reversed here when use is what a step needs.",
            "open": "is not shown here when use is what a step needs.",
        }
        text.append(f"Its reading, that steps with more mass use more patches, {found[_grade(result.causal[0])]}")
    return " ".join(text)


def paper_table(result: MassUsage) -> pd.DataFrame:
    """What the paper reports beside what was measured here."""
    level = f"{result.level:g} nats"
    rows = {
        "patches per image": (f"{PAPER_PATCHES} or more", " to ".join(map(str, sorted({*_ends(result.n_patches)})))),
        f"r(mass, active count), {'its' if _of_the_paper(result) else 'chosen'} thresholds": (
            f"{PAPER_R[0]} to {PAPER_R[1]}",
            _range([r.pooled for r in result.paper]),
        ),
        "the same within samples": ("not reported", _range([r.within for r in result.paper])),
        "the same with shapes exchanged, null band": ("not reported", _null_range(result.paper)),
        "r at multiples of 1/n": ("not reported", _range([r.pooled for r in result.multiples])),
        "the same with shapes exchanged, its null band": ("not reported", _null_range(result.multiples)),
        "r(mass, scale-free usage) within samples": ("not reported", _range([r.within for r in result.shapes])),
    }
    for relation in result.causal[:1]:
        rows["r(mass, patches needed) within samples"] = ("not reported", str(relation.within))
    for kept, interval in result.enough.items():
        published = {0.05: "98.2 % of full accuracy", 0.1: "no loss of average accuracy"}.get(kept, "not reported")
        rows[f"{100 * kept:g} % of the patches are enough for one step"] = (
            published,
            f"{share(interval.to_dict())} of steps, within {level}",
        )
    return pd.DataFrame.from_dict(rows, orient="index", columns=["paper", "here"])


def table_by_kind(result: MassUsage, traces: Sequence[Trace], samples: Sequence[Sample]) -> pd.DataFrame:
    """Mean mass and usage by kind of token; empty where no kinds are known."""
    names = ["mass", *(name for name in (*SHAPES, *CAUSAL) if name in result.columns)]
    kinds = np.concatenate(
        [
            [t.kind for t in annotate(sample.scene, trace.tokens)] if sample.scene else [""] * len(trace)
            for trace, sample in zip(traces, samples, strict=True)
        ]
    )
    rows = {
        kind: {"steps": int((kinds == kind).sum()), **{n: _mean(result.columns[n][kinds == kind]) for n in names}}
        for kind in KINDS
        if (kinds == kind).any()
    }
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


def _thresholds(result: MassUsage) -> str:
    """Say whether the paper's thresholds mean here what they mean there, or which others were chosen."""
    uniform = [threshold * n for threshold in result.thresholds for n in result.n_patches]
    here = f"{min(uniform):.2f} to {max(uniform):.2f} times the uniform level 1/n"
    there = [threshold * PAPER_PATCHES for threshold in PAPER_THRESHOLDS]
    chosen = f"chosen for {PAPER_PATCHES} patches or more, {min(there):.1f} to {max(there):.1f} times 1/n at the least"
    if not _of_the_paper(result):
        return f"The thresholds are not the paper's ({chosen}) but {_listed(result.thresholds)}, {here}."
    if min(result.n_patches) >= PAPER_PATCHES:
        return f"The thresholds carry over: they were {chosen}, and here they are {here}."
    return f"The thresholds do not carry over: they were {chosen}; here they are {here}."


def _of_the_paper(result: MassUsage) -> bool:
    return {*result.thresholds} == {*PAPER_THRESHOLDS}


def _listed(thresholds: Sequence[float]) -> str:
    return ", ".join(f"{threshold:g}" for threshold in thresholds)


def _against_null(result: MassUsage, kind: str) -> str:
    nulls = [getattr(relation, f"{kind}_null") for relation in result.paper + result.multiples]
    nulls = [null for null in nulls if null is not None and np.isfinite(null.p)]
    above, below = sum(n.r > n.high for n in nulls), sum(n.r < n.low for n in nulls)
    return f"above the null band at {above} and below it at {below} of {len(nulls)} thresholds"


def _direction(relations: Sequence[Relation], start: str) -> str:
    signs = {_sign(relation) for relation in relations}
    r = ", ".join(_shown(relation.within.estimate, relation.within) for relation in relations)
    word = {1: "more patches", -1: "fewer patches", 0: "neither clearly more nor clearly fewer patches"}
    verdict = word[signs.pop()] if len(signs) == 1 else "more or fewer patches depending on the measure"
    return f"{start} {verdict} (r within samples: {r})."


def _sign(relation: Relation) -> int:
    """1 or -1 where the interval of the within-sample r excludes 0, else 0."""
    return int(relation.within.low > 0) - int(relation.within.high < 0)


def _grade(relation: Relation) -> Literal["predicts", "sign only", "reversed", "open"]:
    """What of the claim is left: a positive r whose interval excludes 0 is still no prediction where r**2 is small."""
    sign = _sign(relation)
    if sign > 0:
        return "predicts" if relation.within.estimate**2 >= PREDICTS else "sign only"
    return "reversed" if sign < 0 else "open"


def _explained(relation: Relation) -> str:
    """r**2 within samples with its interval, for an r whose interval excludes 0."""
    r = relation.within
    low, high = sorted((r.low**2, r.high**2))
    return share({"estimate": r.estimate**2, "low": low, "high": high})


def _null_range(relations: Sequence[Relation]) -> str:
    nulls = [relation.pooled_null for relation in relations if relation.pooled_null is not None]
    return _ends_shown([(null.mean, null) for null in nulls])


def _range(intervals: Sequence[Interval]) -> str:
    return _ends_shown([(interval.estimate, interval) for interval in intervals])


def _ends_shown(values: Sequence[tuple[float, Interval | ShapeNull]]) -> str:
    """The smallest and the largest value, each with its interval or band."""
    defined = sorted((pair for pair in values if np.isfinite(pair[0])), key=lambda pair: pair[0])
    return f"{_shown(*defined[0])} to {_shown(*defined[-1])}" if defined else "undefined: the count never varies"


def _shown(value: float, bounds: Interval | ShapeNull) -> str:
    if not np.isfinite(value):
        return "undefined"
    known = np.isfinite(bounds.low)
    return plain({"estimate": value, "low": bounds.low if known else None, "high": bounds.high})


def _ends(values: Sequence[int]) -> tuple[int, int]:
    return min(values), max(values)


def _mean(values: np.ndarray) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")
