"""Charts: what is drawn is what is told of it, colours are told apart, and place alone tells nothing."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from visionpulse_analysis.testbed.charts.chart import COLOURS, FAINT, KINDS, OVERLAP, PARTS, Chart, generate
from visionpulse_analysis.testbed.charts.drawing import render
from visionpulse_analysis.testbed.charts.regions import Thing, patches_of_thing, region
from visionpulse_analysis.testbed.training.packing import PATCH

SIDES = (12, 16, 24, 32)


def quiet(chart: Chart) -> Chart:
    return replace(chart, look=replace(chart.look, noise=0.0))


def change_by_patch(a: Chart, b: Chart) -> np.ndarray:
    """How much two charts differ in each patch: grey levels, summed over pixels [row, col]."""
    difference = np.abs(render(a).astype(int) - render(b)).sum(axis=2)
    return difference.reshape(a.side, PATCH, a.side, PATCH).sum(axis=(1, 3))


def changed_patches(a: Chart, b: Chart) -> np.ndarray:
    return change_by_patch(a, b) > 0


def some_charts(count: int, sides=SIDES):
    return [quiet(generate(seed, side, kind)) for seed in range(count) for side in sides for kind in KINDS]


def test_a_seed_fixes_everything():
    a, b, other = generate(3, 16), generate(3, 16), generate(4, 16)
    assert np.array_equal(render(a), render(b))
    assert not np.array_equal(render(a), render(other))


def test_pictures_have_the_visual_tokens_that_the_study_needs():
    assert [render(generate(1, side)).shape[0] // PATCH for side in (24, 32)] == [24, 32]  # 576 and 1,024 tokens
    with pytest.raises(ValueError, match="12 to 32 patches, got 40"):
        generate(1, 40)
    with pytest.raises(ValueError, match="known: bar, grouped"):
        generate(1, 24, "pie")


def test_everything_stands_inside_the_picture_and_numbers_do_not_meet():
    for chart in some_charts(25):
        things = [Thing("label", i) for i in range(len(chart.labels))]
        things += [Thing("tick", i) for i in range(chart.intervals + 1)]
        things += [Thing("legend", series=s) for s in range(len(chart.names))]
        writings = [chart.tick_writing(i) for i in range(chart.intervals + 1)]
        writings += [chart.label_writing(i) for i in range(len(chart.labels))]
        writings += [chart.legend_writing(s) for s in range(len(chart.names))]
        corners = np.array([corner for writing in writings for _, *corner in writing])
        assert corners.min() >= 0 and (corners + np.array([5, 7])).max() <= chart.side * PATCH
        left, _, right, _ = chart.box
        assert all(x + 5 < left or x > right for i in range(chart.intervals + 1) for _, x, _ in chart.tick_writing(i))
        shown = sum(patches_of_thing(chart, thing).astype(int) for thing in things)
        assert shown.max() == 1, (chart.seed, chart.side, chart.kind)
        assert np.all(chart.points > 0) and np.all(chart.points < chart.side * PATCH)


def test_the_patches_of_a_mark_are_those_that_change_when_it_goes():
    for chart in some_charts(3):
        s, m = chart.seed % len(chart.names), chart.seed % chart.n_marks
        opacity = chart.opacity.copy()
        if chart.kind == "line":
            opacity[s], thing = 0.0, Thing("line", series=s)
        else:
            opacity[s, m], thing = 0.0, Thing("mark", m, s)
        told, change = patches_of_thing(chart, thing), change_by_patch(chart, replace(chart, opacity=opacity))
        # An edge of less than a pixel may lie in the patch beside; a mark under another changes less.
        assert change[told].sum() > 0.85 * change.sum()
        assert (change[told] > 0).mean() > 0.8, (chart.seed, chart.side, chart.kind)
        assert not (patches_of_thing(chart, Thing("top", m, s)) & ~patches_of_thing(chart, Thing("mark", m, s))).any()


def test_the_patches_of_words_and_numbers_are_those_that_change_with_them():
    for chart in some_charts(2, (12, 24)):
        s = chart.seed % len(chart.names)
        if chart.labels:
            new = "q" * len(chart.labels[0])
            other = replace(chart, labels=(new, *chart.labels[1:]))
            assert not (changed_patches(chart, other) & ~patches_of_thing(chart, Thing("label", 0))).any()
        if chart.names[s] and len(chart.names[s]) == 1:
            other = replace(chart, names=tuple("a" if i == s else name for i, name in enumerate(chart.names)))
            entry = patches_of_thing(chart, Thing("legend", series=s))
            assert changed_patches(chart, other).sum() == 1 and (changed_patches(chart, other) & ~entry).sum() == 0
        ticks = region(chart, [Thing("tick", i) for i in range(chart.intervals + 1)])
        larger = replace(chart, unit=5 if chart.unit != 5 else 2)
        wider = region(larger, [Thing("tick", i) for i in range(chart.intervals + 1)])
        assert not (changed_patches(chart, larger).ravel() & ~(ticks | wider)).any()


def test_the_height_of_a_bar_is_its_value_on_the_axis():
    for chart in some_charts(8):
        if chart.kind != "bar":
            continue
        image = render(replace(chart, opacity=np.ones_like(chart.opacity))).astype(int)
        rows = chart.y_of(0), chart.y_of(PARTS * chart.intervals)
        for mark in range(chart.n_marks):
            column = image[:, int(chart.points[0, mark, 0])]
            colour = np.array(COLOURS[chart.colours[0]])
            inside = np.flatnonzero(np.abs(column - colour).max(axis=1) < 8)
            share = (rows[0] - inside.min()) / (rows[0] - rows[1])
            assert abs(share * chart.top - chart.value(0, mark)) < 0.5 * chart.unit


def test_the_extremes_of_a_series_are_alone_and_states_are_of_the_picture():
    states = Counter()
    for chart in some_charts(15):
        for s in range(len(chart.names)):
            ordered = np.sort(chart.levels[s])
            assert ordered[0] < ordered[1] and ordered[-1] > ordered[-2]
            for m in range(chart.n_marks):
                others = [chart.points[o, i] for o in range(len(chart.names)) for i in range(chart.n_marks) if o != s]
                over = any(np.hypot(*(p - chart.points[s, m])) < OVERLAP for p in others)
                hidden = chart.kind in ("line", "scatter") and over
                expected = "faint" if chart.opacity[s, m] < FAINT else "hidden" if hidden else "clear"
                assert chart.state(s, m) == expected
                states[expected] += 1
    assert min(states.values()) > 10


def test_trends_of_lines_and_clouds():
    for chart in some_charts(20):
        for s in range(len(chart.names)):
            if chart.kind == "line":
                change = chart.levels[s, -1] - chart.levels[s, 0]
                assert chart.trend(s) == ["falls", "level", "rises"][int(np.sign(change)) + 1]
            if chart.kind == "scatter" and chart.trend(s) != "level":
                slope = np.polyfit(chart.x[s], chart.levels[s], 1)[0]
                assert chart.trend(s) == ("rises" if slope > 0 else "falls")


# Dichromats as Machado, Oliveira and Fernandes (2009) simulate them, on linear light.
BLIND = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(rgb: np.ndarray, matrix) -> np.ndarray:
    """CIE L*a*b* (D65) of an sRGB colour as a reader sees it."""
    c = np.asarray(rgb) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(matrix) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("reader", BLIND)
def test_a_colour_blind_reader_tells_the_colours_apart(reader):
    seen = {name: lab(np.array(rgb), BLIND[reader]) for name, rgb in COLOURS.items()}
    closest = min(combinations(seen, 2), key=lambda pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]))
    # 2.3 is a just noticeable difference; 10 is seen at a glance.
    assert np.linalg.norm(seen[closest[0]] - seen[closest[1]]) > 10, closest


def test_place_alone_tells_nothing():
    """Who knows where something stands, and no pixel, can hardly say what it is: by the best guess for each place."""
    charts = [generate(seed, 12) for seed in range(1000)]
    seen: dict[str, list[tuple]] = {"value": [], "tick": [], "label": [], "colour": [], "count": []}
    for chart in charts:
        for m in range(chart.n_marks):
            seen["value"].append((round(chart.points[0, m, 1]), chart.value(0, m)))
        for i in range(1, chart.intervals + 1):
            seen["tick"].append((round(chart.y_of(PARTS * i) / PATCH), i * chart.step))
        for i, label in enumerate(chart.labels):
            seen["label"].append((i, round(chart.label_writing(i)[0][1] / PATCH), label))
        seen["colour"] += [(s, colour) for s, colour in enumerate(chart.colours)]
        seen["count"].append((chart.look.left, int((2 * chart.levels[0] > PARTS * chart.intervals).sum())))
    for name, pairs in seen.items():
        places = Counter(pair[:-1] for pair in pairs)
        best: Counter = Counter()
        for (*place, _), n in Counter(pairs).items():
            best[tuple(place)] = max(best[tuple(place)], n)
        right = sum(best[place] for place, n in places.items() if n >= 40) / sum(n for n in places.values() if n >= 40)
        assert right < {"tick": 0.35, "count": 0.5}.get(name, 0.3), (name, right)
