"""Notebook 07: what it reads, says and draws is what the benchmarks measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

from visionpulse_analysis.experiments.bench.decode import READ
from visionpulse_analysis.experiments.bench.machine import VARIANTS
from visionpulse_analysis.studies.efficiency import figures as efficiency_figures
from visionpulse_analysis.studies.efficiency import measure as efficiency
from visionpulse_analysis.studies.efficiency.measure import PARTS, SHARES, read_measurements
from visionpulse_analysis.studies.efficiency.report import sentences

TIMES = {"stock": 90, "eager": 180, "dense": 30, "masked_5": 31, "gathered_5": 20, "gathered_10": 22, "reuse_5": 10}
TIMES |= {f"gathered_{share}": 15 + share / 10 for share in (1, 2, 25, 50)}


def step(tokens, batch, variant):
    ms, speed = TIMES[variant] * tokens / 1024 * batch, TIMES["stock"] / TIMES[variant]
    beside = TIMES["dense"] / TIMES[variant]
    kept = 1.0 if variant in ("stock", "eager", "dense") else int(variant.rpartition("_")[2]) / 100
    return {
        "visual_tokens": tokens, "batch": batch, "variant": variant, "step_ms": ms, "kept": kept, "bytes": 1e7 * ms,
        "speedup_over_stock": {"min": speed / 2, "median": speed, "max": speed * 2},
        "speedup_over_dense": {"min": 0.9 * beside, "median": beside, "max": 1.2 * beside},
        "bound_over_dense": 1.2 * TIMES["dense"] / TIMES[variant],
        "bandwidth_gb_s": 20.0, "limit_ms": ms / 2, "time_over_limit": 2.0,
        **({} if variant in ("stock", "eager", "dense") else {"selection_share": 0.025}),
    }  # fmt: skip


def steps(tokens, batches, variants):
    machine = {"date": "2026-01-02", "processor": "a processor", "threads": 2, "device": "cpu"}
    rows = [step(n, b, v) for n in tokens for b in batches for v in variants]
    return {"rows": rows, "bandwidth_gb_s": 20.0, "machine": machine}


def recorded(tokens, variant, ratio):
    spread = {"min": ratio, "median": ratio, "max": ratio}
    return {"visual_tokens": tokens, "variant": variant, "ratio_to_plain": spread, "peak_memory_mb": 1000.0 * ratio}


def batched(tokens, batch, record):
    speed = {"min": 1, "median": batch / (2 if record else 1), "max": batch}
    parts = {"prompt": 1.0, "prefill": 6.0, "steps": 64.0 / batch, "trace": 2.0, "rest": 0.5}
    rest = {"samples_per_second": 5.0 * batch, "speedup_over_first": speed, "bound": 40.0, "ms_per_sample": parts}
    return {"visual_tokens": tokens, "batch": batch, "recorded": record, **rest}


RATIOS = {"plain": 1.0, "one_layer": 1.01, "all_layers": 1.05, "all_heads": 1.25, "eager": 6.0}
RESULTS = {
    "decode": steps((1024, 32768), (1, 8), VARIANTS),
    "retention": steps((32768,), (1,), ("stock", "dense", *SHARES)),
    "recording": {"rows": [recorded(n, v, r) for n in (64, 256) for v, r in RATIOS.items()]},
    "batch": {"rows": [batched(n, b, r) for n in (256, 64) for r in (False, True) for b in (1, 32)]},
}


def test_the_bytes_at_the_papers_shapes():
    table = efficiency.paper_bounds()
    assert list(table.index) == [8192, 16384, 32768] and list(table) == ["gathered_10", "gathered_5", "reuse_5"]
    # 36 layers, 17 below the anchor; 8 key heads of 128; all in units of one key or value of all 8 rows.
    tokens, columns, kept = 8192, 8192 + 49, 409
    layer = 2560 * (4096 + 2 * 1024 + 4096) + 3 * 2560 * 9728 + 2 * 2560 + 2 * 128
    weights = (36 * layer + 151_936 * 2560) / (8 * 8 * 128)
    pruned = columns - tokens + kept
    gathered = 17 * 2 * columns + columns + pruned + 18 * 2 * pruned
    assert table.loc[tokens, "gathered_5"] == pytest.approx((weights + 72 * columns) / (weights + gathered), rel=1e-9)


@pytest.fixture
def folder(tmp_path):
    for part, result in RESULTS.items():
        (tmp_path / f"{part}.json").write_text(json.dumps(result))
    return tmp_path


def test_the_headline_is_that_of_the_longest_context_one_row_at_a_time(folder):
    found = read_measurements(folder)
    numbers = found.numbers()
    assert numbers["visual_tokens"] == 32768 and numbers["step_ms"]["dense"] == 30 * 32
    assert numbers["speedup_over_stock"]["reuse_5"] == 9
    assert numbers["largest_batch"] == 32 and list(numbers["together"]) == ["64", "256"]
    assert all((part["speedup"], part["recorded"]) == (32, 16) for part in numbers["together"].values())
    assert numbers["recording"]["all_layers, 256"] == 1.05
    assert numbers["many_rows"]["batch"] == 8 and numbers["many_rows"]["step_ms"]["dense"] == 30 * 32 * 8
    said = sentences(found)
    for expected in (
        "32,768 visual tokens",
        "3.0 [1.5 to 6.0] times as fast",
        "4.5 [2.2 to 9.0] times the library, 1.50 [1.35 to 1.80] times our own dense",
        "at most 1.80",
        "Choosing takes 2.5% of the gathered step",
        "Of the 11.5 ms of a sample (not recorded) 6.0 are prefill and 3.5 prompt, trace and the rest",
        "it would be 40.0.",
        "9.0 [4.5 to 18.0] and 3.00 [2.70 to 3.60] times",
        "8 rows together: dense 3.0 [1.5 to 6.0]",
        "1.05 (64 tokens), 1.05 (256 tokens)",
        "32 rows together decode 32.0 times (16.0 recorded) as many samples of 64 visual tokens",
        "samples of 256 visual tokens a second",
        "20.0 GB/s",
    ):
        assert expected in said


@pytest.mark.parametrize(
    "slow, mixed, said",
    [
        ((), (), "gathering is faster than reading everything at 1%, 2%, 5%, 10%, 25%, 50%."),
        (("gathered_50",), (), "everything at 1%, 2%, 5%, 10%, 25%; slower at 50%."),
        ((), ("gathered_5", "gathered_50"), "25%; sometimes faster and sometimes slower at 5%, 50%."),
        (SHARES, (), "gathering is slower at 1%, 2%, 5%, 10%, 25%, 50%."),
    ],
)
def test_at_which_shares_gathering_pays(folder, slow, mixed, said):
    """By every round, not by the median alone."""
    found = read_measurements(folder)
    for row in found.retention["rows"]:
        least, most = (0.5, 0.9) if row["variant"] in slow else (0.9, 2.0) if row["variant"] in mixed else (1.1, 2.0)
        row["speedup_over_dense"] = {"min": least, "median": 1.5, "max": most}
        share = row["variant"].removeprefix("gathered_")
        row["kept"] = int(share) / 100 if share.isdecimal() else 1.0
    assert said in sentences(found)


def test_another_measurement_has_another_hash(folder):
    before = read_measurements(folder).hash
    changed = {**RESULTS["batch"], "rows": RESULTS["batch"]["rows"][:1]}
    (folder / "batch.json").write_text(json.dumps(changed))
    assert read_measurements(folder).hash != before


def test_a_missing_result_is_named(folder):
    (folder / "recording.json").unlink()
    with pytest.raises(FileNotFoundError, match="recording"):
        read_measurements(folder)


def test_the_page_shows_every_part(folder):
    found = read_measurements(folder)
    context, retention, roofline, time, memory, batches = efficiency_figures.efficiency_page(found).axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in context.lines}
    assert lines["dense"] == [30, 30 * 32] and lines["limit, dense"] == [15, 15 * 32]
    kept, ms = next(line.get_data() for line in retention.lines if line.get_label() == "gathered")
    assert kept.tolist() == sorted(kept) and len(ms) == len(SHARES) + 1
    colours = [{line.get_label(): line.get_color() for line in ax.lines} for ax in (context, roofline)]
    assert all(colours[0][name] == colour for name, colour in colours[1].items() if name in colours[0])
    limit = next(line for line in roofline.lines if "GB/s" in str(line.get_label()))
    read, taken = (np.asarray(values) for values in limit.get_data())
    assert (taken / read).tolist() == pytest.approx([1e3 / 20] * 2)
    assert [bar.get_height() for bar in time.patches[:5]] == list(RATIOS.values())
    assert [bar.get_height() for bar in memory.patches[:5]] == pytest.approx(list(RATIOS.values()))
    shown = [(line.get_label(), line.get_color(), line.get_linestyle()) for line in batches.lines]
    names = ["64 visual tokens", "recorded", "256 visual tokens", "recorded"]
    assert [name for name, *_ in shown] == names and [style for *_, style in shown] == ["-", "--"] * 2
    assert [colour for _, colour, _ in shown] == ["C0", "C0", "C1", "C1"]


def test_without_memory_its_panel_is_left_out(folder):
    found = read_measurements(folder)
    for row in found.recording["rows"]:
        row["peak_memory_mb"] = None
    assert [ax.get_visible() for ax in efficiency_figures.efficiency_page(found).axes] == [True] * 4 + [False, True]


def test_measuring_again_keeps_each_result_at_once(tmp_path, monkeypatch):
    asked = {}

    def bench(part):
        def run(*given, **options):
            asked.setdefault(part, []).append((given, options))
            return RESULTS[part]

        return run

    for part in ("decode", "recording", "batch"):
        monkeypatch.setattr(efficiency, f"bench_{part}", bench(part))
    found = efficiency.measure_all(tmp_path, size="tiny", visual_tokens=(64, 128), batches=(1,), rounds=4)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(PARTS)
    assert all(getattr(found, part)["command"].startswith("visionpulse figures 07") for part in PARTS)
    assert read_measurements(tmp_path).hash == found.hash
    (all_steps, _), (longest, options) = asked["decode"]
    assert all_steps == ((64, 128), (1,)) and longest == ((128,), (1,))
    assert options["variants"] == ("stock", "dense", *SHARES) and options["rounds"] == 4


def test_a_bandwidth_is_measured_on_more_than_a_cache_holds():
    assert READ >= 1 << 30


def test_new_results_need_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="expected a folder for the new results"):
        efficiency.measure_all("", size="tiny", visual_tokens=(64,), batches=(1,), recorded_tokens=(64,), rounds=1)
    assert not any(tmp_path.iterdir())
