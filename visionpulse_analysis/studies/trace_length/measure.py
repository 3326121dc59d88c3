"""Does pruning shorten the trace without losing accuracy? Pairs of a dense and a pruned trace of the same sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from visionpulse_analysis.experiments.conditions import decode_arms
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Claim
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import VisionPulse, make_pruner
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.studies.shared.arms import DENSE, Arms, Change, compare, judge_changes
from visionpulse_analysis.studies.step_dependence.named_objects import named_arm
from visionpulse_analysis.testbed.scenes.questions import TASKS

MANY = 4
Changes = Mapping[str, Mapping[str, Change]]  # [decoding][arm]


def pulse_arms(anchor: int | None = None) -> dict[str, Pruner | None]:
    """Dense decoding and the two presets of the paper."""
    return {
        DENSE: None,
        "VisionPulse 5 %": VisionPulse.five_percent(anchor),
        "VisionPulse 10 %": VisionPulse.ten_percent(anchor),
    }


def static_arms(measured: Arms, patches: int, anchor: int | None = None) -> dict[str, Pruner | None]:
    """One set for the whole trace, of the mean retention of a VisionPulse arm, the nearest whole number of ``patches``.

    Chosen at prefill, for every arm; chosen in hindsight, for the smallest. Budgets round down: half a patch more makes
    the nearest of it.
    """
    kept = {name: measured.rows(name)["kept"].mean() for name in measured.names if name.startswith("VisionPulse")}
    budgets = {name: round(min(1.0, float(share) + 0.5 / patches), 5) for name, share in kept.items()}
    least = min(budgets, key=lambda name: budgets[name])
    pairs = [("at prefill", "prefill_once", name) for name in budgets] + [("hindsight", "hindsight", least)]
    return {
        name.replace("VisionPulse", label): make_pruner(pruner, budget=budgets[name], anchor_layer=anchor)
        for label, pruner, name in pairs
    }


def decode_ways(
    vlm: VLM,
    samples: Sequence[Sample],
    ways: Mapping[str, Mapping[str, Any]],
    anchor: int | None = None,
    **options: Any,
) -> dict[str, Arms]:
    """Decode all arms in several ways and measure them: way -> Arms.

    Parameters
    ----------
    ways : mapping of name to `seeds` and `sample`, see :func:`decode_arms`; ``options`` are common to all
    """
    measured, patches = {}, len(vlm.prompt(samples[0].image, samples[0].question).grid)
    for way, choices in ways.items():
        seeds = choices.get("seeds", (0,))
        runs = decode_arms(vlm, samples, pulse_arms(anchor), **choices, **options)
        static = static_arms(Arms.of(samples, runs, seeds), patches, anchor)
        known = named_arm(vlm, samples, runs[DENSE], seeds, anchor)
        runs |= decode_arms(vlm, samples, static | known, **choices, **options)
        measured[way] = Arms.of(samples, runs, seeds)
    return measured


def compare_all(measured: Mapping[str, Arms]) -> dict[str, dict[str, Change]]:
    """Compare every arm with the dense one, for every way of decoding: [decoding][arm] -> Change."""
    together = sum(len(arms.names) - 1 for arms in measured.values())
    return {
        decoding: {
            name: compare(arms.rows(DENSE), arms.rows(name), together=together) for name in arms.names if name != DENSE
        }
        for decoding, arms in measured.items()
    }


def judged(changes: Changes) -> dict[tuple[str, str], dict[str, Claim]]:
    """All comparisons of the study as one family of tests: (decoding, arm) -> outcome -> Claim."""
    every = {(how, name): c for how, arms in changes.items() for name, c in arms.items()}
    return judge_changes(every, "length, cut-offs and accuracy of every arm and way of decoding")


def numbers(changes: Changes) -> dict[str, dict[str, Any]]:
    """Every comparison with its verdicts, JSON-ready: [decoding][arm]."""
    found = judged(changes)
    return {
        how: {name: {**as_json(c), "judged": as_json(found[how, name])} for name, c in arms.items()}
        for how, arms in changes.items()
    }


def question_groups(samples: Sequence[Sample]) -> list[str] | None:
    """The group of every sample's question: its task, and for counts how many objects there are to count.

    None where questions are not those of generated scenes.
    """
    asked = [one.truth for one in samples if one.truth is not None]
    if len(asked) < len(samples):
        return None
    return [q.task if q.task != "count" else _count(len(q.targets)) for q in asked]


def _count(members: int) -> str:
    return "count, 0 or 1" if members < 2 else f"count, {members}" if members < MANY else f"count, {MANY} or more"


def compare_groups(measured: Arms, groups: Sequence[str], name: str) -> dict[str, Change]:
    """Compare one arm with the dense one, group by group, in the order of ``TASKS``."""
    order = sorted(set(groups), key=lambda group: (TASKS.index(group.split(",")[0]), group))
    rows = [measured.rows(arm) for arm in (DENSE, name)]
    return {
        group: compare(*(arm[np.array(groups)[arm["sample"]] == group] for arm in rows), together=len(order))
        for group in order
    }


def judged_groups(by_group: Mapping[str, Change]) -> dict[str, dict[str, Claim]]:
    """All groups of questions as one family of tests: group -> outcome -> Claim."""
    return judge_changes(by_group, "length, cut-offs and accuracy of one arm by group of questions")
