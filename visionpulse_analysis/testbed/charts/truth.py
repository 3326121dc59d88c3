"""What the words of a generated trace are about, and whether they are true: read with the phrases of `reasoning`.

Each phrase that is met is set beside the one that a true trace would hold there, word by word. So a true trace is
annotated as it was written, whatever detours it took, and of a broken one every phrase that is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from visionpulse_analysis.testbed.charts.chart import COLOURS, PARTS, Chart
from visionpulse_analysis.testbed.charts.questions import EXTREMES, ORDINALS, Question, extreme
from visionpulse_analysis.testbed.charts.reasoning import (
    ANSWER_MARK,
    CLOSE,
    END_MARK,
    FROM_IMAGE,
    TokenTruth,
    beside,
    compared,
    describe,
    glance_above,
    glance_above_half,
    glance_extreme,
    glance_larger,
    glance_trend,
    halves,
    legend_entry,
    named,
    read_off,
    state_of,
    told_once,
    tops,
)
from visionpulse_analysis.testbed.charts.regions import Thing

STATES = ("clear", "faint", "hidden", "close")
REASONS = ("close values", "low contrast", "overlap")


def annotate(chart: Chart, question: Question, words: Sequence[str]) -> list[TokenTruth]:
    """Kind and parts of the chart of every token of a generated trace (one word per token).

    Words that stand in no phrase of a true trace, or that name what the chart has not, are template.
    """
    return told_once([token for token, _ in Reader(chart, question, words).read()])


def mistakes(chart: Chart, question: Question, words: Sequence[str]) -> list[TokenTruth]:
    """The words of a generated trace that the picture contradicts, of kinds that are read off it, in order."""
    said = Reader(chart, question, words).read()
    return [token for token, true in said if token.kind in FROM_IMAGE and token.word not in true]


def reasons_to_err(chart: Chart, question: Question) -> tuple[str, ...]:
    """What of ``REASONS`` makes a question hard, by the truth alone: none for a question whose picture is clear.

    close values: what is compared, with a tick or with another mark, is at most one part of a step apart. low contrast,
    overlap: a mark that the question leads to is faint, or another mark hides it.
    """
    s, levels = question.series, chart.levels[question.series].astype(int)
    marks, close = question.marks, False
    if question.task in ("larger", "difference"):
        close = abs(levels[marks[0]] - levels[marks[1]]) <= CLOSE
    elif question.task in ("extreme", "hop"):
        other = second(chart, s, question.which)
        marks = (*marks, other)
        close = abs(levels[marks[0]] - levels[other]) <= CLOSE
    elif question.task == "above":
        close = bool((np.abs(levels - question.level) <= CLOSE).any())
    elif question.task == "trend":
        close = chart.trend_is_close(s)
    if question.task in ("above", "trend"):
        marks = tuple(range(chart.n_marks))
    met = (close, any(chart.is_faint(s, m) for m in marks), any(chart.is_hidden(s, m) for m in marks))
    return tuple(reason for reason, holds in zip(REASONS, met, strict=True) if holds)


def second(chart: Chart, series: int, which: str) -> int:
    """The mark next to the highest or the lowest."""
    order = np.argsort(-chart.levels[series] if which == "highest" else chart.levels[series], kind="stable")
    return int(order[1])


class Reader:
    """Goes through the words of one trace once; ``mark`` is the one that is spoken of."""

    def __init__(self, chart: Chart, question: Question, words: Sequence[str]):
        self.chart, self.question, self.words = chart, question, [word.strip() for word in words]
        self.series = question.series
        self.mark = question.marks[0] if question.marks else 0
        self.pair: list[int] = list(question.marks) if question.task == "larger" else []
        self.place = 0

    def read(self) -> list[tuple[TokenTruth, tuple[str, ...]]]:
        """Every token with the words that would be true there, none for template."""
        result: list[tuple[TokenTruth, tuple[str, ...]]] = []
        while self.place < len(self.words):
            phrase = self._phrase()
            true = phrase or [TokenTruth(self.words[self.place])]
            for token in true[: len(self.words) - self.place]:
                result.append((replace(token, word=self.words[self.place]), tuple(token.word.split("|"))))
                self.place += 1
        return result

    def _at(self, ahead: int) -> str:
        return self.words[self.place + ahead] if self.place + ahead < len(self.words) else ""

    def _plain(self, end: str) -> list[TokenTruth]:
        """Template up to a word."""
        rest = self.words[self.place :]
        stop = rest.index(end) + 1 if end in rest else len(rest)
        return [TokenTruth(word) for word in rest[:stop]]

    def _mark(self, word: str) -> int | None:
        """The mark of a label or a place."""
        names = self.chart.labels if word in self.chart.labels else ORDINALS[: self.chart.n_marks]
        return names.index(word) if word in names else None

    def _phrase(self) -> list[TokenTruth]:
        """What the true trace would hold from here on, as many words as were recognised; none for one plain word."""
        chart, s, word, following = self.chart, self.series, self._at(0), self._at(1)
        if word == ANSWER_MARK:
            rest = self.words[self.place + 1 :]
            return [TokenTruth(word), *(TokenTruth(w, "template" if w == END_MARK else "answer") for w in rest)]
        if (word, following) in (("we", "want"), ("so", "the"), ("find", self._at(1))):
            return self._plain(".") if "." in self.words[self.place :] else []
        if (word, following) == ("the", "chart"):
            return self._as_said(describe(chart))
        if word in chart.names and word and following == "is" and self._at(2) in COLOURS:
            return legend_entry(chart, chart.names.index(word))
        if word == "over" and following == "half" and self._at(2).isdigit():
            return glance_above_half(chart, s)
        if word == "over" and following.isdigit() and self._at(2).isdigit():
            tick, rest = divmod(int(following), chart.step)
            return glance_above(chart, s, PARTS * tick) if not rest and tick <= chart.intervals else []
        if (word, following) == ("between", "them") and self._at(2) in chart.labels and len(self.pair) == 2:
            return glance_larger(chart, s, *self.pair)[:3]
        if word in EXTREMES and following in ORDINALS:
            return self._extreme(word, glance_extreme(chart, s, word))
        if word == "next" and following in ORDINALS and self.question.which:
            place = ORDINALS[second(chart, s, self.question.which)]
            return self._extreme("", [TokenTruth(word), TokenTruth(place, "glance", tops(chart, s))])
        if word == "it" and following in ("rises", "falls", "level"):
            return glance_trend(chart, s)
        if word == "it" and following == "is" and self._at(2) in STATES:
            return [TokenTruth(word), TokenTruth(following), *self._compared()]
        if word in ("left", "right"):
            return self._side(word, following)
        if word == "see":
            return self._seen(following)
        if word == "from" and following in chart.labels and self._at(2) == "to" and self._at(3) in chart.labels:
            ends = [TokenTruth(chart.labels[m], "label", (Thing("label", m),)) for m in (0, chart.n_marks - 1)]
            return [TokenTruth(word), ends[0], TokenTruth("to"), ends[1]]
        if word == "count":
            return self._counted()
        if (word, following) == ("in", "all") and self._at(2).isdigit():
            return [TokenTruth(word), TokenTruth(following), TokenTruth(self._count(), "result")]
        if word in ("plus", "minus") and following.isdigit() and self._at(2) == "is":
            return [*map(TokenTruth, (word, following, "is")), TokenTruth(self.question.answer, "result")]
        if word == "then" and following.isdigit() and self._at(2) == "," and self._at(3) in ("more", "less", "same"):
            return [*map(TokenTruth, (word, following, ",")), TokenTruth(self._at(3), "verdict")]
        return self._read_mark(word, following)

    def _as_said(self, tokens: list[TokenTruth]) -> list[TokenTruth]:
        """As many tokens as agree in their template words with what is said."""
        for count, token in enumerate(tokens):
            if token.kind == "template" and token.word != self._at(count):
                return tokens[:count]
        return tokens

    def _count(self) -> str:
        return str(int((self.chart.levels[self.series] > self.question.level).sum()))

    def _label(self, mark: int) -> TokenTruth:
        return TokenTruth(self.chart.labels[mark], "label", (Thing("label", mark),))

    def _extreme(self, which: str, tokens: list[TokenTruth]) -> list[TokenTruth]:
        """An extreme or the next to it, and its label; the marks that are named are compared later."""
        mark = self._mark(self._at(1))
        if mark is None or self._at(2) not in self.chart.labels:
            return tokens
        self.pair = [mark] if which else [*self.pair[:1], mark]
        return [*tokens, self._label(mark)]

    def _compared(self) -> list[TokenTruth]:
        """How well what was compared can be told apart."""
        chart, s, q = self.chart, self.series, self.question
        if q.task == "above":
            close = bool((np.abs(chart.levels[s].astype(int) - q.level) <= CLOSE).any())
            about = (*tops(chart, s), Thing("tick", q.level // PARTS))
            return [TokenTruth("close" if close else "clear", "state", about)]
        if q.task == "trend":
            about = glance_trend(chart, s)[-1].about
            return [TokenTruth("close" if chart.trend_is_close(s) else "clear", "state", about)]
        pair = self.pair
        if len(pair) != 2 and q.which:
            pair = [extreme(chart, s, q.which), second(chart, s, q.which)]
        return [compared(chart, s, *pair)] if len(pair) == 2 else []

    def _side(self, word: str, following: str) -> list[TokenTruth]:
        chart, s, q = self.chart, self.series, self.question
        if following.isdigit() and not chart.labels:
            level = q.level if q.task == "above" else self._level_of_halves()
            return self._as_said(halves(chart, s, level))
        other = self.mark + (1 if word == "right" else -1)
        if following in chart.labels and self._at(2) in ("higher", "lower", "same") and 0 <= other < chart.n_marks:
            return beside(chart, s, self.mark, other, word)
        return []

    def _level_of_halves(self) -> int:
        """Of a trend, halves are counted above the middle of the axis first, and above the first tick again."""
        return PARTS if "again" in self.words[: self.place] else PARTS * self.chart.intervals // 2

    def _seen(self, following: str) -> list[TokenTruth]:
        """``see`` a label and its place, with a verdict; or a place and its label."""
        chart, mark = self.chart, self._mark(following)
        if mark is None:
            return []
        if following in chart.labels:
            about = (Thing("label", mark),)
            met = [TokenTruth("see"), TokenTruth(following, "met", about)]
            if self._at(2) not in ORDINALS:
                return met
            met.append(TokenTruth(ORDINALS[mark], "place", about))
            said = self._at(3)
            return [*met, TokenTruth(said, "verdict")] if said in ("yes", "no") else met
        self.mark = mark
        if self.question.task == "hop":
            known = [TokenTruth(following), self._label(mark)] if chart.labels else [TokenTruth(following)]
        else:
            known = named(chart, mark)
        return [TokenTruth("see"), *known[: 2 if self._at(2) in chart.labels else 1]]

    def _counted(self) -> list[TokenTruth]:
        """Places, labels and the running count of the marks above a level."""
        chart, s, q = self.chart, self.series, self.question
        tokens, ahead, count = [TokenTruth("count")], 1, 0
        over = [m for m in range(chart.n_marks) if chart.levels[s, m] > q.level]
        true = "|".join(ORDINALS[m] for m in over)
        while (mark := self._mark(self._at(ahead))) is not None and self._at(ahead) in ORDINALS:
            count += 1
            about = (Thing("top", mark, s), Thing("tick", q.level // PARTS))
            # Any place of a mark above the level is true here, if it was not told before.
            tokens.append(TokenTruth(true or "none", "place", about))
            if self._at(ahead + 1) in chart.labels:
                tokens.append(self._label(mark))
                if self._at(ahead + 2).isdigit():
                    tokens += [TokenTruth(str(count), "result")]
                    if self._at(ahead + 3) == ",":
                        tokens.append(TokenTruth(","))
            ahead = len(tokens)
        return [*tokens, TokenTruth("none", "verdict")] if self._at(ahead) == "none" else tokens

    def _read_mark(self, word: str, following: str) -> list[TokenTruth]:
        """A mark's state, or its height against the axis."""
        chart, s = self.chart, self.series
        if word in STATES and self.place and self._is_subject(self.words[self.place - 1]):
            return [state_of(chart, s, self.mark)]
        if word != "above" or not following.isdigit():
            return []
        tokens = read_off(chart, s, self.mark)
        if not (self._at(2) == "by" and self._at(3).isdigit()):
            return tokens[:2]
        if self._at(4) == "so" and self._at(5).isdigit():
            tokens += [TokenTruth("so"), TokenTruth(str(chart.value(s, self.mark)), "result")]
        return tokens

    def _is_subject(self, word: str) -> bool:
        """Whether a word names the mark whose state comes next, which is then the one that is spoken of."""
        chart, s = self.chart, self.series
        if word in chart.labels:
            self.mark = chart.labels.index(word)
        elif word in EXTREMES:
            self.mark = extreme(chart, s, word)
        elif word == "next" and self.question.which:
            self.mark = second(chart, s, self.question.which)
        return word in chart.labels or word in EXTREMES or word in ("next", "it")


def looks_again(words: Sequence[str]) -> int:
    """How often a trace looks again."""
    said = [word.strip() for word in words]
    return sum(pair == ("look", "again") for pair in pairwise(said))
