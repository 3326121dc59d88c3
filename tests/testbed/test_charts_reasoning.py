"""Questions about charts are answered right, and the truth of their traces is what the picture says."""

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from visionpulse_analysis.testbed.charts.chart import COLOURS, PARTS, Chart, generate
from visionpulse_analysis.testbed.charts.dense import DENSE, practise
from visionpulse_analysis.testbed.charts.questions import ORDINALS, TASKS, Question, ask, can_ask
from visionpulse_analysis.testbed.charts.reasoning import FROM_IMAGE, FROM_TEXT, KINDS, TokenTruth, reason
from visionpulse_analysis.testbed.charts.regions import Thing, region
from visionpulse_analysis.testbed.charts.words import SYSTEM_PROMPT, vocabulary
from visionpulse_analysis.testbed.charts.world import converse
from visionpulse_analysis.testbed.scenes.tokens import build_tokenizer

SAID = re.compile(r"above (\d+) by (\d) so (\d+)")


@pytest.fixture(scope="module")
def asked() -> list[tuple[Chart, Question, list[TokenTruth]]]:
    """Every question that 70 charts of 576 visual tokens and 30 small ones carry, with its trace."""
    rng, found = np.random.default_rng(0), []
    for seed in range(100):
        chart = generate(seed, 24 if seed < 70 else 12)
        for task in TASKS:
            if can_ask(chart, task):
                question = ask(chart, task, rng)
                found.append((chart, question, reason(chart, question, rng)))
    return found


def words(trace: list[TokenTruth]) -> str:
    return " ".join(token.word for token in trace)


def answer_of(chart: Chart, text: str) -> str:
    """The answer, worked out again from the words of the question and a table of the chart."""
    said = text.split()
    series = next((s for s, name in enumerate(chart.names) if name and name in said), 0)
    values = [chart.value(series, m) for m in range(chart.n_marks)]
    named = [values[chart.labels.index(word)] for word in said if word in chart.labels]
    if said[:2] == ["which", "colour"]:
        return chart.colours[chart.names.index(said[3])]
    if said[:2] == ["which", "series"]:
        return chart.names[chart.colours.index(said[3])]
    if said[0] == "does":
        return chart.trend(series)
    if "over" in said:
        return str(sum(value > int(said[said.index("over") + 1]) for value in values))
    if "larger" in said:
        return max((word for word in said if word in chart.labels), key=lambda w: values[chart.labels.index(w)])
    if "plus" in said or "apart" in said:
        return str(sum(named) if "plus" in said else abs(named[0] - named[1]))
    if "highest" in said or "lowest" in said:
        place = values.index(max(values) if "highest" in said else min(values))
        place += said.count("right") - said.count("left")
        return str(values[place]) if "value" in said else chart.labels[place]
    return str(named[0])


def test_answers_are_those_of_the_chart_and_of_the_trace(asked):
    for chart, question, trace in asked:
        assert question.answer == answer_of(chart, question.text), question.text
        answers = [token.word for token in trace if token.kind == "answer"]
        assert answers == [question.answer] and words(trace).endswith(f"</think> {question.answer} <|im_end|>")
    assert Counter(question.task for _, question, _ in asked).keys() == set(TASKS)


def test_what_a_chart_cannot_be_asked_is_refused(rng):
    bars, cloud = generate(0, 24, "bar"), generate(0, 24, "scatter")
    assert [task for task in TASKS if not can_ask(bars, task)] == ["trend", "legend"]
    assert "value" not in [task for task in TASKS if can_ask(cloud, task)]
    with pytest.raises(ValueError, match="carries no question of 'trend'"):
        ask(bars, "trend", rng)
    with pytest.raises(ValueError, match="known: value, larger"):
        ask(bars, "weather", rng)


def test_traces_have_60_to_150_tokens_of_which_text_alone_determines_40_per_cent(asked):
    lengths = [len(trace) for _, _, trace in asked]
    assert min(lengths) >= 60 and max(lengths) <= 150
    for _, _, trace in asked:
        assert 0.4 <= np.mean([not token.from_image for token in trace]) <= 0.85


def test_a_word_of_the_image_has_a_region_and_a_word_of_the_text_has_none(asked):
    assert not set(FROM_IMAGE) & set(FROM_TEXT) and {*FROM_IMAGE, *FROM_TEXT} == set(KINDS)
    for number, (chart, _, trace) in enumerate(asked):
        for token in trace:
            assert token.from_image == bool(token.about), (token, words(trace))
            assert not token.from_image or number % 5 or region(chart, token.about).any()
    with pytest.raises(ValueError, match="unknown part of a chart 'sky'"):
        region(generate(1, 12), [Thing("sky")])
    with pytest.raises(ValueError, match="has no"):
        region(generate(1, 12), [Thing("tick", 9)])


