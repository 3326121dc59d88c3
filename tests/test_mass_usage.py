"""Mass and usage: what is arithmetic stays inside the null, what is real comes out, and the sentences follow."""

import json
from dataclasses import replace

import numpy as np
import pytest

from visionpulse_analysis.experiments.samples import Sample, scene_samples
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.studies.mass_and_usage import figures as mass_figures
from visionpulse_analysis.studies.mass_and_usage import report as mass_report
from visionpulse_analysis.studies.mass_and_usage.causal_usage import ANCHOR, LATER, CausalUsage
from visionpulse_analysis.studies.mass_and_usage.measure import BLIND, mass_usage, needed_name
from visionpulse_analysis.testbed.scenes.questions import reason
from visionpulse_analysis.traces import create_trace

SIDE, STEPS, SAMPLES, LAYER = 8, 40, 12, 3
N = SIDE * SIDE
LEVELS = (0.05, 0.2)


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
    """A step needs as many in both orders; without any it loses as many nats as there are patches."""
    both = np.tile(needed.astype(float), (len(LEVELS), 1))
    return CausalUsage(needed.astype(float), LEVELS, {ANCHOR: both, LATER: both}, np.ones(len(needed), bool), N)


def study(rng, spread, need, **options):
    traces, masses = traces_with(rng, spread)
    usage = [usage_of(need(m[1:]).astype(np.int64)) for m in masses]
    options = {"n_resamples": 400, "n_permutations": 99, **options}
    return traces, masses, mass_usage(traces, LAYER, usage, **options)


def some(rng):
    """Spread that has nothing to do with the mass."""
    return lambda mass: int(rng.integers(5, 50))


def test_what_is_only_scaled_stays_in_the_null_and_has_no_scale_free_relation(rng):
    _, _, result = study(rng, some(rng), lambda m: rng.integers(1, N, len(m)))
    relations = result.paper + result.multiples
    assert max(r.pooled.value for r in relations) > 0.3  # r is large without any relation of mass and shape
    nulls = [null for relation in relations if (null := relation.within_null)]
    inside = [null.low <= null.r <= null.high for null in nulls]
    assert len(inside) == 8
    assert sum(inside) >= len(inside) - 1
    for relation in result.shapes:
        assert relation.within.low < 0 < relation.within.high, relation.name
    assert all(need.together.low < 0 < need.together.high for need in result.needs)
    text = mass_report.survivors(result)
    assert "neither clearly more nor clearly fewer patches" in text and "the claim is not shown here" in text


def test_telling_steps_about_the_image_from_others_is_not_a_relation_of_mass_and_need(rng):
    """Three of four steps need nothing and have little mass; of the others, need has nothing to do with mass."""
    traces, usage = [], []
    for _ in range(SAMPLES):
        visual = rng.random(STEPS) < 0.25
        mass = np.where(visual, rng.uniform(0.5, 0.9, STEPS), rng.uniform(0.1, 0.4, STEPS))
        traces.append(made(rng.dirichlet(np.ones(N), STEPS) * mass[:, None]))
        usage.append(usage_of(np.where(visual, rng.integers(1, N, STEPS), 0)[1:]))
    result = mass_usage(traces, LAYER, usage, n_resamples=400, n_permutations=99)
    assert len(result.needs) == 1 + 2 * len(LEVELS)
    for need in result.needs:
        assert need.every.low > 0.4  # as a correlation over all steps would have it
        assert need.every_null.low < need.every.value < need.every_null.high
        assert need.together.low < 0 < need.together.high
        assert (need.n_every, need.n_needing) == (SAMPLES * (STEPS - 1), sum((u.blind_kl > 0).sum() for u in usage))
    text = mass_report.survivors(result)
    assert "the claim is not shown here" in text and "is not shown here" in mass_report.transfers(result)
    table = mass_report.need_table(result)
    assert table.loc["needed at most, anchor's order, 0.2 nats", "steps that need the image"] == str(
        result.needs[0].n_needing
    )
    share = result.need_image[0.05].value
    assert share == pytest.approx(result.needs[0].n_needing / result.needs[0].n_every)


