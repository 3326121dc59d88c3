"""Mass and usage in sentences and tables, every number computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.attention import PAPER_THRESHOLDS
from visionpulse_analysis.metrics.nulls import Null
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.studies.mass_and_usage.causal_usage import ANCHOR, LATER, ORDERS, TRUTH
from visionpulse_analysis.studies.mass_and_usage.measure import BLIND, SHAPES, MassUsage, Relation, needed_name
from visionpulse_analysis.studies.shared.sentences import Finding
from visionpulse_analysis.testbed.truth import SHOWN_KINDS, kinds_said
from visionpulse_analysis.traces import Trace

PAPER_PATCHES = 1280  # the least for which its thresholds were chosen
PAPER_R = (0.82, 0.95)  # arXiv 2605.31457: Pearson r(mass, active count) over its thresholds
PREDICTS = 0.05  # share of variance explained, from which on more than the sign is claimed

_IN = {ANCHOR: "in the anchor's order", LATER: "in the later layers' order", TRUTH: "with the named object first"}

Grade = Literal["nothing", "predicts", "sign only", "partly", "divided", "reversed", "open"]


def survivors(result: MassUsage) -> str:
    """State in one paragraph what the correlation of mass and usage is worth, from the numbers alone."""
    published = result.paper + result.multiples
    r = [relation.pooled.value for relation in published if np.isfinite(relation.pooled.value)]
    undefined = len(published) - len(r)
    text = [f"At layer {result.layer}, no active count varies: r(mass, active count) is undefined."]
    if r:
        text = [f"At layer {result.layer}, r(mass, active count) is {min(r):.2f} to {max(r):.2f} over all steps"]
        text[0] += f" (undefined at {undefined} thresholds, where the count never varies)." if undefined else "."
        text.append(
            "Against the same masses with shapes exchanged between the steps of a sample it lies "
            f"{_against_null(result, 'pooled')} over all steps, and {_against_null(result, 'within')} within samples "
            "(bands of one threshold each: the counts describe, and decide nothing)."
        )
    text.append(_direction(result.shapes, "On the normalised rows, steps with more mass spread it over"))
    if result.needs:
        text.append("What a step needs is the test. " + about_need(result.numbers()))
    return " ".join(text)


def about_need(numbers: dict[str, Any]) -> str:
    """Say whether mass tells what a step needs, from the numbers of a :class:`MassUsage`.

    The verdict looks at the steps that need the image, in every measure, with intervals that hold together.
    """
    needs = numbers["needs"]
    blind, level = needs[0], f"{numbers['levels'][0]:g}"
    shown = [blind, *(need for need in needs[1:] if need["level"] == blind["level"])]
    defined = [need for need in needs if need["together"]["low"] is not None]
    of_steps = f"{Estimate.from_json(numbers['need_image'][level]):.1%}"
    text = [
        f"Seeing nothing moves {of_steps} of the steps after prefill by more than {level} nats: they need the image "
        f"({blind['n_needing']:,} of {blind['n_every']:,}). Over these, within a trace, "
        f"{_with_names(shown, _values(shown, 'needing'))}. Over all steps the same are "
        f"{', '.join(_values(shown, 'every'))}, which also tells the steps that need the image from the rest: "
        "exchanging masses only between steps that are alike in that leaves "
        f"{_bands([need['every_null'] for need in shown])}."
    ]
    grade = grade_of(needs)
    above = [need["name"] for need in defined if need["together"]["low"] > 0]
    explained = [need["needing"]["estimate"] ** 2 for need in defined]
    range_ = f"{100 * min(explained):.1f} to {100 * max(explained):.1f} %" if explained else ""
    family = f"(intervals that hold for all {len(needs)} measures together)"
    text.append(
        {
            "nothing": "So nothing can be said: too few steps need the image.",
            "predicts": "So the claim survives: of two steps that need the image, the one with more mass needs more, "
            f"in every measure {family}, and mass explains {range_} of the variance.",
            "sign only": "So the sign of the claim survives and the prediction does not: of two steps that need the "
            f"image, the one with more mass needs more, in every measure {family}, but mass explains {range_} of the "
            "variance.",
            "partly": "So what survives depends on how need is measured: more mass goes with more need in "
            f"{len(above)} of {len(needs)} measures {family}, and in the others no relation is shown.",
            "divided": "So the claim does not survive here: more mass goes with more need or with less, depending on "
            f"how need is measured {family}.",
            "reversed": "So the claim does not survive here: of two steps that need the image, the one with more mass "
            f"needs less {family}.",
            "open": "So the claim is not shown here: over the steps that need the image, in no measure more mass goes "
            f"with more need {family}.",
        }[grade]
    )
    return " ".join(text)


def grade_of(needs: Sequence[dict[str, Any]]) -> Grade:
    """What of the claim is left, over the steps that need the image; `needs` as in the numbers of a `MassUsage`."""
    defined = [need for need in needs if need["together"]["low"] is not None]
    above = sum(need["together"]["low"] > 0 for need in defined)
    below = sum(need["together"]["high"] < 0 for need in defined)
    if not defined:
        return "nothing"
    if below:
        return "divided" if above else "reversed"
    if above == len(needs):
        predicts = all(need["needing"]["estimate"] ** 2 >= PREDICTS for need in needs)
        return "predicts" if predicts else "sign only"
    return "partly" if above else "open"


def need_table(result: MassUsage) -> pd.DataFrame:
    """One row per measure of what steps need: r with mass within samples, over all steps and those in need."""
    rows = {
        need.name: {
            "steps": f"{need.n_every:,}",
            "r, all steps": _shown(need.every.value, need.every),
            "masses exchanged among like steps": _band_shown(need.every_null),
            "steps that need the image": f"{need.n_needing:,}",
            "r, these": _shown(need.needing.value, need.needing),
            "masses exchanged": _band_shown(need.needing_null),
        }
        for need in result.needs
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def transfers(result: MassUsage) -> str:
    """Say what of the paper's finding transfers to these traces and what does not."""
    r = [relation.pooled.value for relation in result.paper]
    inside = [value for value in r if PAPER_R[0] <= value <= PAPER_R[1]]
    size = {len(r): "transfers", 0: "does not transfer"}.get(len(inside), "transfers in part")
    text = [
        f"The size of the published correlation {size}: at {len(inside)} of {len(r)} thresholds r lies in the paper's "
        f"range. {_thresholds(result)}"
    ]
    if result.needs:
        found = {
            "predicts": "holds here too when use is what a step needs.",
            "sign only": "holds here in its sign alone when use is what a step needs.",
            "partly": "holds here in some measures of what a step needs and is not shown in others.",
            "divided": "depends here on how need is measured, even in its sign.",
            "reversed": "is reversed here when use is what a step needs.",
            "open": "is not shown here when use is what a step needs.",
            "nothing": "cannot be tested here: too few steps need the image.",
        }
        grade = grade_of(result.numbers()["needs"])
        text.append(f"Its reading, that steps with more mass use more patches, {found[grade]}")
    return " ".join(text)


