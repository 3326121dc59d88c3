"""Conversations of training only: dense reading and glances, taught by themselves before any reasoning is.

They use the phrases of the traces, so that what is learned in them is what traces need.
"""

from __future__ import annotations

import numpy as np

from visionpulse_analysis.testbed.charts.chart import PARTS, Chart
from visionpulse_analysis.testbed.charts.questions import ORDINALS, Question, in_series
from visionpulse_analysis.testbed.charts.reasoning import (
    TokenTruth,
    answered,
    describe,
    glance_above,
    glance_above_half,
    glance_extreme,
    glance_larger,
    glance_trend,
    legend,
    read_off,
    state_of,
)
from visionpulse_analysis.testbed.charts.regions import Thing

DENSE = ("describe", "read", "visit", "check", "survey", "find")


def practise(chart: Chart, task: str, rng: np.random.Generator) -> tuple[Question, list[TokenTruth]]:
    """Draw one conversation of a task of ``DENSE``.

    describe : the kind of chart, its axis and legend. read : marks given by their labels, in any order (by their
    places where there are no labels). visit : marks given by their places. check : which marks are above a tick, one by
    one, which is learned sooner than between which ticks a mark ends. survey : what a glance at many marks tells.
    find : where every label is, in any order (``visit`` where there are no labels). What is read of one series of
    several begins with the legend.
    Raises ValueError for any other task.
    """
    if task not in DENSE:
        raise ValueError(f"unknown task {task!r}; known: {', '.join(DENSE)}")
    series = int(rng.integers(len(chart.names)))
    where = in_series(chart, series)
    if task == "describe":
        return _conversation(task, "describe the chart .", series, [*describe(chart), *legend(chart)])
    if task == "check":
        ticks = [int(t) for t in rng.permutation(np.arange(1, chart.intervals))[:2]]
        text = f"check {' , '.join(str(tick * chart.step) for tick in ticks)}{where} ."
        body = [token for tick in ticks for token in _checked(chart, series, tick)]
        return _conversation(task, text, series, [*legend(chart, series), *body])
    if task == "survey":
        text = f"glance at {where.removeprefix(' in ') or 'it'} ."
        return _conversation(task, text, series, [*legend(chart, series), *_glance(chart, series, rng)])
    if task == "find" and chart.labels:
        order = [int(m) for m in rng.permutation(chart.n_marks)]
        return _conversation(task, "find all .", series, [token for mark in order for token in _placed(chart, mark)])
    marks = [int(m) for m in rng.permutation(chart.n_marks)[:5]]
    by_label = task == "read" and chart.labels
    given = [chart.labels[m] if by_label else ORDINALS[m] for m in marks]
    body = [token for mark in marks for token in _inspected(chart, series, mark, bool(by_label))]
    word = "read" if by_label else "visit"
    return _conversation(task, f"{word} {' , '.join(given)}{where} .", series, [*legend(chart, series), *body])


def _checked(chart: Chart, series: int, tick: int) -> list[TokenTruth]:
    """Mark by mark, whether it is above a tick."""
    tokens = [TokenTruth(str(tick * chart.step))]
    for mark in range(chart.n_marks):
        word = "yes" if chart.levels[series, mark] > PARTS * tick else "no"
        about = (Thing("top", mark, series), Thing("tick", tick))
        tokens += [TokenTruth(ORDINALS[mark]), TokenTruth(word, "over", about)]
    return [*tokens, TokenTruth(".")]


def _conversation(task: str, text: str, series: int, body: list[TokenTruth]) -> tuple[Question, list[TokenTruth]]:
    return Question(task, text, "done", series), answered(body, "done")


def _placed(chart: Chart, mark: int) -> list[TokenTruth]:
    """A label, which is told, and the place that is read off."""
    return [
        TokenTruth(chart.labels[mark]),
        TokenTruth(ORDINALS[mark], "place", (Thing("label", mark),)),
        TokenTruth(","),
    ]


def _inspected(chart: Chart, series: int, mark: int, by_label: bool) -> list[TokenTruth]:
    about = (Thing("label", mark),) if chart.labels else (Thing("top", mark, series),)
    if by_label:
        named = [TokenTruth(chart.labels[mark]), TokenTruth(ORDINALS[mark], "place", about)]
    else:
        named = [TokenTruth(ORDINALS[mark])]
        named += [TokenTruth(chart.labels[mark], "label", about)] if chart.labels else []
    state = state_of(chart, series, mark)
    return [TokenTruth("see"), *named, state, TokenTruth(","), *read_off(chart, series, mark), TokenTruth(".")]


def _glance(chart: Chart, series: int, rng: np.random.Generator) -> list[TokenTruth]:
    seen = [glance_above(chart, series, PARTS * tick) for tick in range(1, chart.intervals)]
    seen += [glance_above_half(chart, series)]
    if chart.kind in ("line", "scatter"):
        seen.append(glance_trend(chart, series))
    if chart.labels:
        seen += [glance_extreme(chart, series, which) for which in ("highest", "lowest")]
        pairs = [tuple(int(m) for m in rng.choice(chart.n_marks, size=2, replace=False)) for _ in range(2)]
        for a, b in pairs:
            if chart.levels[series, a] != chart.levels[series, b]:
                named = [TokenTruth(word) for word in f"{chart.labels[a]} and {chart.labels[b]} ,".split()]
                seen.append([*named, *glance_larger(chart, series, a, b)])
    order = rng.permutation(len(seen))
    return [token for i in order for token in [*seen[i], TokenTruth(".")]]
