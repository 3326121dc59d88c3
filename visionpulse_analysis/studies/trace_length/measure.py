"""Does pruning shorten the trace without losing accuracy? Pairs of a dense and a pruned trace of the same sample."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from visionpulse_analysis.experiments.conditions import decode_arms, outcome_of
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.experiments.stored_traces import StoredTraces
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Claim
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import VisionPulse, make_pruner
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.studies.shared.arms import DENSE, Arms, Change, compare, judge_changes, outcome_row
from visionpulse_analysis.studies.step_dependence.fixed_sets import named_arm
from visionpulse_analysis.testbed.charts.questions import TASKS as CHART_TASKS
from visionpulse_analysis.testbed.scenes.questions import TASKS, Question
from visionpulse_analysis.traces import Trace

MANY = 4
STATIC = {"at prefill": "prefill_once", "hindsight": "hindsight"}
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
    pairs = [("at prefill", name) for name in budgets] + [("hindsight", least)]
    return {
        name.replace("VisionPulse", label): make_pruner(STATIC[label], budget=budgets[name], anchor_layer=anchor)
        for label, name in pairs
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
        # What VisionPulse keeps follows the attention of each trace, so its fixed twins can only be set after it ran.
        static = static_arms(Arms.of(samples, runs, seeds), patches, anchor)
        known = named_arm(vlm, samples, runs[DENSE], seeds, anchor)
        runs |= decode_arms(vlm, samples, static | known, **choices, **options)
        measured[way] = Arms.of(samples, runs, seeds)
    return measured


def stored_ways(stored: StoredTraces) -> dict[str, Arms]:
    """Measure stored traces in place of decoding: way -> Arms; "greedy", and "sampled" by its settings if several.

    Traces are of the same sample where question, prompt and pictures are equal, and pair where, if sampled, the seeds
    are, too. A way holds the samples and seeds that all its arms have; whether answers are right is not known. Raises
    ValueError: nothing pairs; or what a trace pairs with cannot be told, for it lacks its picture, was cut off at
    another limit or does not say whether it was, or is twice in an arm.

    Parameters
    ----------
    stored : StoredTraces, with its pruned ones
    """
    ways: dict[str, dict[str, dict[Hashable, Trace]]] = {}
    for trace in [*stored.traces, *stored.pruned_traces]:
        if not trace.images or not isinstance(trace.meta.get("finished"), bool):
            raise ValueError(f"trace {trace.meta.get('id')!r} lacks its picture, or does not say whether it ended")
        sampling = trace.meta.get("sample")
        way = "greedy" if sampling is None else f"sampled {sampling}"
        arm = ways.setdefault(way, {DENSE: {}}).setdefault(_arm_of(trace.meta.get("pruner")), {})
        # By what is in them: ids differ from store to store, and two questions may be put in the same words.
        pictures = tuple((image.shape, image.tobytes()) for image in trace.images)
        asked = trace.question, tuple(trace.prompt_tokens), pictures
        twin = arm.setdefault((None if sampling is None else trace.meta.get("seed"), asked), trace)
        if twin is not trace:
            raise ValueError(f"traces {twin.meta.get('id')!r} and {trace.meta.get('id')!r} are one sample in one arm")
    ways = {way: arms for way, arms in ways.items() if len(arms) > 1}
    if sum(way != "greedy" for way in ways) == 1:
        ways = {way.split()[0]: arms for way, arms in ways.items()}
    return {way: _stored_arms(way, arms) for way, arms in ways.items()} or _refuse("no pruned trace beside dense ones")


def _stored_arms(way: str, arms: Mapping[str, Mapping[Any, Trace]]) -> Arms:
    limits = {trace.meta.get("max_new_tokens") for traces in arms.values() for trace in traces.values()}
    if len(limits) > 1:
        _refuse(f"{way} traces with several limits of tokens, {limits}, whose lengths cannot be compared")
    # Every arm on the same traces, or a difference between arms would be one between their samples.
    shared = [key for key in arms[DENSE] if all(key in traces for traces in arms.values())]
    if not shared:
        _refuse(f"no sample and seed that all {way} arms have, {', '.join(arms)}")
    number = {asked: place for place, asked in enumerate(dict.fromkeys(asked for _, asked in shared))}
    rows = []
    for arm, traces in arms.items():
        for key in sorted(shared, key=lambda key: (str(key[0]), number[key[1]])):
            row = outcome_row(outcome_of(traces[key]))
            if arm != DENSE and traces[key].kept is None:  # an imported trace that does not say what was kept
                row |= {"kept": np.nan, "overlap": np.nan}
            rows.append({"arm": arm, "seed": key[0] or 0, "sample": number[key[1]], **row})
    return Arms(pd.DataFrame(rows))


def _refuse(why: str) -> Any:
    raise ValueError(f"the store holds {why}; it takes dense and pruned traces of the same samples")


def _arm_of(pruner: Mapping[str, Any] | None) -> str:
    """What an arm with this pruner is called here: presets of the paper and fixed sets as when they are decoded."""
    if pruner is None:
        return DENSE
    given = {key: value for key, value in pruner.items() if key != "anchor_layer"}
    for name, preset in pulse_arms().items():
        if preset is not None and given == {k: v for k, v in preset.to_dict().items() if k != "anchor_layer"}:
            return name
    if given.keys() == {"name", "budget"} and given["name"] in STATIC.values():
        label = next(label for label, name in STATIC.items() if name == given["name"])
        return f"{label} {100 * given['budget']:g} %"
    inside = ", ".join(f"{key}={value!r}" for key, value in given.items() if key != "name" and value is not None)
    return f"{given.get('name')}({inside})"


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
    return [_count(len(q.targets)) if isinstance(q, Question) and q.task == "count" else q.task for q in asked]


def _count(members: int) -> str:
    return "count, 0 or 1" if members < 2 else f"count, {members}" if members < MANY else f"count, {MANY} or more"


def compare_groups(measured: Arms, groups: Sequence[str], name: str) -> dict[str, Change]:
    """Compare one arm with the dense one, group by group, in the order of the world's tasks."""
    tasks = (*TASKS, *CHART_TASKS)
    order = sorted(set(groups), key=lambda group: (tasks.index(group.split(",")[0]), group))
    rows = [measured.rows(arm) for arm in (DENSE, name)]
    return {
        group: compare(*(arm[np.array(groups)[arm["sample"]] == group] for arm in rows), together=len(order))
        for group in order
    }


def judged_groups(by_group: Mapping[str, Change]) -> dict[str, dict[str, Claim]]:
    """All groups of questions as one family of tests: group -> outcome -> Claim."""
    return judge_changes(by_group, "length, cut-offs and accuracy of one arm by group of questions")