def paper_table(result: MassUsage) -> pd.DataFrame:
    """What the paper reports beside what was measured here."""
    level = f"{result.levels[0]:g} nats" if result.levels else ""
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
    for need in (need for need in result.needs if need.level == result.levels[0]):
        shown = _shown(need.needing.value, need.needing)
        rows[f"r, steps that need the image: {need.order or 'KL of seeing nothing'}"] = ("not reported", shown)
    for kept, interval in result.enough.items():
        published = {0.05: "98.2 % of full accuracy", 0.1: "no loss of average accuracy"}.get(kept, "not reported")
        rows[f"{100 * kept:g} % of the patches are enough for one step"] = (
            published,
            f"{interval:.1%} of steps, within {level}",
        )
    return pd.DataFrame.from_dict(rows, orient="index", columns=["paper", "here"])


def table_by_kind(result: MassUsage, traces: Sequence[Trace], samples: Sequence[Sample]) -> pd.DataFrame:
    """Mean mass and usage by kind of token; empty where no kinds are known."""
    needed = [needed_name(order, level) for level in result.levels[:1] for order in ORDERS]
    names = ["mass", *(name for name in (*SHAPES, BLIND, *needed) if name in result.columns)]
    kinds = np.concatenate(
        [
            kinds_said(sample.scene, sample.truth, trace.tokens) if sample.scene else [""] * len(trace)
            for trace, sample in zip(traces, samples, strict=True)
        ]
    )
    rows = {
        kind: {"steps": int((kinds == kind).sum()), **{n: _mean(result.columns[n][kinds == kind]) for n in names}}
        for kind in SHOWN_KINDS
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
    r = ", ".join(_shown(relation.within.value, relation.within) for relation in relations)
    word = {1: "more patches", -1: "fewer patches", 0: "neither clearly more nor clearly fewer patches"}
    verdict = word[signs.pop()] if len(signs) == 1 else "more or fewer patches depending on the measure"
    return f"{start} {verdict} (by intervals that hold for all {len(relations)} measures; r within samples: {r})."


def _sign(relation: Relation) -> int:
    """1 or -1 where the within-sample r is above or below 0 by an interval that holds for all measures, else 0."""
    decides = relation.together or relation.within
    return int(decides.low > 0) - int(decides.high < 0)


def _values(needs: Sequence[dict[str, Any]], over: str) -> list[str]:
    return [
        "undefined" if need[over]["estimate"] is None else f"{Estimate.from_json(need[over]):.2f}" for need in needs
    ]


def _with_names(needs: Sequence[dict[str, Any]], values: Sequence[str]) -> str:
    """The r of the measures at one level, the KL of seeing nothing first."""
    orders = [f"{r} {_IN[need['order']]}" for r, need in zip(values[1:], needs[1:], strict=True)]
    return (
        f"r(mass, KL of seeing nothing) is {values[0]} and r(mass, patches needed at {needs[0]['level']:g} nats, an "
        f"upper bound) {', '.join(orders)}"
    )


def _bands(nulls: Sequence[dict[str, Any]]) -> str:
    """The null bands from the lowest end to the highest."""
    known = [null for null in nulls if null["low"] is not None]
    return f"{min(n['low'] for n in known):.2f} to {max(n['high'] for n in known):.2f}" if known else "nothing defined"


def _band_shown(null: Null) -> str:
    return f"{null.low:.2f} to {null.high:.2f}" if np.isfinite(null.low) else "undefined"


def _null_range(relations: Sequence[Relation]) -> str:
    nulls = [relation.pooled_null for relation in relations if relation.pooled_null is not None]
    return _ends_shown([(null.mean, null) for null in nulls])


def _range(intervals: Sequence[Estimate]) -> str:
    return _ends_shown([(interval.value, interval) for interval in intervals])


def _ends_shown(values: Sequence[tuple[float, Estimate | Null]]) -> str:
    """The smallest and the largest value, each with its interval or band."""
    defined = sorted((pair for pair in values if np.isfinite(pair[0])), key=lambda pair: pair[0])
    return f"{_shown(*defined[0])} to {_shown(*defined[-1])}" if defined else "undefined: the count never varies"


def _shown(value: float, bounds: Estimate | Null) -> str:
    if not np.isfinite(value):
        return "undefined"
    return f"{value:.2f} [{bounds.low:.2f}, {bounds.high:.2f}]" if np.isfinite(bounds.low) else f"{value:.2f}"


def _ends(values: Sequence[int]) -> tuple[int, int]:
    return min(values), max(values)


def _mean(values: np.ndarray) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def finding(numbers: dict[str, Any]) -> Finding:
    relation, needs = numbers["r"]["above 1/n"], numbers["needs"]
    null = relation["null"]["within"]
    within = f"{Estimate.from_json(relation['within']):.2f}"
    band = f"the same shapes dealt out at random give {null['low']:.2f} to {null['high']:.2f}"
    short = f"Within samples attention mass and the number of patches above 1/n correlate by {within}; {band}."
    if needs:
        blind, needed = _values(needs[:2], "needing")
        short = (
            f"Over the {needs[0]['n_needing']:,} steps that need the image, attention mass correlates by {blind} with "
            f"what hiding the image does, and by {needed} with how many patches are needed."
        )
    return Finding(short, f"Within samples r(mass, patches above 1/n) = {within}; {band}. {about_need(numbers)}")