def test_how_many_patches_a_word_needs_varies_by_what_is_asked(asked):
    sizes, by_kind = [], {kind: [] for kind in FROM_IMAGE}
    for number, (chart, _, trace) in enumerate(asked):
        if chart.side == 24 and number % 4 == 0:
            for token in (token for token in trace if token.from_image):
                sizes.append(int(region(chart, token.about).sum()))
                by_kind[token.kind].append(sizes[-1])
    low, high = np.percentile(sizes, [25, 75])
    assert high / low >= 4
    middle = {kind: np.median(found) for kind, found in by_kind.items() if found}  # "over" is said in practice only
    assert middle["label"] <= 2 < middle["tick"] < middle["glance"] < middle["chart"]
    marks = [int(region(c, [Thing("mark", 0)]).sum()) for c in (generate(s, 24) for s in range(60))]
    assert min(marks) <= 2 and max(marks) >= 30


def ambiguous(chart: Chart, q: Question) -> bool:
    """Whether what a question turns on is faint, hidden, or at most one part of a step apart."""
    s, levels = q.series, chart.levels[q.series]
    unclear = [chart.opacity[s, m] < 0.4 or chart.is_hidden(s, m) for m in range(chart.n_marks)]
    order = np.argsort(-levels if q.which == "highest" else levels, kind="stable")
    two = abs(int(levels[order[0]]) - int(levels[order[1]])) <= 1
    if q.task in ("value", "sum", "difference"):
        return any(unclear[m] for m in q.marks)
    if q.task == "larger":
        return any(unclear[m] for m in q.marks) or abs(int(levels[q.marks[0]]) - int(levels[q.marks[1]])) <= 1
    if q.task in ("extreme", "hop"):
        close = two and chart.kind != "scatter"
        return close or any(unclear[m] for m in order[:2]) or (q.by == "value" and unclear[q.marks[1]])
    if q.task == "above":
        return bool((np.abs(levels - q.level) <= 1).any())
    if q.task == "trend" and chart.kind == "scatter":
        return abs(np.corrcoef(chart.x[s], levels)[0, 1]) < 0.75
    return q.task == "trend" and abs(int(levels[-1]) - int(levels[0])) <= 1


def test_people_look_again_where_and_only_where_the_picture_is_ambiguous(asked):
    again = [("look again" in words(trace), ambiguous(chart, question)) for chart, question, trace in asked]
    assert all(looks == unsure for looks, unsure in again)
    assert 0.2 < np.mean([looks for looks, _ in again]) < 0.6


def test_what_is_read_off_adds_up(asked):
    """Values, sums and comparisons follow from the words before them."""
    checked = Counter()
    for chart, _, trace in asked:
        said = words(trace)
        (step,) = map(int, re.findall(r"axis \d+ by (\d+)", said))
        for tick, part, value in SAID.findall(said):
            assert int(tick) + int(part) * step // PARTS == int(value)
            checked["value"] += 1
        for a, sign, b, result in re.findall(r"(\d+) (plus|minus) (\d+) is (\d+)", said):
            assert int(result) == int(a) + int(b) * (1 if sign == "plus" else -1)
            checked["sum"] += 1
        for a, b, verdict in re.findall(r"(\d+) then (\d+) , (more|less|same)", said):
            assert verdict == ("more" if int(a) > int(b) else "less" if int(a) < int(b) else "same")
            checked["verdict"] += 1
        for sought, search in re.findall(r"find (\w+) \.((?: see \w+ \w+ (?:no|yes) \.)+)", said):
            assert search.count("see") <= 4
            for seen, place, verdict in re.findall(r"see (\w+) (\w+) (no|yes)", search):
                assert verdict == ("yes" if seen == sought else "no")
                assert ORDINALS[chart.labels.index(seen)] == place
                checked["search"] += 1
    assert min(checked[name] for name in ("value", "sum", "verdict", "search")) > 50


def test_what_a_glance_tells_is_in_the_chart(asked):
    counted = 0
    for chart, question, trace in asked:
        values = [chart.value(question.series, m) for m in range(chart.n_marks)]
        said = words(trace)
        told = said.split("at a glance")[1].split(" . ")[0]
        for which, place in re.findall(r"(highest|lowest) (\w+)", told):
            assert values[ORDINALS.index(place)] == (max(values) if which == "highest" else min(values))
        for limit, count in re.findall(r"over (\w+) (\d)\b", told):
            counted += 1
            assert int(count) == sum(v > (chart.top / 2 if limit == "half" else int(limit)) for v in values)
        whole = {Thing("top", m, question.series) for m in range(chart.n_marks)}
        start = said.split().index("glance")
        for token in trace[start : said.split().index(".", start)]:
            taken_in = whole <= set(token.about) or Thing("line", series=question.series) in token.about
            assert taken_in or token.kind != "glance"
        axis = re.findall(r"(\w+) chart of (\d+) marks (\d) series axis (\d+) by (\d+)", said)
        assert axis[0] == (chart.kind, *map(str, (chart.n_marks, len(chart.names), chart.top, chart.step)))
    assert counted > 100


