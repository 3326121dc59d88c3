"""Mass and usage: what is arithmetic stays inside the null, what is real comes out, and the sentences follow."""

from dataclasses import replace

import numpy as np
import pytest

from visionpulse_analysis.patches import PatchGrid
from visionpulse_analysis.statistics import Interval
from visionpulse_analysis.studies import mass_figures, mass_report
from visionpulse_analysis.studies.causal_usage import CausalUsage
from visionpulse_analysis.studies.mass_usage import CAUSAL, mass_usage
from visionpulse_analysis.studies.samples import Sample, scene_samples
from visionpulse_analysis.testbed.questions import reason
from visionpulse_analysis.traces import create_trace

SIDE, STEPS, SAMPLES, LAYER = 8, 40, 12, 3
N = SIDE * SIDE


def made(rows, words=None):
    """A trace with these attention rows [step, patch] at one layer."""
    attention = rows[:, None].astype(np.float16)
    return create_trace(
        attention=attention,
        mass=rows.sum(-1)[:, None].astype(np.float32),
        tokens=words or ["see"] * len(rows),
        token_ids=np.zeros(len(rows), np.int64),
        logprobs=np.zeros(len(rows), np.float32),
        grid=PatchGrid.from_grid(np.arange(N), [SIDE], [SIDE], [(64, 64)]),
        layers=[LAYER],
        meta={"id": "made"},
    )


def traces_with(rng, spread):
    """Traces in which a step of mass m lights ``spread(m)`` random patches evenly, with noise; and their masses."""
    traces, masses = [], []
    for _ in range(SAMPLES):
        mass = rng.uniform(0.1, 0.9, STEPS)
        rows = np.full((STEPS, N), 1e-3)
        for step, m in enumerate(mass):
            lit = rng.choice(N, size=spread(m), replace=False)
            rows[step, lit] += rng.lognormal(0, 0.5, len(lit))
        traces.append(made(rows / rows.sum(-1, keepdims=True) * mass[:, None]))
        masses.append(mass)
    return traces, masses


def usage_of(needed):
    return CausalUsage(needed, needed / N, np.ones(len(needed), bool), N)


def study(rng, spread, need, **options):
    traces, masses = traces_with(rng, spread)
    usage = [usage_of(need(m[1:]).astype(np.int64)) for m in masses]
    options = {"level": 0.05, "n_resamples": 200, "n_permutations": 99, **options}
    return traces, masses, mass_usage(traces, LAYER, usage, **options)


def some(rng):
    """Spread that has nothing to do with the mass."""
    return lambda mass: int(rng.integers(5, 50))


def test_what_is_only_scaled_stays_in_the_null_and_has_no_scale_free_relation(rng):
    _, _, result = study(rng, some(rng), lambda m: rng.integers(1, N, len(m)))
    relations = result.paper + result.multiples
    assert max(r.pooled.estimate for r in relations) > 0.3  # r is large without any relation of mass and shape
    nulls = [null for relation in relations if (null := relation.within_null)]
    inside = [null.low <= null.r <= null.high for null in nulls]
    assert len(inside) == 8
    assert sum(inside) >= len(inside) - 1
    for relation in [*result.shapes, result.causal[0]]:
        assert relation.within.low < 0 < relation.within.high, relation.name
    text = mass_report.survivors(result)
    assert "neither clearly more nor clearly fewer patches" in text and "does not survive here" in text


@pytest.mark.parametrize("sign", [1, -1])
def test_a_real_relation_comes_out_with_its_sign(rng, sign):
    def spread(mass):
        return int(4 + 50 * (mass if sign > 0 else 1 - mass))

    _, _, result = study(rng, spread, lambda m: np.round(2 + 60 * (m if sign > 0 else 1 - m)))
    for relation in [*result.shapes, result.causal[0]]:
        assert sign * relation.within.estimate > 0.8, relation.name
    beyond = [sign * (null.r - null.mean) for r in result.multiples if (null := r.within_null)]
    assert max(beyond) > 0.1
    text = mass_report.survivors(result)
    assert ("more patches" if sign > 0 else "fewer patches") in text
    assert ("So the claim survives" in text) == (sign > 0)
    assert mass_report.paper_table(result).map(len).to_numpy().max() <= 50  # longer ones are cut off when shown
    assert ("holds here" if sign > 0 else "is reversed here") in mass_report.transfers(result)


@pytest.mark.parametrize(
    ("r", "low", "high", "survives", "reading"),
    [
        (0.5, 0.4, 0.6, "claim survives: within a trace, mass explains 25.0 % [16.0, 36.0]", "holds here too"),
        (0.085, 0.07, 0.1, "sign of the claim survives and the prediction does not: within a trace", "sign alone"),
        (-0.085, -0.1, -0.07, "steps with more mass need fewer patches", "is reversed here"),
        (0.4, -0.1, 0.9, "is not shown", "is not shown here"),
        (float("nan"), float("nan"), float("nan"), "is not shown", "is not shown here"),
    ],
)
def test_the_claim_is_graded_by_the_variance_explained(rng, r, low, high, survives, reading):
    _, _, result = study(rng, some(rng), lambda m: rng.integers(1, N, len(m)), n_permutations=20)
    within = Interval(r, low, high, SAMPLES, 50, 0.95, "made")
    result = replace(result, causal=[replace(result.causal[0], within=within)])
    text, reached = mass_report.survivors(result), mass_report.transfers(result)
    assert survives in text and ("So the claim survives" in text) == (r == 0.5)
    assert reading in reached
    share = "0.7 % [0.5, 1.0]"
    assert (share in text, share in reached) == (r == 0.085, r == 0.085)


