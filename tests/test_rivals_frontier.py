"""The frontier figure: every arm is drawn where it lies, with its interval, and named beside its line."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from visionpulse_analysis.experiments.samples import Sample, scene_samples
from visionpulse_analysis.figures.methods import AT_PREFILL, AT_STEPS, METHODS
from visionpulse_analysis.figures.style import axes_points
from visionpulse_analysis.studies.pruner_comparison import figures as rivals_frontier
from visionpulse_analysis.studies.pruner_comparison import measure as rivals
from visionpulse_analysis.studies.pruner_comparison.figures import spread
from visionpulse_analysis.studies.pruner_comparison.settings import Basis
from visionpulse_analysis.studies.shared.arms import Arms

CHOSEN = ("VisionPulse", "last step only", "FastV", "SparseVLM", "LOOK-M", "VTW", "MVW", "random")
SHOWN = [rivals.STALE, rivals.ATTENTION, rivals.AT_ONCE, rivals.REFERENCE]


def compare(vlm, samples, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISIONPULSE_CACHE", str(folder))
        arms = rivals.rival_arms([0.25, 0.5], Basis.of(vlm))
        arms = {label: group for label, group in arms.items() if label in CHOSEN}
        return rivals.compare_rivals(vlm, samples, arms, max_new_tokens=5)


def ending(compared, finished):
    """The comparison as if these traces of every pruned arm had ended within the limit, and all dense ones."""
    table = compared.arms.table
    ended = (table["arm"] == "dense") | np.array(finished)[table["sample"]]
    return replace(compared, arms=Arms(table.assign(finished=ended)))


@pytest.fixture(scope="module")
def compared(vlm, tmp_path_factory):
    found = compare(vlm, scene_samples(3, cells=4), tmp_path_factory.mktemp("cache"))
    return ending(found, [True, True, False])


@pytest.fixture(scope="module")
def figure(compared):
    return rivals_frontier.frontier_figure(compared)


def panel(figure, family, measure, measures=3):
    """Three panels beside one another, the measures of a family below one another."""
    number = SHOWN.index(family)
    return figure.axes[(number // 3 * measures + measure) * 3 + number % 3]


def drawn(ax, label):
    """(x, y, low, high, marker, filled) of every point of one method."""
    found = []
    for container in ax.containers:
        line, _, [bars] = container.lines
        if line.get_gid() == label:
            for x, y, segment in zip(*line.get_data(), bars.get_segments(), strict=True):
                filled = line.get_markerfacecolor() == line.get_color()
                found.append((x, y, *sorted(segment[:, 1]), line.get_marker(), filled))
    return found


def values(point):
    return point.truth.accuracy, point.length, point.cut_off.arm


@pytest.mark.parametrize("measure", [0, 1, 2])
def test_every_arm_is_drawn_with_its_interval_in_the_panel_of_its_family(compared, figure, measure):
    for label, names in compared.groups.items():
        rival = rivals.RIVALS[label]
        if rival.family == rivals.PULSE:
            continue
        points = drawn(panel(figure, rival.family, measure), label)
        assert len(points) == len(names)
        for name, (x, y, low, high, marker, filled) in zip(names, points, strict=True):
            point = compared.arms.changes[name]
            value = values(point)[measure]
            ends = [value.value if np.isnan(end) else end for end in (value.low, value.high)]
            assert [y, low, high] == pytest.approx([100 * v for v in (value.value, *ends)])
            assert x == pytest.approx(100 * compared.kept[name], rel=0.15)  # moved apart sideways
            assert (marker, filled) == (METHODS[label].marker, not name.endswith(rivals.OWN))
            assert marker in (AT_PREFILL if rival.at_prefill else AT_STEPS)  # as the legend says


def test_dense_and_visionpulse_are_behind_every_panel(compared, figure):
    for family in SHOWN:
        for measure in (0, 1, 2):
            ax, pulse = panel(figure, family, measure), compared.arms.changes["VisionPulse 50 %"]
            value = values(pulse)[measure]
            x, y, *_ = drawn(ax, "VisionPulse")[-1]
            assert (x, y) == pytest.approx((50, 100 * value.value))
            dense = (compared.arms.changes["dense"].truth.accuracy.value, 0.0, 0.0)[measure]
            assert any(line.get_linestyle() == "--" and set(line.get_ydata()) == {100 * dense} for line in ax.lines)


def test_every_method_is_named_once_in_its_panels_and_no_name_covers_another(figure):
    figure.draw_without_rendering()
    for family in SHOWN:
        for measure in (0, 1, 2):
            ax = panel(figure, family, measure)
            texts = [text for text in ax.texts if text.get_gid() != "letter"]
            names = [text.get_text().replace("\n", " ") for text in texts]
            assert sorted(names) == sorted(label for label in CHOSEN if rivals.RIVALS[label].family == family)
            middles = sorted((text.get_position()[1], text.get_text().count("\n") + 1) for text in texts)
            room = axes_points(ax)[1] / rivals_frontier.NAME_SIZE  # lines of text
            for (below, lines), (above, more) in pairwise(middles):
                assert (above - below) * room >= (lines + more) / 2


def test_no_number_under_a_panel_runs_into_the_next(figure):
    figure.draw_without_rendering()
    for ax in figure.axes:
        shown = [
            label.get_window_extent() for label in ax.get_xticklabels() if label.get_text() and label.get_visible()
        ]
        for left, right in pairwise(sorted(shown, key=lambda box: box.x0)):
            assert left.x1 + figure.dpi / 72 <= right.x0


def test_names_lie_near_their_points_and_not_on_one_another():
    assert spread([0.2, 0.5, 0.9], [0.1] * 3) == [0.2, 0.5, 0.9]
    assert spread([0.5, 0.5, 0.5], [0.1] * 3) == pytest.approx([0.5, 0.6, 0.7])
    assert spread([1.0, 1.0], [0.1, 0.2]) == pytest.approx([0.75, 0.9])
    assert spread([0.0, 0.0], [0.1, 0.1]) == pytest.approx([0.05, 0.15])


def test_without_known_answers_lengths_and_what_was_cut_off_are_drawn(vlm, tmp_path):
    """Of traces that the limit cut off there is no length to draw."""
    samples = [Sample(one.id, one.image, one.question) for one in scene_samples(2, cells=4)]
    found = compare(vlm, samples, tmp_path)
    for ended in (True, False):
        fig = rivals_frontier.frontier_figure(ending(found, [ended, ended]))
        panels = [ax for ax in fig.axes if ax.axison]
        assert len(panels) == 2 * len(SHOWN) and panels[0].get_ylabel() == "length (%)"
        lengths, cut = (drawn(panel(fig, rivals.STALE, row, measures=2), "last step only") for row in (0, 1))
        assert len(lengths) == (2 if ended else 0) and [y for _, y, *_ in cut] == [0 if ended else 100] * 2