def test_a_count_comes_after_the_level_that_it_counts_above(asked):
    """Said before it, a count would be asked for before anybody can know of which level: a guess, for ever."""
    rng = np.random.default_rng(5)
    surveys = [practise(chart, "survey", rng)[1] for chart, _, _ in asked[:40]]
    counts = 0
    for trace in [*(trace for _, _, trace in asked), *surveys]:
        for before, token in pairwise(trace):
            if token.kind == "glance" and token.word.isdigit():
                counts += 1
                assert before.word in ("half", "left", "right") or before.word.isdigit()
    assert counts > 100


def test_what_was_told_before_is_text_when_it_is_said_again():
    for seed in range(40):
        chart = generate(seed, 24, "bar")
        found = int(chart.levels[0].argmin())
        if found + 1 < chart.n_marks:  # the neighbour may be the next lowest, which has been read before
            text, answer = "what is the value right of the lowest ?", str(chart.value(0, found + 1))
            question = Question("hop", text, answer, 0, (found, found + 1), "lowest", by="value")
            trace = reason(chart, question, np.random.default_rng(seed))
            read = [(token.kind, token.about) for token in trace if token.kind in ("tick", "part", "label", "state")]
            assert len(read) == len(set(read))


def test_detours_are_to_what_looks_alike():
    """Where a search does not meet its goal at once, it meets a label like it more often than by chance."""
    alike, chance = [], []
    for seed in range(60):
        chart, rng = generate(seed, 32, "bar"), np.random.default_rng(seed)
        for _ in range(6 if len(chart.labels[0]) == 3 else 0):
            question = ask(chart, "value", rng)
            goal = chart.labels[question.marks[0]]
            (first,) = re.findall(r"find \w+ \. see (\w+)", words(reason(chart, question, rng)))
            close = [w for w in chart.labels if w != goal and sum(a == b for a, b in zip(w, goal, strict=True)) == 2]
            if first != goal and close:
                alike.append(first in close)
                chance.append(len(close) / (len(chart.labels) - 1))
    assert len(alike) > 20 and np.mean(alike) > np.mean(chance) + 0.15


def test_every_word_is_one_token_of_the_vocabulary(rng):
    known, tokenizer = vocabulary(), build_tokenizer(vocabulary(), SYSTEM_PROMPT)
    assert len(known) == len(set(known)) and SYSTEM_PROMPT in tokenizer.chat_template
    for seed in range(6):
        chart = generate(seed, 24)
        for task in (*TASKS, *DENSE):
            if task in DENSE or can_ask(chart, task):
                question, trace = converse(chart, task, rng)
                for text in (question.text, words(trace)):
                    ids = tokenizer(text)["input_ids"]
                    assert [known[i] for i in ids] == text.split()


def test_practice_reads_the_same_facts(rng):
    for seed in range(12):
        chart = generate(seed, 16)
        for task in DENSE:
            question, trace = converse(chart, task, rng)
            said, s = words(trace), question.series
            coloured = re.findall(rf"(\w+) is ({'|'.join(COLOURS)}) \.", said)
            in_order, last = list(zip(chart.names, chart.colours, strict=True)), (chart.names[s], chart.colours[s])
            if len(chart.names) == 1 or (task == "find" and chart.labels):
                assert not coloured
            else:  # the legend in its order, then the series that is read
                assert coloured == [*in_order, *([] if task == "describe" else [last])]
            for tick, part in re.findall(r"above (\d+) by (\d)", said):
                value = int(tick) + int(part) * chart.unit
                assert value in [chart.value(s, m) for m in range(chart.n_marks)]
            for first, second in re.findall(r"see (\w+) (\w+) \w+ ,", said):
                if chart.labels:
                    label, place = (first, second) if first in chart.labels else (second, first)
                    assert ORDINALS[chart.labels.index(label)] == place
            for tick, marks in re.findall(r"(\d+) ((?:\w+ (?:yes|no) )+)", said):
                for place, verdict in re.findall(r"(\w+) (yes|no)", marks):
                    assert verdict == ("yes" if chart.value(s, ORDINALS.index(place)) > int(tick) else "no")
            for a, b, higher in re.findall(r"(\w+) and (\w+) , between them (\w+)", said):
                assert higher == max((a, b), key=lambda label: chart.levels[s, chart.labels.index(label)])
    with pytest.raises(ValueError, match="known: describe, read"):
        practise(generate(0, 12), "sing", rng)