def test_the_table_shows_intervals_beside_the_estimates(rng):
    _, _, result = study(rng, some(rng), lambda m: rng.integers(1, N, len(m)), n_permutations=20)
    here = mass_report.paper_table(result)["here"]
    for row in ("the same within samples", "r at multiples of 1/n", "the same with shapes exchanged, null band"):
        assert str(here[row]).count("[") == 2, row
    lowest = min((r.pooled for r in result.multiples), key=lambda i: i.estimate)
    expected = f"{lowest.estimate:.2f} [{lowest.low:.2f}, {lowest.high:.2f}] to "
    assert here["r at multiples of 1/n"].startswith(expected)
    enough = result.enough[0.05]
    bounds = f"{100 * enough.estimate:.1f} % [{100 * enough.low:.1f}, {100 * enough.high:.1f}] of steps"
    assert here["5 % of the patches are enough for one step"].startswith(bounds)


def test_columns_hold_every_step_and_prefill_has_no_need(rng):
    _, masses, result = study(rng, some(rng), lambda m: np.arange(1, len(m) + 1))
    assert np.allclose(result.columns["mass"], np.concatenate(masses), rtol=2e-3)
    needed = result.columns[CAUSAL[0]].reshape(SAMPLES, STEPS)
    assert np.isnan(needed[:, 0]).all() and np.array_equal(needed[0, 1:], np.arange(1, STEPS))
    assert result.enough[0.05].estimate == pytest.approx(3 / 39)  # 5 % of 64 patches are 3.2
    assert result.sample.tolist() == np.repeat(np.arange(SAMPLES), STEPS).tolist()
    assert result.numbers()["r"]["above 1/n"]["null"]["within"]["p"] is not None


def test_a_count_that_never_varies_is_said_to_be_undefined(rng):
    """Uniform rows: every patch is above the paper's thresholds at every step."""
    rows = [np.full((5, N), 1.0) * rng.uniform(0.5, 0.9, (5, 1)) / N for _ in range(4)]
    result = mass_usage([made(row) for row in rows], LAYER, n_resamples=50, n_permutations=20)
    assert np.isnan(result.paper[0].pooled.estimate)
    text = mass_report.survivors(result)
    assert "undefined at" in text or "is undefined" in text
    table = mass_report.paper_table(result)
    assert table.loc["r(mass, active count), its thresholds", "here"].startswith("undefined")
    assert result.numbers()["steady"] is None and "patches needed" not in result.columns


def test_table_by_kind_takes_means_over_the_right_steps(rng):
    (sample,) = scene_samples(1, seed=2, cells=4)
    assert sample.scene is not None and sample.truth is not None
    truths = reason(sample.scene, sample.truth, rng)[:-1]  # what a careful searcher writes, without the end mark
    kinds = np.array([truth.kind for truth in truths])
    rows = rng.random((len(truths), N)) / N
    trace, own = made(rows, [truth.word for truth in truths]), made(rows * 0.5)
    other = Sample("own", None, "what is this ?")
    result = mass_usage([trace, own], LAYER, n_resamples=50, n_permutations=20)
    table = mass_report.table_by_kind(result, [trace, own], [sample, other])
    assert table["steps"].to_dict() == {kind: (kinds == kind).sum() for kind in table.index}
    assert set(table.index) == set(kinds)
    for kind in set(kinds):
        expected = result.columns["mass"][: len(kinds)][kinds == kind].mean()
        assert table.loc[kind, "mass"] == pytest.approx(expected, abs=0.006)
    assert mass_report.table_by_kind(result, [trace, own], [other, other]).empty


def test_figures_draw_with_and_without_causal_usage(rng):
    traces, _, full = study(rng, some(rng), lambda m: rng.integers(1, N, len(m)))
    without = mass_usage(traces, LAYER, n_resamples=50, n_permutations=20)
    for result, panels in ((full, 3), (without, 2)):
        assert len(mass_figures.scatter_page(result).axes) == panels
        page = mass_figures.correlations_page(result)
        names = [label.get_text() for label in page.axes[2].get_yticklabels()]
        assert names == [r.name for r in result.shapes + result.causal]


def test_wrong_input_is_refused(rng):
    traces, _ = traces_with(rng, some(rng))
    with pytest.raises(ValueError, match="0 traces"):
        mass_usage([], LAYER)
    with pytest.raises(ValueError, match="usage of all or none"):
        mass_usage(traces, LAYER, [usage_of(np.ones(3, np.int64))])
    with pytest.raises(IndexError, match="layer 4 was not recorded"):
        mass_usage(traces, 4)