def test_no_step_that_needs_the_image_leaves_the_question_open(rng):
    traces, _ = traces_with(rng, some(rng))
    usage = [usage_of(np.zeros(STEPS - 1)) for _ in traces]
    result = mass_usage(traces, LAYER, usage, n_resamples=50, n_permutations=20)
    assert "nothing can be said: too few steps need the image" in mass_report.survivors(result)
    assert "cannot be tested here" in mass_report.transfers(result)
    assert mass_figures.correlations_page(result).axes[5].texts and mass_figures.scatter_page(result).axes[3].texts
    json.dumps(result.numbers(), allow_nan=False)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_real_relation_comes_out_with_its_sign(rng, sign):
    def spread(mass):
        return int(4 + 50 * (mass if sign > 0 else 1 - mass))

    _, _, result = study(rng, spread, lambda m: np.round(2 + 60 * (m if sign > 0 else 1 - m)))
    for relation in result.shapes:
        assert sign * relation.within.value > 0.8, relation.name
    for need in result.needs:
        assert sign * need.needing.value > 0.8, need.name
    beyond = [sign * (null.r - null.mean) for r in result.multiples if (null := r.within_null)]
    assert max(beyond) > 0.1
    text = mass_report.survivors(result)
    assert ("more patches" if sign > 0 else "fewer patches") in text
    assert ("So the claim survives" in text) == (sign > 0)
    assert mass_report.paper_table(result).map(len).to_numpy().max() <= 50  # longer ones are cut off when shown
    assert mass_report.need_table(result).map(len).to_numpy().max() <= 50
    assert ("holds here" if sign > 0 else "is reversed here") in mass_report.transfers(result)


@pytest.mark.parametrize(
    ("ends", "grade", "survives", "reading"),
    [
        ([(0.4, 0.6)] * 3, "predicts", "claim survives", "holds here too"),
        ([(0.4, 0.6), (0.4, 0.6), (0.07, 0.1)], "sign only", "and the prediction does not", "sign alone"),
        ([(0.4, 0.6), (-0.1, 0.9)], "partly", "in 1 of 2 measures", "in some measures"),
        ([(0.4, 0.6), (-0.2, -0.1)], "divided", "with more need or with less", "even in its sign"),
        ([(-0.1, 0.9), (-0.2, -0.1)], "reversed", "needs less", "is reversed here"),
        ([(-0.1, 0.9)] * 2, "open", "the claim is not shown here", "is not shown here"),
        ([(-0.1, 0.9), None], "open", "the claim is not shown here", "is not shown here"),
        ([(0.4, 0.6), None], "partly", "in 1 of 2 measures", "in some measures"),
        ([None], "nothing", "nothing can be said", "cannot be tested"),
    ],
)
def test_the_claim_is_graded_by_intervals_that_hold_together(rng, ends, grade, survives, reading):
    _, _, result = study(rng, some(rng), lambda m: rng.integers(1, N, len(m)), n_permutations=20)

    def made_up(need, bounds):
        low, high = bounds or (np.nan, np.nan)
        interval = Estimate((low + high) / 2, low, high, SAMPLES, 50, 0.95, "made")
        return replace(need, needing=interval, together=interval)

    result = replace(result, needs=[made_up(need, one) for need, one in zip(result.needs, ends, strict=False)])
    assert mass_report.grade_of(result.numbers()["needs"]) == grade
    text, reached = mass_report.survivors(result), mass_report.transfers(result)
    assert survives in text and ("So the claim survives" in text) == (grade == "predicts")
    assert reading in reached


def test_the_intervals_of_the_verdict_are_wider_than_those_shown(rng):
    _, _, result = study(rng, some(rng), lambda m: np.round(2 + 60 * m))
    for need in result.needs:
        assert need.together.confidence == pytest.approx(1 - 0.05 / len(result.needs))
        assert need.together.low < need.needing.low and need.needing.high < need.together.high


