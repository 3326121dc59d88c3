"""Trace length and accuracy question by question: which questions need more of the image at once than is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.figures import DOUBLE
from visionpulse_analysis.metrics.statistics import Claim
from visionpulse_analysis.studies.shared.intervals import draw_named
from visionpulse_analysis.studies.shared.per_trace import Arm
from visionpulse_analysis.studies.trace_length.measure import DENSE, Change, compare, judge_changes
from visionpulse_analysis.studies.trace_length.report import KEPT, cut_off_columns, percent, show, show_length, show_p
from visionpulse_analysis.testbed.scenes.questions import TASKS

MANY = 4


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


def compare_groups(measured: Mapping[str, Arm], groups: Sequence[str], name: str) -> dict[str, Change]:
    """Compare one arm with the dense one, group by group, in the order of ``TASKS``."""
    order = sorted(set(groups), key=lambda group: (TASKS.index(group.split(",")[0]), group))
    dense, arm, of = measured[DENSE], measured[name], np.array(groups)
    return {group: compare(dense, arm, of == group, together=len(order)) for group in order}


def group_table(by_group: Mapping[str, Change]) -> pd.DataFrame:
    """One row per group of questions."""
    rows, found = {}, _judged(by_group)
    for group, c in by_group.items():
        if c.truth is not None:
            rows[group] = {
                "pairs": c.n_pairs,
                "kept": f"{100 * c.retention:.1f} %",
                **cut_off_columns(c),
                "length": show_length(c),
                "p, length": show_p(found[group]["length"]),
                "dense accuracy": show(c.truth.dense_accuracy, sign=False),
                "share of dense accuracy": show(c.truth.ratio, sign=False),
                "p, accuracy": show_p(found[group]["accuracy"]),
                "change of detours": show(c.truth.detour_change, 1, ""),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def _judged(by_group: Mapping[str, Change]) -> dict[str, dict[str, Claim]]:
    return judge_changes(by_group, "length, cut-offs and accuracy of one arm by group of questions")


def where_accuracy_goes(by_group: Mapping[str, Change]) -> str:
    """Which groups of questions lose accuracy, keep 98 % of it, or stay open.

    Losses are told by tests adjusted together, and what is kept by intervals that hold for all groups together.
    """
    scored = {group: c.truth for group, c in by_group.items() if c.truth is not None}
    found = _judged(by_group)
    lost = [g for g in scored if found[g]["accuracy"].decision == "falls"]
    kept = [g for g, truth in scored.items() if truth.ratio_together.low >= KEPT and g not in lost]
    rest = [g for g in scored if g not in kept and g not in lost]
    parts = [
        f"{what}: {'; '.join(groups)}."
        for what, groups in ((f"Kept (at least {100 * KEPT:g} % of dense)", kept), ("Lost", lost), ("Open", rest))
        if groups
    ]
    return " ".join(parts)


def spread(dense: Arm, arms: Mapping[str, Arm], by_group: Mapping[str, Change] | None) -> Figure:
    """How the change of length is distributed over the pairs that ended; length and accuracy by known question."""
    fig, axes = figures.new_figure(DOUBLE, 2.4, 1, 1 if by_group is None else 3)
    first, *rest = np.atleast_1d(axes)
    change = {name: (arm.length - dense.length)[arm.finished & dense.finished] for name, arm in arms.items()}
    change = {name: values for name, values in change.items() if len(values)}
    if change:
        reach = max(1, *(int(np.abs(values).max()) for values in change.values()))
        bins = np.linspace(-reach - 0.5, reach + 0.5, 30)
        figures.draw_histogram(first, change, bins, xlabel="pruned minus dense (tokens)", ylabel="pairs", reference=0)
        first.set_yscale("symlog", linthresh=10)
        figures.draw_legend(first)
    else:
        with figures.style():
            first.set_title("no pair ended within the limit")
    if by_group is not None:
        lengths = {group: c.length for group, c in by_group.items()}
        shares = {group: c.truth.ratio for group, c in by_group.items() if c.truth is not None}
        draw_named(rest[0], percent(lengths), reference=0, xlabel="change of length (%)")
        draw_named(rest[1], percent(shares), reference=100, xlabel="share of dense accuracy (%)")
        rest[1].set_yticklabels([])
    return fig
