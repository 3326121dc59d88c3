"""Is the world of charts a fair one, and do the paper's findings hold in it? Five properties, then the findings.

The properties are what a world needs for the findings to be decidable: words that text determines beside words that
need very different numbers of patches, evidence that is read after the middle of the depth, and second looks that the
picture calls for. They are measured on traces that the model wrote itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from visionpulse_analysis.experiments.collect import collect
from visionpulse_analysis.experiments.conditions import decode_arms
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.estimate import Estimate, as_json
from visionpulse_analysis.metrics.statistics import Claim, judge_jointly, paired_difference, proportion_interval
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import Random
from visionpulse_analysis.studies.mass_and_usage.causal_usage import LATER, ORDERS, TRUTH, CausalUsage, causal_usage
from visionpulse_analysis.studies.mass_and_usage.measure import MassUsage, mass_usage
from visionpulse_analysis.studies.mass_and_usage.report import grade_of
from visionpulse_analysis.studies.shared.arms import DENSE, LENGTH, Arms, Change, judge_changes
from visionpulse_analysis.studies.step_dependence.fixed_sets import HINDSIGHT, PREFILL, FixedSets, fixed_sets
from visionpulse_analysis.studies.step_dependence.measure import mean_over_samples
from visionpulse_analysis.studies.trace_length.measure import compare_all, pulse_arms, static_arms
from visionpulse_analysis.testbed.charts.chart import Chart
from visionpulse_analysis.testbed.charts.evaluation import read_words
from visionpulse_analysis.testbed.charts.questions import Question
from visionpulse_analysis.testbed.charts.reasoning import FROM_IMAGE, reason
from visionpulse_analysis.testbed.charts.truth import looks_again
from visionpulse_analysis.testbed.truth import kinds_said
from visionpulse_analysis.traces import Trace

HORIZON_SEED = 20_000_000  # charts of no other study, and none of training or evaluation
RANDOM = "random 5 %"
TEXT, NEEDED, NEEDED_LATER, HORIZON, COST, AGAIN, ONLY = PROPERTIES = (
    "words determined by text",
    f"quartile ratio of the patches needed, {TRUTH}",
    f"quartile ratio of the patches needed, {LATER}",
    "read after the middle of the depth",
    "cost of random 5 % from the anchor on",
    "second look where the picture is ambiguous",
    "second look where it is clear",
)
# What a fair world has (the level), and on which side of it. None of these numbers is the paper's.
ASKED: dict[str, tuple[float, Literal[">", "<"]]] = {
    TEXT: (0.4, ">"), NEEDED: (4.0, ">"), NEEDED_LATER: (4.0, ">"), HORIZON: (0.5, ">"),
    COST: (0.2, ">"), AGAIN: (0.9, ">"), ONLY: (0.1, "<"),
}  # fmt: skip
FEWEST = 10  # charts that are resampled
KEEPS = 0.982  # share of dense accuracy at 5 %, arXiv 2605.31457
REPRODUCED, NOT, OPEN = "reproduced", "not reproduced", "not decidable"
Verdict = Literal["reproduced", "not reproduced", "not decidable"]


@dataclass(frozen=True)
class Findings:
    """The findings of notebooks 01 to 03 on one model and its world."""

    world: str  # name of the model
    # n_traces, n_samples: recorded traces, and questions of the arms
    n_traces: int
    n_samples: int
    sets: FixedSets  # a step's own set against fixed ones (01)
    usage: MassUsage  # mass against patches needed (02)
    arms: Arms  # greedy, every arm against dense (03)


@dataclass(frozen=True)
class Charts:
    """The properties of the charts, and the findings on every world."""

    # name of ``PROPERTIES`` -> Claim about its level, all of them together; without those not measured
    properties: dict[str, Claim]
    # kind of word -> accuracy when the image is cut off from layer 0, 1, ... on; the last is uncut.
    horizon: dict[str, list[Estimate]]
    # order -> kind of word -> patches needed at the steps that need the image, float64 [step]
    needed: dict[str, dict[str, np.ndarray]]
    findings: list[Findings]  # of the charts first

    def numbers(self) -> dict[str, Any]:
        """Everything that is told, JSON-ready."""
        return {
            "properties": {
                name: {"claim": claim.to_json(), "holds": holds(name, claim)} for name, claim in self.properties.items()
            },
            "horizon": {kind: as_json(curve) for kind, curve in self.horizon.items()},
            "needed": {
                order: {
                    kind: {"n": len(k), **dict(zip(("q25", "median", "q75"), np.quantile(k, QUARTILES), strict=True))}
                    for kind, k in kinds.items()
                }
                for order, kinds in self.needed.items()
            },
            "paper": {one.world: paper_claims(one) for one in self.findings},
            "arms": {one.world: one.arms.numbers() for one in self.findings},
            "counts": {one.world: {"traces": one.n_traces, "samples": one.n_samples} for one in self.findings},
        }


QUARTILES = (0.25, 0.5, 0.75)


def measure_findings(
    vlm: VLM,
    samples: Sequence[Sample],
    n_traces: int,
    *,
    level: float = 0.05,
    seed: int = 0,
    max_new_tokens: int = 160,
    batch_size: int = 16,
) -> tuple[Findings, list[Trace], list[CausalUsage]]:
    """Measure the findings on the greedy traces of one model; the first ``n_traces`` samples are recorded as well.

    Parameters
    ----------
    level : KL in nats that counts as unchanged, above 0
    """
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    recorded, first = collect(vlm, samples[:n_traces], seed=seed, layers="all", **options), samples[:n_traces]
    anchor = vlm.default_anchor
    usage = causal_usage(vlm, recorded, anchor, [level], first)
    arms: dict[str, Any] = {**pulse_arms(), RANDOM: Random(0.05)}
    runs = decode_arms(vlm, samples, arms, **options)
    patches = len(vlm.prompt(samples[0].image, samples[0].question).grid)
    runs |= decode_arms(vlm, samples, static_arms(Arms.of(samples, runs), patches), **options)
    found = Findings(
        vlm.name,
        len(recorded),
        len(samples),
        fixed_sets(recorded, first, anchor, vlm, level=level, seed=seed),
        mass_usage(recorded, anchor, usage, seed=seed),
        Arms.of(samples, runs),
    )
    return found, recorded, usage


def measure_charts(
    vlm: VLM,
    samples: Sequence[Sample],
    findings: Findings,
    recorded: Sequence[Trace],
    usage: Sequence[CausalUsage],
    *,
    n_horizon: int = 24,
    side: int = 24,
    seed: int = 0,
) -> tuple[dict[str, Claim], dict[str, list[Estimate]], dict[str, dict[str, np.ndarray]]]:
    """Measure the properties of the world: claims, the reading horizon and the patches needed by kind of word.

    Parameters
    ----------
    samples : of the arms; the first are those of ``recorded`` and ``usage``
    n_horizon : charts of ``side`` x ``side`` patches whose true traces are fed in
    """
    traces, dense = findings.arms.rows(DENSE), findings.arms
    said = [list(tokens) for tokens in traces["text"]]
    charts = [(one.scene, one.truth) for one in samples if one.scene is not None]
    kinds = [np.array(kinds_said(*of, tokens)) for of, tokens in zip(charts, said, strict=True)]
    from_text = [~np.isin(kind, FROM_IMAGE) for kind in kinds]
    needed = _needed(kinds, usage)
    right = read_words(vlm, n_horizon, side, HORIZON_SEED + 1000 * seed)
    curves = {
        kind: [mean_over_samples([one[cut] for one in charts], unit="chart") for cut in range(vlm.n_layers + 1)]
        for kind, charts in right.items()
        if sum(one.shape[1] for one in charts)
    }
    # By hand, so that a chart's words of all kinds stay together: resampled are charts.
    words = [np.concatenate(of_chart, axis=1).astype(float) for of_chart in zip(*right.values(), strict=True)]
    middle = [_late(one, vlm.n_layers // 2) for one in words]
    again = [looks_again(tokens) > 0 for tokens in said]
    ambiguous = np.array([_is_ambiguous(one) for one in samples])
    random = dense.rows(RANDOM)["right"].to_numpy(float)
    tests: dict[str, Callable[[float], Estimate]] = {
        TEXT: lambda c: mean_over_samples(from_text, unit="chart", confidence=c),
        HORIZON: lambda c: _ratio(middle, c),
        COST: lambda c: paired_difference(random, traces["right"].to_numpy(float), confidence=c, unit="chart"),
        AGAIN: lambda c: _share(np.array(again)[ambiguous], c),
        ONLY: lambda c: _share(np.array(again)[~ambiguous], c),
        NEEDED: lambda c: quartile_ratio(_by_trace(usage, TRUTH), c, seed),
        NEEDED_LATER: lambda c: quartile_ratio(_by_trace(usage, LATER), c, seed),
    }
    known = {AGAIN: ambiguous.any(), ONLY: not ambiguous.all()}
    asked = {name: (tests[name], ASKED[name][0]) for name in PROPERTIES if known.get(name, True)}
    return judge_jointly(asked, "properties of the world"), curves, needed


def holds(name: str, claim: Claim) -> bool | None:
    """Whether a property is shown to hold (True) or not to hold (False); None where neither is shown."""
    wanted, other = (claim.above, claim.below) if ASKED[name][1] == ">" else (claim.below, claim.above)
    return True if wanted else False if other else None


def paper_claims(found: Findings) -> dict[str, dict[str, Any]]:
    """The paper's claims on one world: claim -> what the paper says, what was found here, and the verdict.

    A verdict follows from exact tests, adjusted in one family for each of the three notebooks, or, of a share of dense
    accuracy, from an interval that holds for all arms together: shown, shown to be otherwise, or neither.
    """
    worse, changes = found.sets.worse.get("unharmed", {}), compare_all({"greedy": found.arms})["greedy"]
    judged = judge_changes(changes, "length, cut-offs and accuracy of every arm against dense, greedy")
    rows: dict[str, tuple[str, Any, Verdict]] = {}
    for name in (HINDSIGHT, PREFILL):
        if name in worse:
            told = f"{worse[name].estimate:+.1p}"
            row = ("the evidence changes from step to step", told, _verdict(worse[name], "falls"))
            rows[f"one fixed set ({name}) serves fewer steps than the step's own"] = row
    needs = found.usage.numbers()["needs"]
    if needs:
        grade = grade_of(needs)
        known: dict[str, Verdict] = {"predicts": REPRODUCED, "sign only": NOT, "divided": NOT, "reversed": NOT}
        shown = known.get(grade, OPEN)
        r = [need["needing"]["estimate"] for need in needs if need["needing"]["estimate"] is not None]
        told = f"r {min(r):.2f} to {max(r):.2f} over steps that need the image ({grade})" if r else "no step needs it"
        rows["of steps that need the image, those with more mass need more patches"] = ("r 0.82 to 0.95", told, shown)
    for name in ("VisionPulse 5 %", "VisionPulse 10 %"):
        paper = "98.2 % of dense" if name.endswith(" 5 %") else "no loss"
        rows[f"{name} keeps the accuracy"] = (paper, *_kept(changes[name]))
    for name in changes:
        if name.startswith(("VisionPulse", "at prefill")):
            paper, expected = ("-11 to -12 %", "falls") if name.startswith("V") else ("+54 to +63 %", "rises")
            word = "shorter" if expected == "falls" else "longer"
            claim = judged[name][LENGTH]
            rows[f"traces become {word} with {name}"] = (paper, f"{claim.estimate:+.1%}", _verdict(claim, expected))
    pulse = "VisionPulse 5 %"
    beaten = [(pulse, other) for other in changes if other.startswith("at prefill") or other == RANDOM]
    for (_, other), claim in found.arms.judge_accuracy(beaten).items():
        told = f"{claim.estimate:+.1p}"
        rows[f"{pulse} is more accurate than {other}"] = ("yes", told, _verdict(claim, "rises"))
    return {name: {"paper": paper, "here": here, "verdict": verdict} for name, (paper, here, verdict) in rows.items()}


def _verdict(claim: Claim, expected: str) -> Verdict:
    if claim.decision == expected:
        return REPRODUCED
    return OPEN if claim.decision == "not shown" else NOT


def _kept(change: Change) -> tuple[str, Verdict]:
    """Whether accuracy is kept, by an interval of its ratio to dense that holds for all arms."""
    if change.truth is None:
        return "answers are not known", OPEN
    ratio = change.truth.ratio_together
    shown: Verdict = REPRODUCED if ratio.low >= KEEPS else NOT if ratio.high < KEEPS else OPEN
    return f"{change.truth.ratio:.1%} of dense", shown


def _is_ambiguous(sample: Sample) -> bool:
    """Whether the true trace looks again, which depends on the picture alone."""
    chart, question = sample.scene, sample.truth
    if not isinstance(chart, Chart) or not isinstance(question, Question):
        raise ValueError(f"sample {sample.id!r} is no generated chart, so where it is ambiguous is not known")
    return looks_again([token.word for token in reason(chart, question, np.random.default_rng(0))]) > 0


def _late(right: np.ndarray, middle: int) -> np.ndarray:
    """Of one chart: how many words are read at all, and how many of them from the middle on [2]."""
    blind, cut, uncut = (right[place].sum() for place in (0, middle, -1))
    return np.array([uncut - blind, uncut - cut])


def _ratio(pairs: Sequence[np.ndarray], confidence: float) -> Estimate:
    """Total of the second over total of the first, charts resampled."""
    first, second = np.array(pairs, dtype=float).T
    return paired_difference(first, second, relative=True, confidence=confidence, unit="chart") + 1


def _share(values: np.ndarray, confidence: float) -> Estimate:
    return proportion_interval(values, confidence=confidence, unit="chart")


def _by_trace(usage: Sequence[CausalUsage], order: str) -> list[np.ndarray]:
    """Patches needed at the steps that need the image and of which the order is known, for every trace."""
    found = [one.needed[order][0] for one in usage if order in one.needed]
    return [needed[np.isfinite(needed) & (needed > 0)] for needed in found]


def quartile_ratio(
    columns: Sequence[np.ndarray], confidence: float = 0.95, seed: int = 0, n_resamples: int = 2000
) -> Estimate:
    """Upper over lower quartile of positive values, with a percentile interval that resamples whole columns.

    Fewer than ``FEWEST`` columns with values give no interval: it would miss the truth far more often than it says.
    """
    given = [np.asarray(column, dtype=float) for column in columns if len(column)]
    if not given:
        return Estimate.missing("no step needs the image", "chart")
    rng, values = np.random.default_rng(seed), np.concatenate(given)

    def ratio(these: np.ndarray) -> float:
        low, high = np.quantile(these, [0.25, 0.75])
        return float(high / low)

    drawn = [
        ratio(np.concatenate([given[i] for i in rng.integers(len(given), size=len(given))])) for _ in range(n_resamples)
    ]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    refused = f"{len(given)} charts are too few" if len(given) < FEWEST else ""
    low, high = (np.nan, np.nan) if refused else (float(low), float(high))
    counts = len(given), len(values)
    return Estimate(ratio(values), low, high, *counts, confidence, "percentile", "chart", refused)


def _needed(kinds: Sequence[np.ndarray], usage: Sequence[CausalUsage]) -> dict[str, dict[str, np.ndarray]]:
    """Order -> kind of word -> patches needed at the steps that need the image, the most frequent kind first."""
    found: dict[str, dict[str, list[float]]] = {order: {} for order in ORDERS}
    for kind, one in zip(kinds, usage, strict=False):
        for order, needed in one.needed.items():
            known = np.isfinite(needed[0]) & (needed[0] > 0)
            for word, k in zip(kind[1:][known], needed[0][known], strict=True):
                found[order].setdefault(str(word), []).append(float(k))
    return {
        order: {word: np.array(k) for word, k in sorted(words.items(), key=lambda item: -len(item[1]))}
        for order, words in found.items()
        if words
    }
