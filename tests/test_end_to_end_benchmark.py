"""The benchmark of whole answers takes the steps that it says, and never says how fast this machine is."""

import json

import pytest
import torch
from typer.testing import CliRunner

from visionpulse_analysis.cli import app
from visionpulse_analysis.experiments.bench.end_to_end import Lengths, answer, bench_end_to_end, format_rows
from visionpulse_analysis.experiments.bench.synthetic import random_language_model
from visionpulse_analysis.pruners import VisionPulse, make_pruner

TINY = {"size": "tiny", "rounds": 2, "steps": 3, "text_tokens": 8, "block_size": 16, "prefill_chunk": 30}
LENGTHS = Lengths(visual=64, text=8, steps=3, chunk=30)


@pytest.fixture(scope="module")
def vlm():
    return random_language_model("tiny", "cpu", torch.float32)


def test_all_ways_read_the_same_tokens(vlm):
    """The library's steps, ours, ours with every patch kept, and prefill in one piece: one result."""
    stock = answer(vlm, LENGTHS, 2, True, None, "masked").logits
    whole = VisionPulse(budget=1.0)
    others = [
        answer(vlm, LENGTHS, 2, False, None, "masked"),
        answer(vlm, LENGTHS, 2, False, whole, "gathered"),
        answer(vlm, Lengths(64, 8, 3, 72), 2, True, None, "masked"),
    ]
    scale = stock.abs().max()
    for other in others:
        assert (other.logits - stock).abs().max() < 1e-5 * scale and other.kept == 1
    longer = answer(vlm, Lengths(64, 8, 4, 30), 2, True, None, "masked").logits
    assert (longer - stock).abs().max() > 1e-4 * scale  # one step more is another result


def test_blocks_are_those_of_the_authors(vlm):
    """4 blocks of 16 patches; ceil(5 % of 64 / 16) = 1 of them is kept at most, and one at least."""
    block = make_pruner("visionpulse:block", block_size=16)
    pruned = answer(vlm, LENGTHS, 2, False, block, "gathered")
    assert pruned.kept == 0.25
    assert (pruned.logits - answer(vlm, LENGTHS, 2, False, block, "masked").logits).abs().max() < 1e-5


def test_rows_and_table():
    result = bench_end_to_end((64,), (1,), device="cpu", **TINY)
    rows = {row["variant"]: row for row in result["rows"]}
    assert list(rows) == ["stock", "dense", "block"] and rows["block"]["kept"] == 0.25
    assert rows["dense"]["speedup_over_dense"] == {"min": 1.0, "median": 1.0, "max": 1.0}
    for row in rows.values():
        assert row["total_s"] == pytest.approx(row["prefill_s"] + row["decode_s"])  # medians of two rounds are means
        ends = row["speedup_over_dense"]
        assert 0 < ends["min"] <= ends["median"] <= ends["max"]
    table = format_rows(result)
    assert "8 tokens of text, 3 steps, blocks of 16" in table and len(table.splitlines()) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ("stock",)}, "variants must include dense"),
        ({"variants": ("dense", "flash")}, "neither eager nor flash"),
        ({"visual_tokens": (40,)}, "multiple of 32, got 40"),
        ({"steps": 0}, "steps must be"),
        ({"prefill_chunk": -1}, "prefill_chunk must be"),
        ({"size": "huge"}, "no size 'huge'"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        bench_end_to_end(**{"visual_tokens": (64,), "batches": (1,), "device": "cpu", **TINY, **options})


def test_the_command():
    words = ["--visual-tokens", "64", "--batch", "1", "--size", "tiny", "--rounds", "1", "--steps", "2"]
    words += ["--text-tokens", "8", "--block-size", "16", "--device", "cpu", "--variant", "dense", "--json"]
    done = CliRunner().invoke(app, ["bench", "end-to-end", *words])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["steps"], result["text_tokens"], [row["variant"] for row in result["rows"]]) == (2, 8, ["dense"])
