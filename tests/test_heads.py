"""Study 12: heads are measured as stated, chosen on one half of the samples, and judged on the other alone."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding.interventions.single_steps import SingleSteps, keep_exactly
from visionpulse_analysis.studies.heads import figures as draw
from visionpulse_analysis.studies.heads import measure, report
from visionpulse_analysis.studies.layers.anchors import relevant_patches

PATCHES, SET, STEPS = 40, 4, 4
FOLLOWS, STATIC, BLIND = (0, 0), (0, 1), (1, 0)


def looked(rng) -> measure._Looked:
    """One trace whose first head follows its step, whose second looks at one place, and whose others at random ones."""
    steps = np.arange(1, STEPS + 1)
    relevant = np.argsort(rng.random((STEPS, PATCHES)), axis=1) < SET
    relevant[:, :2] = True  # what all steps depend on, and every place of habit holds
    sets = np.argsort(rng.random((STEPS, 4, PATCHES)), axis=2) < SET
    sets[:, 0] = relevant
    sets[:, 1] = False
    sets[:, 1, :SET] = True
    share = relevant / relevant.sum(axis=1, keepdims=True)
    crossed = np.einsum("sp,thp->sth", share, sets)
    own = np.einsum("ssh->sh", crossed)
    return measure._Looked(
        mass=rng.random((8, 4)), reads=np.arange(8) < STEPS, steps=steps, entropy=rng.random((STEPS, 4)), agreement=own,
        other=(crossed.sum(axis=1) - own) / (STEPS - 1), by_norm=own, top=sets, mean_top=sets[:, [0, 2]],
    )  # fmt: skip


@pytest.fixture
def planted(monkeypatch):
    """`measure_heads` on made-up traces; gives what it found, and which traces were pruned."""

    def run(n=25, **options):
        rng = np.random.default_rng(5)
        traces = [
            SimpleNamespace(
                quantities=dict.fromkeys(measure.RECORD), heads=[0, 1], layers=[0, 1], meta={"id": i}, made=looked(rng)
            )
            for i in range(n)
        ]
        pruned = []

        def prune(vlm, judged, found, number, layers, level, rng):
            pruned.append([trace.meta["id"] for trace in judged])
            good = number == 0
            return {
                arm: [np.full(STEPS, (arm == "head" and good) or arm == "layer's mean") for _ in judged]
                for arm in measure.ARMS
            }

        monkeypatch.setattr(measure.SingleSteps, "of", lambda vlm, trace: trace)
        monkeypatch.setattr(measure, "_look", lambda replay, trace, *rest: trace.made)
        monkeypatch.setattr(measure, "_prune", prune)
        return measure.measure_heads(None, traces, n_resamples=200, n_chosen=2, **options), pruned

    return run


def test_the_head_that_follows_its_step_is_found_and_the_one_with_a_habit_is_not(planted):
    study, _ = planted()
    assert study.chosen[0] == FOLLOWS and study.found[FOLLOWS].decision == "rises"
    assert study.found[FOLLOWS].size == 4
    assert study.agreement[STATIC].value > 0.25 > study.agreement[BLIND].value  # holds much, as at any step
    assert not study.found[STATIC].above and not study.found[BLIND].above
    assert study.best["own step"][0] == FOLLOWS
    assert study.judged[FOLLOWS, "random"].above and not study.judged[FOLLOWS, "layer's mean"].above
    assert report.suitable(study) == [FOLLOWS]
    assert {claim.size for claim in study.judged.values()} == {2 * 3}


def test_no_sample_both_chooses_and_judges(planted, monkeypatch):
    study, pruned = planted()
    judging = pruned[0]
    assert study.n_choosing + study.n_judging == 25 and len(judging) == 12 and pruned[1] == judging
    used: list[tuple[str, int]] = []
    original = measure._lift
    monkeypatch.setattr(measure, "_lift", lambda *args, **more: (used.append(len(args[0])), original(*args, **more))[1])
    again, _ = planted()
    assert [n for n in used if n] == [13] * 4 + [12] * 6 + [25] * 4  # chooses; judges; when each head looks
    other, pruned = planted(seed=1)
    assert set(pruned[0]) != set(judging) and again.numbers() == study.numbers()
    assert json.loads(json.dumps(other.numbers()))["chosen"][0] == "0.0"


def test_what_is_said_is_what_is_judged(planted):
    study, _ = planted()
    told = report.verdict(study)
    assert "**Head 0 of layer 0** holds more of what the step itself depends on" in told
    assert "Shown to do for pruning here: head 0 of layer 0." in told
    assert "is not told apart from the mean over its layer's heads" in told
    assert report.heads_table(study, 3).shape[0] == 3 and set(report.pruning_table(study)) == set(measure.ARMS)
    assert draw.heads_page(study) and draw.criteria_page(study)


def test_a_real_trace_against_slow_sets(vlm, pictures):
    trace = vpa.decode(vlm, pictures[0], "where ?", heads="all", record=list(measure.RECORD), max_new_tokens=5, seed=2)
    replay, fraction = SingleSteps.of(vlm, trace), 0.1
    nothing = keep_exactly(np.zeros((len(replay.steps), replay.n_patches), bool))
    level = float(np.median(replay.run(replay.steps, 0, nothing).kl)) * 0.99
    found = measure._look(replay, trace, fraction, level, most_steps=2)
    assert 1 <= len(found.steps) <= 2
    relevant, k = relevant_patches(replay, trace.grid, found.steps, fraction), int(fraction * replay.n_patches)
    for n, (layer, head) in enumerate((layer, head) for layer in trace.layers for head in trace.heads):
        sets = {}
        for name in ("attention", "value_norm_attention"):
            rows = trace.data[name].sel(layer=layer, head=head).values[found.steps].astype(float)
            sets[name] = [set(np.argsort(-row, kind="stable")[:k].tolist()) for row in rows]
        for step, needed in enumerate(np.flatnonzero(row).tolist() for row in relevant):
            held = [len(sets[name][step] & set(needed)) / len(needed) for name in sets]
            assert held == pytest.approx([found.agreement[step, n], found.by_norm[step, n]])
            if len(found.steps) == 2:
                away = len(sets["attention"][1 - step] & set(needed)) / len(needed)
                assert away == pytest.approx(found.other[step, n])
        assert found.entropy[0, n] == pytest.approx(
            float(trace.data["head_entropy"].sel(layer=layer, head=head)[found.steps[0]])
        )


def test_traces_that_do_not_hold_what_is_needed_are_refused(vlm, pictures):
    mean = vpa.decode(vlm, pictures[0], "where ?", max_new_tokens=2)
    with pytest.raises(ValueError, match=r"lacks \['head_entropy', 'value_norm_attention'\]: decode with heads='all'"):
        measure.measure_heads(vlm, [mean])
    with pytest.raises(ValueError, match="n_chosen 3 of 0 heads"):
        measure.measure_heads(vlm, [])
    whole = vpa.decode(vlm, pictures[0], "where ?", heads="all", record=list(measure.RECORD), max_new_tokens=3)
    with pytest.raises(ValueError, match=r"0 of 1 traces have a step that reads the image .* lower the level"):
        measure.measure_heads(vlm, [whole], level=1e9)
