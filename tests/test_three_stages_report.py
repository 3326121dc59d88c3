"""What notebook 10 says and draws, on results made by hand."""

from dataclasses import replace

import numpy as np
import pytest
from paper_page import check_page

from visionpulse_analysis.experiments.samples import scene_samples
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.studies.three_stages import figures as three_stages_figures
from visionpulse_analysis.studies.three_stages import report as three_stages_report
from visionpulse_analysis.studies.three_stages.measure import ThreeStages, ask, over_samples, three_stages


@pytest.fixture(scope="module")
def stages(vlm):
    return three_stages(vlm, ask(vlm, scene_samples(2, seed=3, cells=4), max_new_tokens=4), width=3, fraction=0.1)


def planted(stages: ThreeStages, *, effect=(0.001, 9.0), shallow=0.001, deep=0.001, sinks=0.5, last=0.0) -> ThreeStages:
    """30 samples with these means and a little noise, 8 layers."""
    noise = np.random.default_rng(0).uniform(0.9, 1.1, 30)

    def everywhere(values):
        return np.tile(np.asarray(values)[None, :, None], (2, 1, 30)) * noise

    withdrawn = everywhere([9.0, 9, 9, 5, 4, 1, deep, deep])
    return replace(
        stages,
        asked=stages.asked[:1] * 30,
        effect=np.array(effect)[:, None] * noise,
        shallow=np.full((2, 1), shallow) * noise,
        withdrawn=withdrawn,
        window=everywhere([0, 0, 1, 1, 1, 0.0]),
        sink_ratio=everywhere([sinks] * 8),
        cosine=everywhere([0.9, 0.9, 0.9, 0.5, 0.9, 0.9, 0.9, 0.9]),
        frozen=everywhere([0.5, 0.4, 0.6, 0.7, 0.8, 0.9, last, last]),
        frozen_reverse=everywhere([0.0] * 8),
        lens=everywhere([0.0] * 9),
        lens_right=np.tile(np.array([1, 0, 1, 0, 0, 1, 1, 1, 1])[None, :, None], (2, 1, 30)),
        mass=everywhere([0.5] * 8),
    )


def test_only_a_whole_interval_is_on_a_side():
    def side(level, low=0.4, high=0.6):
        return three_stages_report.side(Estimate(0.5, low, high, 9, 9, 0.95, "made"), level)

    assert [side(level) for level in (0.7, 0.55, 0.45, 0.3)] == ["below", "open", "open", "above"]
    assert side(0.7, np.nan, np.nan) == "open"  # one sample says nothing


def test_the_sentences_follow_the_intervals(stages):
    yes = three_stages_report.verdicts(planted(stages)).splitlines()[2:]
    assert "they cannot, because" in yes[0] and yes[1].endswith("depends on the image shows.")
    assert "these layers do not need the image" in yes[2] and "has been read by then" in yes[3]
    assert (
        yes[4].endswith("transfers.") and yes[5].endswith("transfers.") and len(yes) == three_stages_report.STATEMENTS
    )
    turned = planted(stages, effect=(3, 0.001), shallow=1, deep=1, sinks=2, last=2)
    no = three_stages_report.verdicts(turned).splitlines()[2:]
    assert "they can, because" in no[0] and "it does not" in no[1]
    assert "these layers need the image" in no[2] and "still read there" in no[3]
    assert "have larger values" in no[4] and "matters more" in no[5]
    between = planted(stages, effect=(0.05, 0.05), shallow=0.05, deep=0.05, sinks=1.0)
    undecided = three_stages_report.verdicts(between, level=0.05).splitlines()[2:]
    assert all("cannot be decided" in line for line in undecided[:5])


def test_what_decides_holds_for_all_sentences_together(stages):
    """The mean lies above the level by one interval of 95 %, and not by the one that decides."""
    made = planted(stages)
    low = [three_stages_report.over_samples(made.shallow[1], c).low for c in (0.95, three_stages_report.TOGETHER)]
    assert low[1] < low[0]
    assert "cannot be decided" in three_stages_report.verdicts(made, sum(low) / 2).splitlines()[4]


def test_the_layers_in_the_table(stages):
    made = planted(stages, deep=0.001)
    assert three_stages_report.withdrawal_layer(made, 1) == 6
    assert three_stages_report.withdrawal_layer(made, 1, 4.5) == 4
    assert three_stages_report.withdrawal_layer(made, 1, 10.0) == 1  # the search begins at 5 of 32 layers
    assert three_stages_report.withdrawal_layer(made, 1, 1e-9) is None
    assert three_stages_report.contribution_order(made, 1) == [6, 7, 1, 0, 2, 3, 4, 5]
    assert three_stages_report.reading_layer(made, 1) == 5
    at_prompt = made.withdrawn.copy()
    at_prompt[0, 2:] = 1e-6
    table = three_stages_report.paper_table(replace(made, withdrawn=at_prompt))
    assert table.loc["VTW's layer, KL <= 0.003 nats"].tolist() == ["15 of 32", "6 of 8 (end of the prompt: 2 of 8)"]
    assert "layer 3 of 8" in table.iloc[5, 1]
    assert table.map(len).to_numpy().max() <= 50  # longer ones are cut off where a notebook shows them


def test_the_page_draws_the_means(stages):
    page = three_stages_figures.stages_page(stages)
    [line] = [line for line in page.axes[4].lines if line.get_label() == "most visual step"]
    least = three_stages_figures.LEAST
    means = stages.withdrawn[1].mean(axis=1)
    assert np.allclose(line.get_ydata(), np.maximum(means, least))
    check_page(page, letters=6)
    # What is smaller than the floor is on it, and the legend says so.
    below = three_stages_figures.stages_page(replace(stages, frozen=stages.frozen * 0 + 1e-9))
    floor = [one for one in below.axes[5].lines if one.get_marker() == "v" and len(one.get_xdata())]
    assert [set(one.get_ydata()) for one in floor] == [{least}] * 2
    assert "below 1e-7 nats" in [text.get_text() for text in below.legends[0].get_texts()]
    assert len(page.axes[0].lines[0].get_ydata()) == 9
    numbers = stages.numbers()["most visual step"]
    assert numbers["cosine"][3]["estimate"] == pytest.approx(stages.cosine[1, 3].mean())
    with pytest.raises(ValueError):
        over_samples(np.array([np.nan]))


def test_no_interval_of_a_divergence_goes_below_zero():
    skewed = np.array([1e-6, 1e-6, 2e-6, 2e-6, 3e-6, 1e-5, 3e-4, 5e-3])
    free, held = over_samples(skewed), over_samples(skewed, least=0.0)
    assert free.low < 0 and (held.low, held.high) == (0, free.high)
    assert over_samples(skewed + 1, least=0.0) == over_samples(skewed + 1)
    assert np.isnan(over_samples(skewed[:2], least=0.0).low)


def test_each_panel_of_divergences_has_a_scale_that_holds_it(stages):
    small = replace(stages, frozen=stages.frozen / stages.frozen.max() * 3e-5)
    page = three_stages_figures.stages_page(small, threshold=0.5)
    for ax, values in zip(page.axes[3:], (small.window, small.withdrawn, small.frozen), strict=True):
        low, high = ax.get_ylim()
        assert low == three_stages_figures.LEAST and 2 * high > values.mean(axis=2).max()
    assert page.axes[5].get_ylim()[1] == pytest.approx(1e-4)
    assert page.axes[4].get_ylim()[1] >= 0.5  # the bound is in sight
