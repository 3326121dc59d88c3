"""The properties and verdicts of the study of charts: each can come out every way, and says what the numbers say."""

from types import SimpleNamespace

import numpy as np
import pytest

from visionpulse_analysis.experiments.samples import chart_samples, scene_samples
from visionpulse_analysis.metrics.claims import Claim
from visionpulse_analysis.metrics.estimate import Estimate
from visionpulse_analysis.studies.charts import measure, report
from visionpulse_analysis.testbed.charts.truth import reasons_to_err


def estimate(value, low, high):
    return Estimate(value, low, high, 30, 300, 0.95, "made")


def claim(low, high, level=0.0):
    """A claim that its joint interval decides."""
    made = estimate((low + high) / 2, low, high)
    return Claim(made, level, "made", joint=made)


def test_the_quartile_ratio_is_that_of_all_steps_and_resamples_traces():
    rng = np.random.default_rng(0)
    columns = [rng.integers(1, 60, size=n).astype(float) for n in rng.integers(1, 30, size=14)]
    low, high = np.percentile(np.concatenate(columns), [25, 75])
    found = measure.quartile_ratio([*columns, np.empty(0)])
    assert found.value == pytest.approx(high / low) and found.low < found.value < found.high
    assert (found.n_clusters, found.n_values) == (14, sum(map(len, columns)))
    # Traces all alike leave nothing to resample; a wider confidence gives no narrower interval.
    alike = measure.quartile_ratio([columns[0]] * 12)
    assert alike.low == alike.value == alike.high
    wide = measure.quartile_ratio(columns, 0.999)
    assert wide.low <= found.low and found.high <= wide.high
    few = measure.quartile_ratio(columns[: measure.FEWEST - 1])
    assert np.isnan(few.low) and few.refused and not np.isnan(few.value)
    assert np.isnan(measure.quartile_ratio([np.empty(0)]).value)


def test_a_property_holds_or_does_not_by_the_side_that_is_asked():
    level = measure.ASKED[measure.COST][0]
    made = {True: claim(level + 0.1, level + 0.3, level), False: claim(0, level - 0.1, level)}
    made[None] = claim(level - 0.1, level + 0.1, level)
    assert {state: measure.holds(measure.COST, one) for state, one in made.items()} == {s: s for s in made}
    only = measure.ASKED[measure.ONLY][0]
    assert measure.holds(measure.ONLY, claim(0.0, only / 2, only)) is True
    assert measure.holds(measure.ONLY, claim(2 * only, 3 * only, only)) is False


def test_a_claim_of_the_paper_comes_out_every_way():
    shown, other, neither = claim(-0.2, -0.1), claim(0.1, 0.2), claim(-0.1, 0.1)
    verdicts = [measure._verdict(one, "falls") for one in (shown, other, neither)]
    assert verdicts == [measure.REPRODUCED, measure.NOT, measure.OPEN]
    kept = {measure.REPRODUCED: (0.99, 1.01), measure.NOT: (0.5, 0.9), measure.OPEN: (0.9, 1.05)}
    for expected, (low, high) in kept.items():
        ratio = estimate((low + high) / 2, low, high)
        truth = SimpleNamespace(ratio=ratio, ratio_together=ratio)
        assert measure._kept(SimpleNamespace(truth=truth))[1] == expected
    assert measure._kept(SimpleNamespace(truth=None)) == ("answers are not known", measure.OPEN)


def test_where_a_chart_is_ambiguous_is_told_by_its_picture():
    charts = chart_samples(27, side=16)
    found = [measure._is_ambiguous(one) for one in charts]
    assert any(found) and not all(found)
    for one, ambiguous in zip(charts, found, strict=True):
        assert not ambiguous or reasons_to_err(one.scene, one.truth)
    with pytest.raises(ValueError, match="is no generated chart"):
        measure._is_ambiguous(scene_samples(1)[0])


def test_patches_needed_are_those_of_steps_that_need_the_image_by_kind_of_word():
    kinds = [np.array(["template", "tick", "tick", "label"]), np.array(["template", "tick"])]
    usage = [
        SimpleNamespace(needed={measure.TRUTH: np.array([[3.0, 0.0, np.nan]])}),
        SimpleNamespace(needed={measure.TRUTH: np.array([[5.0]])}),
    ]
    found = measure._needed(kinds, usage)
    assert {order: {kind: k.tolist() for kind, k in of.items()} for order, of in found.items()} == {
        measure.TRUTH: {"tick": [3.0, 5.0]}
    }


def test_what_is_late_is_a_share_of_what_is_read():
    right = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=float)
    assert measure._late(right, 2).tolist() == [3, 2]
    many = measure._ratio([measure._late(right, 2)] * 12, 0.95)
    assert many.value == pytest.approx(2 / 3)


def test_the_finding_counts_what_was_shown():
    numbers = {
        "properties": {
            measure.TEXT: {"claim": claim(0.5, 0.7, 0.4).to_json(), "holds": True},
            measure.COST: {"claim": claim(0.0, 0.1, 0.2).to_json(), "holds": False},
        },
        "paper": {
            "charts": {
                "a": {"paper": "x", "here": "y", "verdict": measure.REPRODUCED},
                "b": {"paper": "x", "here": "y", "verdict": measure.NOT},
                "c": {"paper": "x", "here": "y", "verdict": measure.NOT},
            }
        },
        "arms": {"charts": {"dense": {"accuracy": estimate(0.6, 0.5, 0.7).to_json()}}},
    }
    found = report.finding(numbers)
    assert "1 of 2 properties" in found.short and "1 reproduced, 2 not reproduced, 0 not decidable" in found.short
    assert f"Does not hold: {measure.COST} (5.0 %" in found.long and "2 not reproduced (b and c)" in found.long
