"""Arms share a prefill; what comes out must be what decoding each arm alone gives."""

from itertools import pairwise

import numpy as np
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis._util.files import cache_folder
from visionpulse_analysis.decoding.sampling import Sample as Sampling
from visionpulse_analysis.experiments import conditions as arms
from visionpulse_analysis.experiments.samples import scene_samples


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def samples():
    return scene_samples(2, cells=4) + scene_samples(1, seed=1, cells=6)


ARMS = {
    "dense": None,
    "pulse": vpa.make_pruner("visionpulse", budget_max=0.2),
    "random": vpa.make_pruner("random", budget=0.1),
    "at prefill": vpa.make_pruner("prefill_once", budget=0.1),
    "one step late": vpa.make_pruner("last_step_only", budget=0.1),
    "sticky": vpa.make_pruner("visionpulse", budget=0.1, hysteresis=1.0, reuse_previous=True),
}


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=2.0)], ids=["greedy", "sampled"])
def test_arms_are_what_decoding_each_alone_gives(vlm, samples, sampling):
    found = arms.decode_arms(vlm, samples, ARMS, seeds=(0, 4), sample=sampling, max_new_tokens=8, batch_size=2)
    for name, pruner in ARMS.items():
        for place, seed in enumerate((0, 4)):
            traces = vpa.decode(
                vlm,
                [one.image for one in samples],
                [one.question for one in samples],
                layers="none",
                pruner=pruner,
                sample=sampling,
                seed=[seed * 1_000_003 + i for i in range(len(samples))],
                max_new_tokens=8,
            )
            for outcome, trace in zip(found[name][place], traces, strict=True):
                assert outcome.tokens == trace.tokens
                assert outcome.finished == trace.meta["finished"]
                if pruner is not None:
                    assert outcome.retention == pytest.approx(trace.kept.values[1:].mean(), rel=1e-12)


def test_equal_pruners_are_decoded_once(vlm, samples, monkeypatch):
    decoded, decode = [], arms.Trunk.decode
    monkeypatch.setattr(
        arms.Trunk, "decode", lambda trunk, pruner, *of: decoded.append(pruner) or decode(trunk, pruner, *of)
    )
    same = vpa.make_pruner("random", budget=0.1)
    named = {"random": ARMS["random"], "dense": None, "random again": same, "dense again": None}
    found = arms.decode_arms(vlm, samples[:1], named, seeds=(0, 1), max_new_tokens=3)
    assert decoded == [same, same, None, None]
    assert found["random again"] == found["random"] != found["dense"] == found["dense again"]


def test_overlap_is_the_mean_jaccard_index_of_consecutive_kept_sets(vlm, samples):
    found = arms.decode_arms(vlm, samples[:1], {"pulse": ARMS["pulse"]}, max_new_tokens=10)
    kept = vpa.decode(vlm, samples[0].image, samples[0].question, pruner=ARMS["pulse"], max_new_tokens=10).kept.values
    sets = [set(np.flatnonzero(row)) for row in kept[1:]]
    expected = np.mean([len(a & b) / len(a | b) for a, b in pairwise(sets)])
    assert found["pulse"][0][0].overlap == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_second_call_reads_and_a_new_arm_decodes_only_itself(vlm, samples, monkeypatch, replaced):
    if replaced:  # in a library that the new arm uses
        monkeypatch.setattr(np, "stack", lambda *given, stack=np.stack, **options: stack(*given, **options))

    def kept():
        return {path.name: path.stat().st_mtime_ns for path in cache_folder().iterdir()}

    first = arms.decode_arms(vlm, samples, {"dense": None}, max_new_tokens=5)
    [(name, written)] = kept().items()
    assert arms.decode_arms(vlm, samples, {"dense": None}, max_new_tokens=5) == first
    assert kept() == {name: written}
    both = arms.decode_arms(vlm, samples, {"dense": None, "random": ARMS["random"]}, max_new_tokens=5)
    assert both["dense"] == first["dense"]
    assert len(kept()) == 2 and kept()[name] == written


@pytest.mark.parametrize("empty", ["samples", "arms", "seeds"])
def test_nothing_to_decode_raises(vlm, samples, empty):
    given = {"samples": samples, "arms": ARMS, "seeds": (0,), empty: ()}
    with pytest.raises(ValueError, match="expected samples, arms and seeds"):
        arms.decode_arms(vlm, given["samples"], given["arms"], seeds=given["seeds"])
