"""Traces that think in words: look, read, compute, check, answer; and the truth of every token.

A mark is looked at again where, and only where, the picture is objectively ambiguous: it is faint, another mark hides
it, or what is compared is at most one part of a step apart. What is searched for is met after detours, drawn by how
much a label looks like the one that is sought.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visionpulse_analysis.testbed.charts.chart import PARTS, Chart
from visionpulse_analysis.testbed.charts.questions import EXTREMES, ORDINALS, Question, extreme
from visionpulse_analysis.testbed.charts.regions import Thing

ANSWER_MARK, END_MARK = "</think>", "<|im_end|>"
FROM_IMAGE = (
    "chart", "number", "axis", "met", "label", "place", "name", "colour", "state", "tick", "part", "over", "glance",
)  # fmt: skip
FROM_TEXT = ("template", "verdict", "result", "answer")
KINDS = (*FROM_TEXT, *FROM_IMAGE)
WEIGHT_TARGET, WEIGHT_ALIKE, WEIGHT_BESIDE, WEIGHT_OTHER = 1.0, 0.6, 0.3, 0.05
MOST_DETOURS = 3  # of one search
CLOSE = 1  # parts of a step


@dataclass(frozen=True)
class TokenTruth:
    """What one token of a trace is.

    kind : of ``FROM_IMAGE`` where the picture determines the word (or, of a label that is "met" in a search, invites
    it), of ``FROM_TEXT`` where the words before it do, as they do when it was said before. about : the parts of the
    chart that show it, none for words from text.
    """

    word: str
    kind: str = "template"
    about: tuple[Thing, ...] = ()

    @property
    def from_image(self) -> bool:
        return self.kind in FROM_IMAGE


def reason(chart: Chart, question: Question, rng: np.random.Generator) -> list[TokenTruth]:
    """Write one trace with its answer, from the first token after ``<think>`` to the end mark."""
    body = [*_words(f"we want {question.text.removesuffix('?')}."), *describe(chart)]
    body += legend(chart, None if question.task == "legend" else question.series)
    body += [*_words("at a glance"), *_glances(chart, question), *_words(".")]
    body += _THINKING[question.task](chart, question, rng)
    return answered(told_once(body), question.answer)


def told_once(tokens: list[TokenTruth]) -> list[TokenTruth]:
    """What was read off the picture before is text when it is said again."""
    told: set[tuple] = set()
    result = []
    for token in tokens:
        if token.kind in ("label", "place", "name", "colour", "state", "tick", "part"):
            # A place and its label are one fact, whichever of them is told first.
            fact = token.about if token.about[0].kind == "label" else (token.kind, *token.about)
            result.append(TokenTruth(token.word) if fact in told else token)
            told.add(fact)
        else:
            result.append(token)
    return result


def answered(body: list[TokenTruth], answer: str) -> list[TokenTruth]:
    """A trace of ``body`` that ends in ``answer``."""
    return [*body, TokenTruth(ANSWER_MARK), TokenTruth(answer, "answer"), TokenTruth(END_MARK)]


def tops(chart: Chart, series: int) -> tuple[Thing, ...]:
    """The upper ends of all marks of a series."""
    return tuple(Thing("top", mark, series) for mark in range(chart.n_marks))


def describe(chart: Chart) -> list[TokenTruth]:
    """Say what kind of chart it is, how many marks a series and how many series it has, and its axis."""
    every = range(len(chart.names))
    kind = "line" if chart.kind == "line" else "mark"
    marks = tuple(Thing(kind, 0 if kind == "line" else i, s) for s in every for i in range(chart.n_marks))
    places = tuple(Thing("label", i) for i in range(chart.n_marks)) if chart.labels else tops(chart, 0)
    series = tuple(Thing("legend", series=s) for s in every) if len(chart.names) > 1 else marks
    return [
        *_words("the chart is a"),
        TokenTruth(chart.kind, "chart", tuple(dict.fromkeys(marks))),
        *_words("chart of"),
        TokenTruth(str(chart.n_marks), "number", places),
        *_words("marks"),
        TokenTruth(str(len(chart.names)), "number", series),
        *_words("series axis"),
        TokenTruth(str(chart.top), "axis", (Thing("tick", chart.intervals),)),
        *_words("by"),
        TokenTruth(str(chart.step), "axis", (Thing("tick", 1),)),
        *_words("."),
    ]


def legend(chart: Chart, series: int | None = None) -> list[TokenTruth]:
    """Read the legend in its order, and say once more which colour ``series`` has; nothing where there is none.

    In order, because a name that had to be searched for in the picture was not found (``data/charts/README.md``).
    """
    if len(chart.names) == 1:
        return []
    told = [*range(len(chart.names)), *([] if series is None else [series])]
    return told_once([token for s in told for token in [*legend_entry(chart, s), *_words(".")]])


def legend_entry(chart: Chart, series: int) -> list[TokenTruth]:
    """Read a name and its colour."""
    about = (Thing("legend", series=series),)
    name, colour = TokenTruth(chart.names[series], "name", about), TokenTruth(chart.colours[series], "colour", about)
    return [name, *_words("is"), colour]


def glance_extreme(chart: Chart, series: int, which: str) -> list[TokenTruth]:
    place = ORDINALS[extreme(chart, series, which)]
    return [*_words(which), TokenTruth(place, "glance", tops(chart, series))]


def glance_above(chart: Chart, series: int, level: int) -> list[TokenTruth]:
    """How many marks are above a tick; ``level`` is that of the tick, in parts of a step."""
    count = str(int((chart.levels[series] > level).sum()))
    about = (*tops(chart, series), Thing("tick", level // PARTS))
    return [*_words(f"over {level * chart.unit}"), TokenTruth(count, "glance", about)]


def glance_above_half(chart: Chart, series: int) -> list[TokenTruth]:
    """How many marks are in the upper half of the axis."""
    count = str(int((chart.levels[series] > PARTS * chart.intervals // 2).sum()))
    return [*_words("over half"), TokenTruth(count, "glance", tops(chart, series))]


def glance_trend(chart: Chart, series: int) -> list[TokenTruth]:
    about = (Thing("line", series=series),) if chart.kind == "line" else tops(chart, series)
    return [*_words("it"), TokenTruth(chart.trend(series), "glance", about)]


def glance_larger(chart: Chart, series: int, a: int, b: int) -> list[TokenTruth]:
    """Which of two marks is higher."""
    higher = a if chart.levels[series, a] > chart.levels[series, b] else b
    about = tuple(Thing("top", mark, series) for mark in (a, b))
    return [*_words("between them"), TokenTruth(chart.labels[higher], "glance", about), *_words("is higher")]


def read_off(chart: Chart, series: int, mark: int) -> list[TokenTruth]:
    """Read a mark against the axis: the tick below it, and how many parts it is above that."""
    top = Thing("top", mark, series)
    tick, part = divmod(int(chart.levels[series, mark]), PARTS)
    below, over = Thing("tick", tick), (Thing("tick", tick + 1),) if tick < chart.intervals else ()
    return [
        *_words("above"),
        TokenTruth(str(tick * chart.step), "tick", (top, below)),
        *_words("by"),
        TokenTruth(str(part), "part", (top, below, *over)),
    ]


def state_of(chart: Chart, series: int, mark: int) -> TokenTruth:
    return TokenTruth(chart.state(series, mark), "state", (Thing("mark", mark, series),))


def _words(text: str) -> list[TokenTruth]:
    return [TokenTruth(word) for word in text.split()]


def _joined(parts: list[list[TokenTruth]]) -> list[TokenTruth]:
    return [token for i, part in enumerate(parts) for token in ([TokenTruth(",")] if i else []) + part]


def _glances(chart: Chart, q: Question) -> list[TokenTruth]:
    """What a glance at the series of the question tells, except what the question asks for."""
    s, task = q.series, q.task
    shown = [glance_above_half(chart, s)]
    if chart.kind != "scatter":
        shown += [glance_extreme(chart, s, which) for which in EXTREMES if which != q.which]
    if chart.kind in ("line", "scatter") and task != "trend":
        shown.append(glance_trend(chart, s))
    if task not in ("larger", "sum", "difference"):
        told = {q.level, PARTS * chart.intervals // 2}
        ticks = (PARTS * tick for tick in range(1, chart.intervals))
        shown += [glance_above(chart, s, level) for level in ticks if level not in told]
    return _joined(shown)


def _search(chart: Chart, goal: int, rng: np.random.Generator) -> list[TokenTruth]:
    tokens, left = _words(f"find {chart.labels[goal]} ."), list(range(chart.n_marks))
    while True:
        weights = np.array([_similarity(chart, i, goal) for i in left])
        detours = chart.n_marks - len(left)
        seen = goal if detours == MOST_DETOURS else left.pop(int(rng.choice(len(left), p=weights / weights.sum())))
        about = (Thing("label", seen),)
        tokens += [
            *_words("see"),
            TokenTruth(chart.labels[seen], "met", about),
            TokenTruth(ORDINALS[seen], "place", about),
            TokenTruth("yes" if seen == goal else "no", "verdict"),
            *_words("."),
        ]
        if seen == goal:
            return tokens


_ALIKE = {frozenset(pair) for pair in ("bd", "be", "bh", "ef", "cg", "ah", "cd", "dg")}


def _similarity(chart: Chart, i: int, goal: int) -> float:
    a, b = chart.labels[i], chart.labels[goal]
    if i == goal:
        return WEIGHT_TARGET
    # Words share letters in their places; letters share strokes.
    if sum(x == y for x, y in zip(a, b, strict=True)) > len(a) // 2 or {*a, *b} in _ALIKE:
        return WEIGHT_ALIKE
    return WEIGHT_BESIDE if abs(i - goal) == 1 else WEIGHT_OTHER


def _read(chart: Chart, series: int, mark: int, subject: str) -> list[TokenTruth]:
    """Read a mark, looking again where it is not clear, and say its value."""
    state = state_of(chart, series, mark)
    again = [] if state.word == "clear" else _words("look again .")
    value = TokenTruth(str(chart.value(series, mark)), "result")
    return [
        *_words(subject),
        state,
        *_words("." if again else ","),
        *again,
        *read_off(chart, series, mark),
        *_words("so"),
        value,
        *_words("."),
    ]


def compared(chart: Chart, series: int, a: int, b: int) -> TokenTruth:
    """How well two marks can be told apart: "close", or the state of the one that is less clear."""
    about = tuple(Thing("mark", mark, series) for mark in (a, b))
    gap = abs(int(chart.levels[series, a]) - int(chart.levels[series, b]))
    states = {chart.state(series, mark) for mark in (a, b)}
    word = "close" if gap <= CLOSE else next(s for s in ("faint", "hidden", "clear") if s in states)
    return TokenTruth(word, "state", about)


def _versus(chart: Chart, series: int, a: int, b: int) -> list[TokenTruth]:
    va, vb = chart.value(series, a), chart.value(series, b)
    verdict = "more" if va > vb else "less" if va < vb else "same"
    return [*_words(f"{va} then {vb} ,"), TokenTruth(verdict, "verdict"), *_words(".")]


def _look_again(chart: Chart, series: int, a: int, b: int) -> list[TokenTruth]:
    """Say how well two marks can be told apart, and read both where they cannot."""
    tokens = [*_words("it is"), compared(chart, series, a, b), *_words(".")]
    if tokens[-2].word == "clear":
        return tokens
    tokens += _words("look again .")
    for mark in (a, b):
        tokens += _read(chart, series, mark, chart.labels[mark] if chart.labels else "it")
    return tokens + _versus(chart, series, a, b)


def _value(chart: Chart, q: Question, rng: np.random.Generator) -> list[TokenTruth]:
    (a,) = q.marks
    tokens = [*_search(chart, a, rng), *_read(chart, q.series, a, chart.labels[a]), *_words("check")]
    neighbours = [(name, mark) for name, mark in (("left", a - 1), ("right", a + 1)) if 0 <= mark < chart.n_marks]
    tokens += _joined([beside(chart, q.series, a, mark, name) for name, mark in neighbours])
    return [*tokens, *_words(f". so the answer is {q.answer} .")]


def beside(chart: Chart, series: int, mark: int, other: int, side: str) -> list[TokenTruth]:
    """What stands beside a mark, and whether it is higher or lower."""
    difference = int(chart.levels[series, other]) - int(chart.levels[series, mark])
    word = "higher" if difference > 0 else "lower" if difference < 0 else "same"
    about = tuple(Thing("top", m, series) for m in (mark, other))
    label = TokenTruth(chart.labels[other], "label", (Thing("label", other),))
    return [*_words(side), label, TokenTruth(word, "glance", about)]


def _larger(chart: Chart, q: Question, rng: np.random.Generator) -> list[TokenTruth]:
    a, b = q.marks
    tokens = [*_search(chart, a, rng), *_search(chart, b, rng)]
    tokens += [*glance_larger(chart, q.series, a, b), *_words("."), *_look_again(chart, q.series, a, b)]
    return [*tokens, *_words(f"so the answer is {q.answer} .")]


def _computed(chart: Chart, q: Question, rng: np.random.Generator) -> list[TokenTruth]:
    tokens: list[TokenTruth] = []
    for mark in q.marks:
        tokens += [*_search(chart, mark, rng), *_read(chart, q.series, mark, chart.labels[mark])]
    va, vb = (chart.value(q.series, mark) for mark in q.marks)
    asked = f"{va} plus {vb} is" if q.task == "sum" else f"{max(va, vb)} minus {min(va, vb)} is"
    return [*tokens, *_words(asked), TokenTruth(q.answer, "result"), *_words(".")]


def _find_extreme(chart: Chart, series: int, which: str) -> list[TokenTruth]:
    """The extreme mark and the next, and a second look where they are close."""
    found = extreme(chart, series, which)
    order = np.argsort(-chart.levels[series] if which == "highest" else chart.levels[series], kind="stable")
    following = int(order[1])
    tokens = []
    for opening, mark in ((f"the {which}", found), ("next", following)):
        tokens += [*_words(opening), TokenTruth(ORDINALS[mark], "glance", tops(chart, series))]
        tokens += [TokenTruth(chart.labels[mark], "label", (Thing("label", mark),)), *_words(".")]
    return tokens + _look_again(chart, series, found, following)


def _extreme(chart: Chart, q: Question, rng: np.random.Generator) -> list[TokenTruth]:
    if chart.kind != "scatter":
        return [*_find_extreme(chart, q.series, q.which), *_words(f"so the answer is {q.answer} .")]
    order = np.argsort(-chart.levels[q.series] if q.which == "highest" else chart.levels[q.series], kind="stable")
    found, following = int(order[0]), int(order[1])
    tokens = [*_read(chart, q.series, found, f"the {q.which}"), *_read(chart, q.series, following, "next")]
    return [*tokens, *_versus(chart, q.series, found, following), *_words(f"so the answer is {q.answer} .")]


def _above(chart: Chart, q: Question, rng: np.random.Generator) -> list[TokenTruth]:
    s, limit = q.series, q.level * chart.unit
    over = [mark for mark in range(chart.n_marks) if chart.levels[s, mark] > q.level]
    tick = Thing("tick", q.level // PARTS)
    tokens = [*glance_above(chart, s, q.level), *_words(".")]
    if chart.labels:
        tokens += _words("count")
        for count, mark in enumerate(over, start=1):
            about = (Thing("top", mark, s), tick)
            tokens += [TokenTruth(ORDINALS[mark], "place", about)]
            tokens += [TokenTruth(chart.labels[mark], "label", (Thing("label", mark),))]
            tokens += [TokenTruth(str(count), "result"), *_words(",")]
        tokens += [TokenTruth("none", "verdict"), *_words(".")]
    else:
        tokens += [*halves(chart, s, q.level), *_words(",")]
        tokens += [*_words("in all"), TokenTruth(str(len(over)), "result"), *_words(".")]
    nearest = int(np.abs(chart.levels[s] - q.level).argmin())
    is_close = abs(int(chart.levels[s, nearest]) - q.level) <= CLOSE
    state = TokenTruth("close" if is_close else "clear", "state", (*tops(chart, s), tick))
    tokens += [*_words(f"nearest {limit} it is"), state, *_words(".")]
    if is_close:
        tokens += [*_words("look again . see"), *named(chart, nearest), *_words(".")]
        tokens += _read(chart, s, nearest, chart.labels[nearest] if chart.labels else "it")
        value = chart.value(s, nearest)
        verdict = "more" if value > limit else "less" if value < limit else "same"
        tokens += [*_words(f"{value} then {limit} ,"), TokenTruth(verdict, "verdict"), *_words(".")]
    return [*tokens, *_words(f"so the answer is {q.answer} .")]


def halves(chart: Chart, series: int, level: int) -> list[TokenTruth]:
    """How many points are above a level in the left half of the plot; the rest of those told before are right."""
    is_left, is_above = chart.x[series] < 0.5, chart.levels[series] > level
    about = tuple(Thing("top", int(mark), series) for mark in np.flatnonzero(is_left))
    left, right = int((is_left & is_above).sum()), int((~is_left & is_above).sum())
    return [*_words("left"), TokenTruth(str(left), "glance", about), *_words("right"), TokenTruth(str(right), "result")]


def named(chart: Chart, mark: int) -> list[TokenTruth]:
    """The place of a mark and, where it has one, its label."""
    about = (Thing("label", mark),) if chart.labels else tops(chart, 0)
    label = [TokenTruth(chart.labels[mark], "label", about)] if chart.labels else []
    return [TokenTruth(ORDINALS[mark], "place", about), *label]


def _trend(chart: Chart, q: Question, rng: np.random.Generator) -> list[TokenTruth]:
    s = q.series
    about = (Thing("line", series=s),) if chart.kind == "line" else tops(chart, s)
    is_close = chart.trend_is_close(s)
    ends = (0, chart.n_marks - 1)
    if chart.kind == "line":
        first, last = [TokenTruth(chart.labels[mark], "label", (Thing("label", mark),)) for mark in ends]
        tokens = [*_words("from"), first, *_words("to"), last]
    else:
        tokens = [*halves(chart, s, PARTS * chart.intervals // 2), *_words("over half ,")]
    tokens += [*glance_trend(chart, s), *_words(", it is")]
    tokens += [TokenTruth("close" if is_close else "clear", "state", about), *_words(".")]
    if chart.kind == "line":
        if is_close:
            tokens += _words("look again .")
            for mark in ends:
                tokens += [*_words("see"), *named(chart, mark), *_words(".")]
                tokens += _read(chart, s, mark, chart.labels[mark])
            tokens += _versus(chart, s, *ends)
    elif is_close:
        tokens += [*_words("look again ."), *halves(chart, s, PARTS), *_words(f"over {chart.step} .")]
    return [*tokens, *_words(f"so the answer is {q.answer} .")]


def _legend(chart: Chart, q: Question, rng: np.random.Generator) -> list[TokenTruth]:
    seen = [legend_entry(chart, s) for s in range(len(chart.names))]
    return [*_words("in the legend"), *_joined(seen), *_words(f", so the answer is {q.answer} .")]


def _hop(chart: Chart, q: Question, rng: np.random.Generator) -> list[TokenTruth]:
    found, goal = q.marks
    tokens = _find_extreme(chart, q.series, q.which)
    direction = "right" if goal > found else "left"
    tokens += _words(f"{direction} of {ORDINALS[found]} is {ORDINALS[goal]} .")
    tokens += [*_words(f"see {ORDINALS[goal]}"), TokenTruth(chart.labels[goal], "label", (Thing("label", goal),))]
    tokens += _words(".")
    if q.by == "value":
        tokens += _read(chart, q.series, goal, chart.labels[goal])
    return [*tokens, *_words(f"so the answer is {q.answer} .")]


_THINKING = {
    "value": _value,
    "larger": _larger,
    "sum": _computed,
    "difference": _computed,
    "extreme": _extreme,
    "above": _above,
    "trend": _trend,
    "legend": _legend,
    "hop": _hop,
}
