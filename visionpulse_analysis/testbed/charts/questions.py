"""Questions about charts, with their answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visionpulse_analysis.testbed.charts.chart import PARTS, Chart

TASKS = ("value", "larger", "sum", "difference", "extreme", "above", "trend", "legend", "hop")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
EXTREMES = ("highest", "lowest")


@dataclass(frozen=True)
class Question:
    """One question about a chart.

    series : which series it is about. marks : the marks that it names or, of an extreme or a hop, that it leads to, in
    order. which : "highest" or "lowest", of extremes and hops. level : of *above*, in parts of a step. by : what the
    question gives of a legend entry, "name" or "colour"; of a hop what it asks for, "label" or "value".
    """

    task: str
    text: str
    answer: str
    series: int
    marks: tuple[int, ...] = ()
    which: str = ""
    level: int = 0
    by: str = ""


def can_ask(chart: Chart, task: str) -> bool:
    """Whether a chart carries questions of a task.

    Places have names in all charts but clouds of points, trends are those of lines and clouds, and only charts of
    several series have a legend.

    Raises
    ------
    ValueError
        If there is no such task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    if task == "legend":
        return len(chart.names) > 1
    if task == "trend":
        return chart.kind in ("line", "scatter")
    return task in ("extreme", "above") or chart.kind != "scatter"


def in_series(chart: Chart, series: int) -> str:
    """How a question names a series, as in " in q"; nothing where there is only one."""
    return f" in {chart.names[series]}" if len(chart.names) > 1 else ""


def ask(chart: Chart, task: str, rng: np.random.Generator) -> Question:
    """Draw a question of a task that ``chart`` carries (ValueError where it does not, see :func:`can_ask`)."""
    if not can_ask(chart, task):
        raise ValueError(f"a {chart.kind} chart of {len(chart.names)} series carries no question of {task!r}")
    s = int(rng.integers(len(chart.names)))
    where = in_series(chart, s)
    if task == "value":
        a = int(rng.integers(chart.n_marks))
        return Question(task, f"what is the value of {chart.labels[a]}{where} ?", str(chart.value(s, a)), s, (a,))
    if task in ("larger", "sum", "difference"):
        return _two_marks(chart, task, s, rng)
    if task == "above":
        level = PARTS * int(rng.integers(1, chart.intervals))
        count = int((chart.levels[s] > level).sum())
        text = f"how many are over {level * chart.unit}{where} ?"
        return Question(task, text, str(count), s, level=level)
    if task == "trend":
        text = f"does {chart.names[s] or 'it'} rise or fall ?"
        return Question(task, text, chart.trend(s), s)
    if task == "legend":
        name, colour = chart.names[s], chart.colours[s]
        if rng.random() < 0.5:
            return Question(task, f"which colour is {name} ?", colour, s, by="name")
        return Question(task, f"which series is {colour} ?", name, s, by="colour")
    which = str(rng.choice(EXTREMES))
    found = extreme(chart, s, which)
    if task == "extreme":
        if chart.kind == "scatter":
            text = f"what is the value of the {which} point{where} ?"
            return Question(task, text, str(chart.value(s, found)), s, (found,), which)
        return Question(task, f"which is the {which}{where} ?", chart.labels[found], s, (found,), which)
    sides = [side for side in (-1, 1) if 0 <= found + side < chart.n_marks]
    side = int(rng.choice(sides))
    direction, goal = "right" if side > 0 else "left", found + side
    if rng.random() < 0.5:
        text = f"what is {direction} of the {which}{where} ?"
        return Question(task, text, chart.labels[goal], s, (found, goal), which, by="label")
    text = f"what is the value {direction} of the {which}{where} ?"
    return Question(task, text, str(chart.value(s, goal)), s, (found, goal), which, by="value")


def extreme(chart: Chart, series: int, which: str) -> int:
    """The highest or lowest mark of a series; there is only one."""
    return int(chart.levels[series].argmax() if which == "highest" else chart.levels[series].argmin())


def _two_marks(chart: Chart, task: str, s: int, rng: np.random.Generator) -> Question:
    """About two marks of different heights; often close ones, where there are any."""
    levels = chart.levels[s]
    pairs = [(a, b) for a in range(chart.n_marks) for b in range(chart.n_marks) if levels[a] != levels[b]]
    close = [(a, b) for a, b in pairs if abs(int(levels[a]) - int(levels[b])) == 1]
    drawn = close if close and rng.random() < 0.3 else pairs
    a, b = drawn[int(rng.integers(len(drawn)))]
    (first, second), (va, vb) = (chart.labels[a], chart.labels[b]), (chart.value(s, a), chart.value(s, b))
    where = in_series(chart, s)
    if task == "larger":
        return Question(task, f"which is larger {first} or {second}{where} ?", first if va > vb else second, s, (a, b))
    if task == "sum":
        return Question(task, f"what is {first} plus {second}{where} ?", str(va + vb), s, (a, b))
    return Question(task, f"how far apart are {first} and {second}{where} ?", str(abs(va - vb)), s, (a, b))
