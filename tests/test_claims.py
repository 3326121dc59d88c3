"""Estimates as text and JSON, many effects at once: Holm against its definition, and what one claim may say."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionpulse_analysis.metrics.claims import Claim, from_json, holm, joint_confidence, judge, judge_jointly
from visionpulse_analysis.metrics.estimate import Estimate, as_json
from visionpulse_analysis.metrics.statistics import cluster_bootstrap, mcnemar, paired_difference, permutation_test


def slow_holm(p):
    """By the closure principle: a null falls only if Bonferroni rejects every intersection that holds it."""
    tests = range(len(p))
    groups = [group for size in range(1, len(p) + 1) for group in itertools.combinations(tests, size)]
    joint = {group: min(1.0, len(group) * min(p[i] for i in group)) for group in groups}
    return [max(value for group, value in joint.items() if i in group) for i in tests]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_bonferroni_test(p):
    assert holm(p) == pytest.approx(slow_holm(p))


def test_a_test_that_was_not_possible_counts_in_the_family():
    assert holm([0.02, float("nan")])[0] == pytest.approx(0.04)
    assert np.isnan(holm([0.02, float("nan")])[1])
    for bad in ([1.5], [-0.1], [[0.1]]):
        with pytest.raises(ValueError, match="0 to 1"):
            holm(bad)


def effect(estimate, low, high):
    return Estimate(estimate, low, high, 36, 36, 0.95, "made up")


def test_a_claim_comes_out_every_way():
    found = judge(
        {
            "falls": (effect(-5, -8, -2), 0.001),
            "rises": (effect(5, 2, 8), 0.002),
            "alone it would": (effect(-4, -7, -0.1), 0.04),
            "nothing": (effect(0, -1, 1), 1.0),
            "no test": (effect(-3, float("nan"), float("nan")), float("nan")),
        },
        "made up",
    )
    assert [v.decision for v in found.values()] == ["falls", "rises", "not shown", "not shown", "not shown"]
    assert {v.size for v in found.values()} == {5} and found["alone it would"].adjusted == pytest.approx(0.12)
    assert "0.12 among 5" in str(found["alone it would"]) and "no test" in str(found["no test"])
    assert found["no test"].to_json()["adjusted"] is None
    stored = json.loads(json.dumps(as_json({"found": [found]}), allow_nan=False))
    assert str(from_json(stored)) == str({"found": [found]})
    with pytest.raises(ValueError, match="alpha"):
        judge({}, "none", alpha=5)


def test_a_claim_about_a_level_is_decided_by_the_interval_that_holds_for_the_family():
    def about(low, high, wider):
        return lambda confidence: effect((low + high) / 2, low, high) if confidence == 0.95 else (
            replace(effect((low + high) / 2, low - wider, high + wider), confidence=confidence)
        )  # fmt: skip

    claims = judge_jointly(
        {
            "above": (about(0.6, 0.8, 0.05), 0.5),
            "below": (about(0.1, 0.3, 0.05), 0.5),
            "above alone": (about(0.52, 0.8, 0.05), 0.5),
            "unknown": (lambda _: Estimate.missing("no step"), 0.5),
        },
        "four levels",
    )
    assert [c.decision for c in claims.values()] == ["rises", "falls", "not shown", "not shown"]
    assert {c.joint.confidence for c in claims.values() if not c.joint.refused} == {joint_confidence(4)} == {0.9875}
    ends = {"above": "is there", "below": "is not there"}
    said = [c.sentence("That it", **ends) for c in claims.values()]
    assert said[:2] == ["That it is there.", "That it is not there."]
    assert said[2] == said[3] == "That it cannot be decided with these samples."
    assert "4 together" in str(claims["above"]) and "against 0.5" in str(claims["above"])
    assert claims["above"].to_json()["level"] == 0.5 and claims["above"].to_json()["joint"]["confidence"] == 0.9875


def test_what_lies_within_a_margin_is_equivalent_only_by_an_interval_wide_enough_for_the_family():
    one = Claim(effect(0.2, -0.5, 0.9), 0.0, "one", p=0.4, adjusted=0.4, margin=1.0)
    assert one.decision == "equivalent"
    assert one.sentence("It", above="rises", below="falls", equivalent="stays") == "It stays."
    assert one.sentence("It", above="rises", below="falls", otherwise="is open") == "It is open."
    assert replace(one, margin=0.9).decision == replace(one, margin=None).decision == "not shown"
    assert replace(one, size=3).decision == "not shown"  # 95 % are of one claim alone
    wide = replace(effect(0.2, -0.7, 0.95), confidence=joint_confidence(3))
    assert replace(one, size=3, joint=wide).decision == "equivalent"
    assert replace(one, adjusted=0.01).decision == "rises"  # small, and shown to be there
    stated = replace(one, level=5.0, joint=wide, alpha=0.1)
    assert from_json([1, None, "x", stated.to_json()]) == [1, None, "x", stated]
    assert replace(one, level=5.0).decision == "not shown" and replace(one, level=0.3).decision == "equivalent"


def test_an_estimate_prints_calculates_and_serialises():
    found = Estimate(0.7123, 0.6411, 0.7812, 200, 9000, 0.95, "wilson", "scene")
    assert str(found) == f"{found}" == "0.71 [0.64, 0.78], 200 scenes"
    assert str(Estimate(-12.34, -15.9, -8.1, 30, 90, 0.95, "wilson")) == "-12 [-16, -8], 30 samples"
    assert str(Estimate(0.5, np.nan, np.nan, 1, 90, 0.95, "wilson")) == "0.500 [nan, nan], 1 sample"
    assert f"{found:.3f}" == "0.712 [0.641, 0.781]" and f"{found:.1g nats}" == "0.7 nats [0.6, 0.8]"
    assert f"{found:.1%}" == "71.2 % [64.1, 78.1]" and f"{found - 1:+.1p}" == "-28.8 points [-35.9, -21.9]"
    assert f"{1 - found:+.0%}" == "+29 % [22, 36]" and f"{-10 * found:.1f}" == "-7.1 [-7.8, -6.4]"
    alone = cluster_bootstrap([1, 2], [0, 0])
    assert f"{alone:.1f}" == "1.5 (no interval)" and f"{Estimate.missing('no step'):.1%}" == "not known"
    for wrong in ("d", ".2", "8.2f", ".1%%", "+"):
        with pytest.raises(ValueError, match="no format of an Estimate"):
            format(found, wrong)
    for one in (found, 100 * found):
        assert Estimate.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False))) == one
    stored = json.loads(
        json.dumps(as_json({1: [alone, float("nan")], "p": judge({0: (found, 0.5)}, "one")}), allow_nan=False)
    )
    assert stored["1"][0]["low"] is None and stored["1"][1] is None and stored["p"]["0"]["decision"] == "not shown"
    assert str(Estimate.from_json(stored["1"][0])) == str(alone)


def test_the_exact_test_decides_where_an_interval_would_mislead():
    right = np.ones(36)
    pruned = np.r_[np.zeros(5), np.ones(31)]
    change = paired_difference(right, pruned)
    verdict = judge({"five lost of 36": (change, mcnemar(right, pruned).p)}, "one test")["five lost of 36"]
    assert change.high < 0
    assert verdict.p == 0.0625 and verdict.decision == "not shown"


def test_a_family_of_true_nulls_is_called_an_effect_at_most_at_alpha():
    rng, families = np.random.default_rng(20261128), 0
    for _ in range(300):
        pairs = rng.integers(0, 2, (20, 2, 36))  # 20 arms, nothing changes
        tests = {i: (effect(b.mean() - a.mean(), 0, 0), permutation_test(a, b).p) for i, (a, b) in enumerate(pairs)}
        families += any(v.decision != "not shown" for v in judge(tests, "nulls").values())
    assert families / 300 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
