"""Scores of the model of charts: answers that it generates, why they are wrong, and where it reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionpulse_analysis.decoding import decode
from visionpulse_analysis.metrics.statistics import proportion_interval
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.testbed.charts.chart import Chart, generate
from visionpulse_analysis.testbed.charts.drawing import render
from visionpulse_analysis.testbed.charts.language import LANGUAGE
from visionpulse_analysis.testbed.charts.questions import TASKS, Question, ask, can_ask
from visionpulse_analysis.testbed.charts.reasoning import ANSWER_MARK, reason
from visionpulse_analysis.testbed.charts.truth import mistakes, reasons_to_err
from visionpulse_analysis.testbed.training import horizon
from visionpulse_analysis.testbed.training.evaluation import length_told
from visionpulse_analysis.testbed.training.packing import pack_images

EACH = 20  # charts of every task and side
SIDES = (12, 16, 24)  # patches a side
READ = ("place", "label", "tick", "part", "glance", "state")  # the kinds that the reading horizon is measured on
CLEAR, UNREAD = "none of these", "no word misread"
LIMIT = 200  # tokens; the longest true trace is shorter


@dataclass(frozen=True)
class Item:
    """One question about one chart."""

    chart: Chart
    question: Question


def build_items(task: str, side: int, n: int, first_seed: int = 0) -> list[Item]:
    """The first ``n`` charts from a seed on that carry a task, with one question each.

    Raises
    ------
    ValueError
        If ``n`` is below 1, the task is unknown or the side is out of range.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    items, seed = list[Item](), first_seed
    while len(items) < n:
        chart = generate(seed, side)
        if can_ask(chart, task):
            items.append(Item(chart, ask(chart, task, np.random.default_rng([seed, side, 2]))))
        seed += 1
    return items


def speaks_of_charts(vlm: VLM) -> bool:
    """Whether a model knows all words that charts are asked about and thought about in."""
    return set(LANGUAGE.words) <= set(vlm.tokenizer.get_vocab())


def answer_is_right(question: Question, words: Sequence[str]) -> bool:
    """Whether what a trace says after the answer mark is the exact answer."""
    said = [word.strip() for word in words]
    said = said[said.index(ANSWER_MARK) + 1 :] if ANSWER_MARK in said else []
    return [word for word in said if not word.startswith("<|")] == [question.answer]


def evaluate(
    vlm: VLM,
    n: int = EACH,
    *,
    sides: Sequence[int] = SIDES,
    tasks: Sequence[str] = TASKS,
    batch_size: int = 20,
    first_seed: int = 0,
) -> dict[str, Any]:
    """Score greedy answers on charts that no training saw.

    Parameters
    ----------
    n : int
        Charts of every task and side.
    first_seed : int
        Of the charts; evaluation charts begin at 0, validation charts at 500,000, training charts at 1,000,000,000.

    Returns
    -------
    dict
        By number of visual tokens: ``sizes``, task -> accuracy, low, high (95 % Wilson), n, mean_tokens (of traces that
        ended; None without one), cut_off. ``reasons``, reason (see :func:`reasons_to_err`, a question may have several)
        or "none of these" -> the accuracy of the questions of all tasks that have it. ``first_misread``, kind of the
        first word that the picture contradicts -> wrong answers.
    """
    result: dict[str, Any] = {"model": vlm.name, "weights": vlm.weights_hash, "anchor": vlm.default_anchor}
    result |= {"sizes": {}, "reasons": {}, "first_misread": {}}
    for side in sides:
        scores, hard, misread = {}, dict[str, list[bool]](), Counter[str]()
        for task in tasks:
            items = build_items(task, side, n, first_seed)
            images, questions = [render(item.chart) for item in items], [item.question.text for item in items]
            found = decode(
                vlm, images, questions, layers="none", max_new_tokens=LIMIT, batch_size=batch_size, sample=None
            )
            right = [answer_is_right(item.question, trace.tokens) for item, trace in zip(items, found, strict=True)]
            ended = [len(trace.tokens) for trace in found if trace.meta["finished"]]
            mean = float(np.mean(ended)) if ended else None
            scores[task] = {**_share(right), "mean_tokens": mean, "cut_off": n - len(ended)}
            for item, trace, is_right in zip(items, found, right, strict=True):
                for why in reasons_to_err(item.chart, item.question) or (CLEAR,):
                    hard.setdefault(why, []).append(is_right)
                if not is_right:
                    wrong = mistakes(item.chart, item.question, trace.tokens)
                    misread[wrong[0].kind if wrong else UNREAD] += 1
        result["sizes"][str(side**2)] = scores
        result["reasons"][str(side**2)] = {why: _share(found) for why, found in sorted(hard.items())}
        result["first_misread"][str(side**2)] = dict(misread.most_common())
    return result


def _share(right: Sequence[bool]) -> dict[str, Any]:
    interval = proportion_interval(np.array(right), unit="chart")
    return {"accuracy": interval.value, "low": interval.low, "high": interval.high, "n": interval.n_values}


def read_words(vlm: VLM, n: int, side: int, first_seed: int) -> dict[str, list[np.ndarray]]:
    """Which words of the true traces of ``n`` charts are predicted right when the image is cut off from a layer on.

    Two questions about each chart. See :func:`~visionpulse_analysis.testbed.training.horizon.read_words`.
    """
    rows = []
    for seed in range(first_seed, first_seed + n):
        chart, rng = generate(seed, side), np.random.default_rng([seed, side, 4])
        possible = [task for task in TASKS if can_ask(chart, task)]
        asked = [ask(chart, str(task), rng) for task in rng.choice(possible, size=2, replace=False)]
        rows.append((render(chart), [(question, reason(chart, question, rng)) for question in asked]))
    batches = (pack_images(rows[start : start + 8], LANGUAGE) for start in range(0, n, 8))
    return horizon.read_words(vlm, batches, LANGUAGE, READ)


def format_report(result: dict[str, Any]) -> str:
    """The result of :func:`evaluate` as text for a terminal."""
    lines = [f"model {result['model']} (weights {result['weights']})", ""]
    for patches, scores in result["sizes"].items():
        shown = [*scores.items(), *((f"({why})", s) for why, s in result["reasons"][patches].items())]
        for name, s in shown:
            line = f"{patches:>5} patches  {name:16} {s['accuracy']:.3f} [{s['low']:.3f}, {s['high']:.3f}]  n {s['n']}"
            if "cut_off" in s:
                line += f"  tokens {length_told(s)}"
            lines.append(line)
        first = ", ".join(f"{kind} {count}" for kind, count in result["first_misread"][patches].items())
        lines += [f"{patches:>5} patches  wrong answers by their first misread word: {first or 'none'}", ""]
    return "\n".join(lines)
