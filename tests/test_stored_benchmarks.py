"""The benchmark results that the project ships are whole, say where they come from, and agree with themselves."""

from __future__ import annotations

import json
from datetime import date

import pytest

from visionpulse_analysis._util.files import data_folder
from visionpulse_analysis.experiments.bench.decode import VISUAL_TOKENS
from visionpulse_analysis.experiments.bench.machine import VARIANTS
from visionpulse_analysis.figures import read_provenance
from visionpulse_analysis.studies.efficiency.measure import read_measurements
from visionpulse_analysis.studies.shared.readme_table import KEPT

MACHINE = {"device", "processor", "cores", "threads", "memory_gb", "versions", "date"}
COMMANDS = {  # file: the benchmark it is of
    "decode": "decode",
    "retention": "decode",
    "recording": "recording",
    "batch": "batch",
    "store": "store",
    "sweep": "sweep",
    "endurance": "endurance",
}
if (data_folder() / "benchmarks" / "decode_gpu.json").exists():  # the README says how to make it
    COMMANDS["decode_gpu"] = "decode"


def stored(name):
    return json.loads((data_folder() / "benchmarks" / f"{name}.json").read_text())


def ordered(spread):
    return 0 < spread["min"] <= spread["median"] <= spread["max"]


@pytest.mark.parametrize(("name", "command"), COMMANDS.items())
def test_every_result_says_where_it_comes_from(name, command):
    result = stored(name)
    assert result["command"].startswith((f"visionpulse bench {command}", "visionpulse figures 07"))
    assert set(result["machine"]) == MACHINE
    assert {"python", "torch", "transformers", "visionpulse_analysis"} <= set(result["machine"]["versions"])
    assert date.fromisoformat(result["machine"]["date"]) <= date.today()


def test_there_are_no_other_results():
    assert {path.stem for path in (data_folder() / "benchmarks").glob("*.json")} == set(COMMANDS)


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command == "decode"])
def test_steps(name):
    rows = stored(name)["rows"]
    for row in rows:
        assert ordered(row["speedup_over_stock"])
        assert row["time_over_limit"] == pytest.approx(row["step_ms"] / row["limit_ms"])
        assert row["limit_ms"] == pytest.approx(row["bytes"] / row["bandwidth_gb_s"] / 1e6)
    measured = {(row["visual_tokens"], row["batch"], row["variant"]) for row in rows}
    assert len(measured) == len(rows)
    if name == "decode":
        left_out = {(part["visual_tokens"], part["batch"]) for part in stored(name)["left_out"]}
        wanted = {(tokens, batch) for tokens in VISUAL_TOKENS for batch in (1, 8)} - left_out
        assert measured == {(*where, variant) for where in wanted for variant in VARIANTS}


def test_recording():
    rows = stored("recording")["rows"]
    assert all(ordered(row["ratio_to_plain"]) and row["peak_memory_mb"] > 0 for row in rows)
    assert {row["visual_tokens"] for row in rows} == {1024, 4096}
    assert {row["variant"] for row in rows} >= {"plain", "one_layer", "all_layers", "all_heads", "eager"}


def test_batches_decoded_the_same_traces():
    rows = stored("batch")["rows"]
    assert {(row["visual_tokens"], row["batch"], row["recorded"]) for row in rows} == {
        (n, b, r) for n in (64, 256) for b in (1, 8, 32) for r in (False, True)
    }
    assert all(row["differing_traces"] == 0 and ordered(row["speedup_over_first"]) for row in rows)


def test_store_and_sweep():
    store, sweep = stored("store"), stored("sweep")
    assert store["traces"] == 100_000 and all(ordered(store[name]) for name in ("open_ms", "random_step_ms"))
    assert sweep["samples"] == 2000 and len(sweep["memory_mb"]) == 5


def test_the_readme_and_notebook_07_speak_of_these_results():
    """`test_readme.py` compares the README with the numbers inside the figure; here the figure with the results."""
    drawn, found = read_provenance(KEPT / "07_efficiency.png"), read_measurements()
    assert drawn["data_hash"] == found.hash
    assert drawn["numbers"] == json.loads(json.dumps(found.numbers()))


def test_what_was_to_be_reached_is_reached_or_its_bound_is_stated():
    found = read_measurements()
    numbers = found.numbers()
    speed, many = numbers["speedup_over_stock"], numbers["many_rows"]
    assert numbers["visual_tokens"] == 32768 and numbers["machine"]["threads"] == 2
    assert speed["gathered_5"] >= 5 and speed["reuse_5"] >= 8 and numbers["time_over_limit"]["dense"] <= 1.5
    # 1.6 times the dense step: with 8 rows; one row alone stays below, and the README says of how much.
    assert many["speedup_over_dense"]["gathered_5"] >= 1.6
    assert numbers["bound_over_dense"]["gathered_5"] > numbers["speedup_over_dense"]["gathered_5"] > 1
    # 8 times as many samples a second: with 64 visual tokens; with 256 work per sample leaves less.
    small, large = numbers["together"]["64"], numbers["together"]["256"]
    assert numbers["largest_batch"] == 32 and small["speedup"] >= 8 and large["bound"] > large["speedup"] > 1
    steps = found.rows("decode")
    choosing = steps.query("visual_tokens == 8192").groupby("batch").selection_share.max()
    assert (choosing < 0.05).all()


def test_the_store_stays_fast_and_the_memory_of_a_worker_flat():
    store, sweep = stored("store"), stored("sweep")
    assert store["open_ms"]["max"] <= 1000 and store["random_step_ms"]["median"] <= 10
    memory = list(sweep["memory_mb"].values())
    assert max(memory) <= 1.02 * memory[0]


def test_ten_thousand_decodes_left_nothing_behind():
    result = stored("endurance")
    assert result["decodes"] == 10_000 == result["moments"][-1]["decodes"] and len(result["moments"]) == 6
    grown = dict(result["grown"])
    assert grown.pop("objects") < 100 and grown.pop("blocks") < 1000  # of 10,000, had each decode left one
    assert grown.pop("bytes") < 1000 * result["decodes"] and grown.pop("resident_mb") < 20  # 1 KB each would be more
    assert grown.pop("threads") <= 4  # of the pool that stores write with
    assert not any(grown.values())
    assert result["steady"]["bytes"] < 100 and result["steady"]["blocks"] < 0.01