def test_over_how_many_patches_mass_is_spread_is_said_by_intervals_that_hold_together(rng):
    _, _, result = study(rng, some(rng), lambda m: np.round(2 + 60 * m), n_permutations=20)
    for one in result.shapes:
        assert one.together is not None and one.together.confidence == pytest.approx(1 - 0.05 / len(result.shapes))
        assert one.together.low < one.within.low and one.within.high < one.together.high

    def said(low):
        shapes = [replace(one, within=replace(one.within, low=0.01, high=0.4),
                          together=replace(one.within, low=low, high=0.5)) for one in result.shapes]  # fmt: skip
        return mass_report.survivors(replace(result, shapes=shapes))

    assert "spread it over more patches" in said(0.001)
    assert "spread it over neither clearly more nor clearly fewer patches" in said(-0.1)


def test_the_table_shows_intervals_beside_the_estimates(rng):
    _, _, result = study(rng, some(rng), lambda m: rng.integers(1, N, len(m)), n_permutations=20)
    here = mass_report.paper_table(result)["here"]
    for row in ("the same within samples", "r at multiples of 1/n", "the same with shapes exchanged, null band"):
        assert str(here[row]).count("[") == 2, row
    lowest = min((r.pooled for r in result.multiples), key=lambda i: i.value)
    expected = f"{lowest.value:.2f} [{lowest.low:.2f}, {lowest.high:.2f}] to "
    assert here["r at multiples of 1/n"].startswith(expected)
    enough = result.enough[0.05]
    bounds = f"{100 * enough.value:.1f} % [{100 * enough.low:.1f}, {100 * enough.high:.1f}] of steps"
    assert here["5 % of the patches are enough for one step"].startswith(bounds)


def test_columns_hold_every_step_and_prefill_has_no_need(rng):
    _, masses, result = study(rng, some(rng), lambda m: np.arange(1, len(m) + 1))
    assert np.allclose(result.columns["mass"], np.concatenate(masses), rtol=2e-3)
    needed = result.columns[needed_name(ANCHOR, 0.05)].reshape(SAMPLES, STEPS)
    assert np.isnan(result.columns[BLIND].reshape(SAMPLES, STEPS)[:, 0]).all()
    assert np.isnan(needed[:, 0]).all() and np.array_equal(needed[0, 1:], np.arange(1, STEPS))
    assert result.enough[0.05].value == pytest.approx(3 / 39)  # 5 % of 64 patches are 3.2
    assert result.sample.tolist() == np.repeat(np.arange(SAMPLES), STEPS).tolist()
    assert result.numbers()["r"]["above 1/n"]["null"]["within"]["p"] is not None


def test_a_count_that_never_varies_is_said_to_be_undefined(rng):
    """Uniform rows: every patch is above the paper's thresholds at every step."""
    rows = [np.full((5, N), 1.0) * rng.uniform(0.5, 0.9, (5, 1)) / N for _ in range(4)]
    result = mass_usage([made(row) for row in rows], LAYER, n_resamples=50, n_permutations=20)
    assert np.isnan(result.paper[0].pooled.value)
    text = mass_report.survivors(result)
    assert "undefined at" in text or "is undefined" in text
    table = mass_report.paper_table(result)
    assert table.loc["r(mass, active count), its thresholds", "here"].startswith("undefined")
    assert result.numbers()["steady"] is None and BLIND not in result.columns


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
    for result, panels, rows in ((full, 4, 3), (without, 2, 2)):
        assert len(mass_figures.scatter_page(result).axes) == panels
        page = mass_figures.correlations_page(result)
        assert len(page.axes) == 2 * rows
        names = [label.get_text() for label in page.axes[2].get_yticklabels()]
        assert names == [r.name for r in result.shapes]
    drawn = [label.get_text() for label in mass_figures.correlations_page(full).axes[4].get_yticklabels()]
    assert drawn == [need.name for need in full.needs]


def test_wrong_input_is_refused(rng):
    traces, _ = traces_with(rng, some(rng))
    with pytest.raises(ValueError, match="0 traces"):
        mass_usage([], LAYER)
    with pytest.raises(ValueError, match="usage of all or none"):
        mass_usage(traces, LAYER, [usage_of(np.ones(3, np.int64))])
    usage = [usage_of(np.ones(STEPS - 1)) for _ in traces]
    with pytest.raises(ValueError, match="usage at different levels"):
        mass_usage(traces, LAYER, [replace(usage[0], levels=(0.1, 0.3)), *usage[1:]])
    with pytest.raises(IndexError, match="layer 4 was not recorded"):
        mass_usage(traces, 4)
