"""The benchmarks measure what they say: never how fast this machine is."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend
from typer.testing import CliRunner

from visionpulse_analysis.attention.routing import active_interceptors
from visionpulse_analysis.cli import app
from visionpulse_analysis.experiments.bench import batch, decode, recording, synthetic
from visionpulse_analysis.experiments.bench.machine import VARIANTS, pruner_of
from visionpulse_analysis.experiments.bench.synthetic import (
    AFTER,
    BEFORE,
    Steps,
    Way,
    bounds,
    bytes_read,
    random_language_model,
    step_bytes,
    weight_bytes,
)

TOKENS = 256
PER_KEY = 2 * 16 * 4  # the tiny model: 2 key heads of 16 values, float32
LAYERS, ANCHOR = 4, 1


@pytest.fixture(scope="module")
def tiny():
    return random_language_model("tiny", "cpu", torch.float32)


@pytest.fixture
def small_reading(monkeypatch):
    monkeypatch.setattr(decode, "READ", 1 << 20)


def test_every_variant_is_measured_and_related_to_stock_and_the_limit(small_reading, monkeypatch):
    clock = iter(np.arange(1000) ** 2 / 1000)  # every timing is another one, and known
    monkeypatch.setattr(decode.time, "perf_counter", lambda: next(clock))
    result = decode.bench_decode((64, TOKENS), (1, 2), size="tiny", rounds=2, device="cpu")
    rows = {(row["visual_tokens"], row["batch"], row["variant"]): row for row in result["rows"]}
    assert set(rows) == {(n, b, v) for n in (64, TOKENS) for b in (1, 2) for v in VARIANTS}
    for (tokens, _, variant), row in rows.items():
        speed = row["speedup_over_stock"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        assert (variant != "stock") or speed == {"min": 1, "median": 1, "max": 1}
        assert row["limit_ms"] == pytest.approx(row["bytes"] / row["bandwidth_gb_s"] / 1e6)
        assert row["time_over_limit"] == pytest.approx(row["step_ms"] / row["limit_ms"])
        pruned = variant not in ("stock", "eager", "dense")
        assert row["bound_over_dense"] == rows[tokens, row["batch"], "dense"]["bytes"] / row["bytes"]
        assert (variant != "dense") or row["speedup_over_dense"] == {"min": 1, "median": 1, "max": 1}
        assert ("selection_share" in row) == pruned
        share = {"5": 0.05, "10": 0.1}.get(variant.rpartition("_")[2], 1.0)
        assert row["kept"] <= max(1, int(share * tokens)) / tokens
    assert result["bandwidth_gb_s"] == max(row["bandwidth_gb_s"] for row in rows.values())
    assert json.loads(json.dumps(result)) == result
    assert {"processor", "threads", "versions", "date"} <= set(result["machine"])
    assert all(name in decode.format_rows(result) for name in VARIANTS)


@pytest.mark.parametrize("rows", [1, 3])
def test_bytes_are_those_of_weights_and_of_what_is_read(tiny, rows):
    steps, columns, text = Steps(tiny, TOKENS, rows), BEFORE + TOKENS + AFTER + 1, BEFORE + AFTER + 1
    weights = sum(p.numel() * 4 for p in tiny.model.get_decoder().layers.parameters())
    weights += tiny.model.lm_head.weight.numel() * 4
    assert weight_bytes(tiny) == weights
    assert bytes_read(steps.variant("dense")(), False) == weights + 2 * LAYERS * rows * columns * PER_KEY
    gathered = bytes_read(steps.variant("gathered_25")(), True)
    kept = text + TOKENS // 4
    # One dense layer, the anchor whose keys are all ranked, two sparse ones.
    assert gathered - weights == rows * PER_KEY * (2 * columns + (columns + kept) + 2 * 2 * kept)
    step = steps.variant("reuse_5")
    step()
    batch_after = step()
    counts = [int(k.sum()) for k in batch_after.groups[0].shown]
    read = [2 * (rows * text + count) for count in counts]
    read[ANCHOR] = rows * columns + rows * text + counts[ANCHOR]
    assert bytes_read(batch_after, True) - weights == PER_KEY * sum(read)
    assert max(counts) <= rows * int(0.05 * TOKENS)


@pytest.mark.parametrize("rows", [1, 3])
def test_what_bytes_allow_is_known_without_a_run(tiny, small_reading, rows):
    variants = ("gathered_5", "gathered_10", "gathered_25", "reuse_5")
    options = {"size": "tiny", "rounds": 1, "device": "cpu", "variants": ("stock", "dense", *variants)}
    measured = {row["variant"]: row for row in decode.bench_decode((TOKENS,), (rows,), **options)["rows"]}
    # Weights and keys of half the size on both sides: the same ratio.
    for row in bounds("tiny", (TOKENS,), rows, variants):
        assert row["bound_over_dense"] == pytest.approx(measured[row["variant"]]["bound_over_dense"], rel=1e-12)


def test_bounds_count_patches_as_the_pruner_does_and_refuse_what_they_cannot_know(tiny):
    columns, kept = BEFORE + 3200 + AFTER + 1, 928  # 29 % of 3,200, which floating point takes for 927.99
    dense = step_bytes(tiny, 1, columns, 3200, [None] * LAYERS)
    [found] = bounds("tiny", (3200,), 1, ("gathered_29",))
    read = step_bytes(tiny, 1, columns, 3200, [None, *[kept] * (LAYERS - 1)], ANCHOR)
    assert found["bound_over_dense"] == pytest.approx(dense / read, rel=1e-12)
    for name, message in {"faster": "no variant 'faster'", "masked_5": "'masked_5' reads", "dense": "reads"}.items():
        with pytest.raises(ValueError, match=message):
            bounds("tiny", (TOKENS,), 1, (name,))
    for given in (("large", (TOKENS,), 1), ("tiny", (0,), 1), ("tiny", (TOKENS,), 0)):
        with pytest.raises(ValueError, match=r"no size 'large'|must be at least 1, got 0"):
            bounds(*given)


def test_a_step_leaves_the_context_as_it_was_and_agrees_with_the_library(tiny, monkeypatch):
    steps = Steps(tiny, TOKENS, 2)
    ours, stock = steps.variant("dense"), steps.variant("stock")
    seen = []
    handle = tiny.model.lm_head.register_forward_hook(lambda module, given, out: seen.append(out[:, -1].clone()))
    try:
        for run in (ours, stock, ours, stock):
            steps.tokens.manual_seed(5)
            run()
    finally:
        handle.remove()
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert (seen[0] - seen[1]).abs().max() < 1e-5
    assert steps.grown.get_seq_length() == steps.copied.get_seq_length() == steps.length
    assert tiny.model.config.text_config._attn_implementation == "sdpa"


def test_what_a_decode_does_once_is_not_timed_with_a_step(tiny, small_reading, monkeypatch):
    """Sending attention through another function takes as long as some of the layers: a decode does it once."""
    found: dict[tuple[bool, str], int] = {}

    def seconds(function, device):
        how = active_interceptors(tiny.model) > 0, tiny.model.config.text_config._attn_implementation
        function()
        assert how == (active_interceptors(tiny.model) > 0, tiny.model.config.text_config._attn_implementation)
        found[how] = found.get(how, 0) + 1
        return 1.0

    monkeypatch.setattr(decode, "random_language_model", lambda *given: tiny)
    monkeypatch.setattr(decode, "seconds", seconds)
    variants = ("stock", "eager", "dense", "masked_5")
    decode.bench_decode((64,), (1,), size="tiny", rounds=2, device="cpu", variants=variants)
    # Three rounds with the one that warms up; stock and the reading; choosing is timed in two steps more.
    assert found[False, "eager"] == 3 and found[False, "sdpa"] == 6
    assert found.keys() == {(False, "eager"), (False, "sdpa"), (True, "sdpa")} and found[True, "sdpa"] >= 6 + 2


def test_every_layer_has_its_own_memory(tiny):
    steps = Steps(tiny, TOKENS, 1)
    steps.variant("dense")
    assert len({layer.keys.untyped_storage().data_ptr() for layer in steps.grown.layers}) == LAYERS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ("dense",)}, "must include stock"),
        ({"variants": ("stock", "gathered_0")}, "no variant 'gathered_0'"),
        ({"variants": ("stock", "faster")}, "no variant 'faster'"),
        ({"size": "large"}, "no size 'large'"),
        ({"visual_tokens": (100,)}, "multiple of 32, got 100"),
    ],
)
def test_what_cannot_be_measured_is_refused(small_reading, options, message):
    with pytest.raises(ValueError, match=message):
        decode.bench_decode(**{"visual_tokens": (64,), "size": "tiny", "device": "cpu", **options})


def test_what_does_not_fit_is_left_out_and_named(small_reading, monkeypatch):
    cache = 2 * LAYERS * (64 * PER_KEY)  # of 64 tokens
    need = 2.2 * cache + 6 * cache / LAYERS  # both caches, one layer's copies, its keys and values for 4 heads, not 2
    monkeypatch.setattr(decode, "free_memory", lambda device: 4 * need)
    options = {"size": "tiny", "rounds": 1, "device": "cpu", "variants": ("stock", "dense")}
    result = decode.bench_decode((64, 512), (1, 8), **options)
    assert result["left_out"] == [
        {"visual_tokens": 64, "batch": 8},
        *({"visual_tokens": 512, "batch": b} for b in (1, 8)),
    ]
    assert "left out" in decode.format_rows(result)
    monkeypatch.setattr(decode, "free_memory", lambda device: 0)
    with pytest.raises(ValueError, match="nothing fits"):
        decode.bench_decode((64,), (1,), **options)


def test_recording_takes_its_variants_in_turns_and_eager_rarely(monkeypatch):
    ran: list[str] = []
    monkeypatch.setattr(recording, "runner", lambda variant, *given: lambda: ran.append(variant))
    monkeypatch.setattr(recording, "random_vlm", lambda: None)
    monkeypatch.setattr(recording, "decode", lambda *given, **options: None)
    result = recording.bench_recording((64,), rounds=5, memory=False)
    assert ran[0] == "plain", "the first run warms up"
    count = len(recording.VARIANTS) + 1
    first, second = ran[1 : 1 + count], ran[1 + count : 1 + 2 * count]
    assert first == [*recording.VARIANTS, "plain"] and second[-3:] == ["plain", "eager", "plain"]
    assert ran.count("eager") == 3 and ran.count("all_heads") == 5
    assert [row["variant"] for row in result["rows"]] == list(recording.VARIANTS)
    assert result["machine"]["threads"] == torch.get_num_threads()


def test_the_command_of_the_readme_for_a_gpu(small_reading, monkeypatch, tmp_path):
    """The same flags on a tiny model and the CPU; there the flash kernel is asked for by name."""
    lines = (Path(__file__).parents[1] / "docs/commands.md").read_text().split("$ visionpulse bench decode --size ")[1]
    given = ["bench", "decode", "--size", *lines.split("```")[0].replace("\\\n", " ").split()]
    known = {"qwen3-vl-4b": "tiny", "cuda": "cpu", "8192": "64", "16384": "96", "32768": "128"}
    given = [known.get(word, str(tmp_path / word) if "/" in word else word) for word in given]
    more = [word for name in (*VARIANTS, "flash") for word in ("--variant", name)]
    kernels = []
    monkeypatch.setattr(synthetic, "sdpa_kernel", lambda kernel: kernels.append(kernel) or nullcontext())
    done = CliRunner().invoke(app, [*given, "--rounds", "1", *more])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "data/benchmarks/decode_gpu.json").read_text())
    rows = {(row["visual_tokens"], row["variant"]): row for row in result["rows"]}
    assert set(rows) == {(n, v) for n in (64, 96, 128) for v in (*VARIANTS, "flash")}
    assert all(row["batch"] == 8 and "speedup_over_flash" in row for row in rows.values())
    assert kernels and set(kernels) == {SDPBackend.FLASH_ATTENTION}


def test_variants_name_their_pruner():
    assert pruner_of("flash") == (None, "masked")
    assert pruner_of("dense") == (None, "masked")
    pruner, execution = pruner_of("masked_30")
    assert (pruner.budget, execution) == (0.3, "masked")
    assert pruner_of("reuse_5")[0].reuse_previous


def test_batches_decode_the_same_and_are_compared_with_the_first(monkeypatch):
    given, decoded = [], batch.decode
    monkeypatch.setattr(batch, "decode", lambda *a, **b: given.append((a[2], b)) or decoded(*a, **b))
    result = batch.bench_batch((1, 2), cells=(4, 5), samples=2, repeats=2, rounds=1, max_new_tokens=4)
    ways = [(1, False), (2, False), (1, True), (2, True)]
    assert [(row["visual_tokens"], row["batch"], row["recorded"]) for row in result["rows"]] == [
        (tokens, *way) for tokens in (64, 100) for way in ways
    ]
    for questions, options in given:
        assert questions == questions[:2] * (1 if options["batch_size"] == 1 else 2), "the same work, once or repeated"
    for row in result["rows"]:
        assert row["differing_traces"] == 0 and row["samples_per_second"] > 0 and row["mean_steps"] == 4
        assert row["batch"] != 1 or row["speedup_over_first"] == {"min": 1, "median": 1, "max": 1}
        assert sum(row["ms_per_sample"].values()) == pytest.approx(1e3 / row["samples_per_second"])
        assert min(row["ms_per_sample"].values()) > 0 and row["bound"] > 0
    assert "recorded" in batch.format_rows(result)
    for wrong in ({"batches": (0,)}, {"cells": ()}, {"cells": (0,)}, {"rounds": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            batch.bench_batch(**wrong)


def test_traces_that_differ_are_counted_in_every_repeat():
    """Two samples, decoded once one by one and twice together: of the four traces the second is another."""
    ms = {"prefill": 1.0, "steps": 1.0}
    first = batch.Timed(500.0, ms, [["a"], ["b", "c"]])
    other = batch.Timed(250.0, ms, [["a"], ["x"], ["a"], ["b", "c"]])
    row = batch._row([first], [other], 2)
    assert row["differing_traces"] == 1 and row["speedup_over_first"]["median"] == 0.5 and row["mean_steps"] == 1.25


def test_the_bound_of_a_batch_is_what_its_steps_could_give():
    """Steps of one row: 30 of 40 ms. Four rows in steps as long as those leave 10 + 30 / 4 ms a sample."""
    alone, together = {"prefill": 10.0, "steps": 30.0}, {"prefill": 10.0, "steps": 20.0}
    assert batch._bound(alone, together, 4) == pytest.approx(40 / 17.5)
    assert batch._bound(alone, alone, 1) == 1


def test_a_shared_prefill_gives_the_same_traces_and_is_compared_with_one_each(vlm):
    result = batch.bench_sharing(
        [2], pruners=["random(budget=0.5)"], samples=2, cells=4, rounds=1, vlm=vlm, report=lambda line: None
    )
    [row] = result["rows"]
    assert row["equal"] and (row["steps"], row["arms"], row["patches"]) == (2, 2, 64)
    assert row["saved"] == 1 - row["together"] / row["alone"] and row["together"] > 0
    assert batch.format_sharing({"rows": [row | {"equal": False}]}).split()[-1] == "False"


def test_the_selection_is_what_choosing_takes_beside_the_logits(monkeypatch):
    """A step of 10 s, of which deciding takes 3 and, inside it, the logits 1: a fifth is selection."""
    clock = [0.0]
    monkeypatch.setattr(decode.time, "perf_counter", lambda: clock[0])

    def passing(seconds, then=lambda *given: None):
        def call(*given):
            clock[0] += seconds
            return then(*given)

        return call

    monkeypatch.setattr(decode.View, "logits", passing(1))
    monkeypatch.setattr(decode.Group, "decide", passing(2, lambda *given: decode.View.logits(None)))
    step = Way(passing(7, lambda *given: decode.Group.decide(None, None)), nullcontext)
    assert decode._selection_share(step, 3, "cpu") == pytest.approx(0.2)


def test_the_command_prints_json_and_keeps_it(small_reading, tmp_path):
    kept = tmp_path / "deep" / "decode.json"
    given = ["bench", "decode", "--visual-tokens", "64", "--batch", "1", "--size", "tiny", "--rounds", "1"]
    given += ["--device", "cpu", "--variant", "stock", "--variant", "gathered_25", "--save", str(kept), "--json"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == (result := json.loads(kept.read_text()))
    assert result["command"] == (
        "visionpulse bench decode --visual-tokens 64 --batch 1 --size tiny --rounds 1 --device cpu "
        "--variant stock --variant gathered_25"
    )
    assert [path.name for path in kept.parent.iterdir()] == ["decode.json"]
