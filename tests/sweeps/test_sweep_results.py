"""Reading a sweep: the table's types, and many traces as one lazy array."""

import subprocess
import sys
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from fake_batches import made_trace

from visionpulse_analysis.experiments.sweeps.results import Sweep
from visionpulse_analysis.experiments.sweeps.tables import COLUMNS, SweepFolder, row_of, write_table
from visionpulse_analysis.traces.store import TraceStore

LENGTHS = [3, 1, 4, 2, 2]
ANSWERS = ["3", "NA", "", "a\rb", 'a, "b"\nc']


@pytest.fixture
def folder(tmp_path):
    """A finished sweep of five short traces, and one that failed."""
    made = SweepFolder(tmp_path / "sweep")
    rows = []
    for number, steps in enumerate(LENGTHS):
        trace = made_trace(f"t{number}", number, steps)
        made.store.add(trace)
        names = {"model": "m", "sample": f"00{number // 2}", "pruner": "p" if number % 2 else "dense", "seed": 0}
        told = {"status": "done", "answer": ANSWERS[number], "right": [True, None, False][number % 3]}
        rows.append({**dict.fromkeys(COLUMNS), **names, **row_of(trace), **told, "id": f"t{number}"})
    rows.append({**dict.fromkeys(COLUMNS), **names, "id": "t9", "status": "failed", "error": "NaN"})
    write_table(made.path, "csv", rows)
    return made.path


def test_text_stays_text_and_unknown_stays_unknown(folder):
    table: Any = Sweep(folder).table
    assert table["answer"].tolist() == [*ANSWERS, pd.NA]
    assert table["sample"].tolist() == ["000", "000", "001", "001", "002", "002"]
    assert table["right"].tolist() == [True, pd.NA, False, True, pd.NA, pd.NA]
    assert table["tokens"].tolist()[:5] == LENGTHS and table["tokens"].dtype == "Int64"
    assert table["error"].tolist() == [pd.NA] * 5 + ["NaN"]
    assert table["task"].isna().all() and table["expected"].isna().all()
    assert Sweep(folder).finished["id"].tolist() == [f"t{n}" for n in range(5)]
    stored = [row_of(TraceStore(folder / "traces")[f"t{n}"]) for n in range(5)]
    for name in ("kept", "mass", "logprob", "weights", "patches", "finished"):
        assert table[name].tolist()[:5] == [row[name] for row in stored], name


def test_parquet_holds_the_same(folder):
    before: Any = Sweep(folder).table
    write_table(folder, "parquet", before.astype(object).where(before.notna(), None).to_dict("records"))
    (folder / "table.csv").unlink()
    pd.testing.assert_frame_equal(Sweep(folder).table, before)


@pytest.mark.parametrize("block", [1, 2, 64])
def test_stacked_arrays_are_those_of_the_traces(folder, block):
    sweep = Sweep(folder)
    for variable, inner in {"mass": 1, "attention": 2, "kept": 1, "logprob": 0, "budget": 0}.items():
        stacked = sweep.stacked(variable, block=block)
        assert isinstance(stacked.data, da.Array) and stacked.shape[:2] == (5, 4) and stacked.ndim == 2 + inner
        values = stacked.values
        for number, steps in enumerate(LENGTHS):
            trace = sweep.store[f"t{number}"]
            wanted = {"kept": np.ones((steps, 4)), "budget": np.full(steps, np.nan)}.get(variable)
            wanted = trace.dataset[variable].values.astype(np.float32) if wanted is None else wanted
            np.testing.assert_array_equal(values[number, :steps], wanted)
            assert np.isnan(values[number, steps:]).all()
    means = sweep.stacked("mass", block=block).mean("step").groupby("pruner").mean().compute()
    wanted = [row_of(sweep.store[f"t{n}"])["mass"] for n in range(5)]
    assert means.sel(pruner="dense").item() == pytest.approx(np.mean(wanted[::2]), rel=1e-6)
    assert means.sel(pruner="p").item() == pytest.approx(np.mean(wanted[1::2]), rel=1e-6)


def test_only_what_is_computed_is_read(folder, monkeypatch):
    read, get = [], TraceStore.__getitem__
    monkeypatch.setattr(TraceStore, "__getitem__", lambda store, id: read.append(id) or get(store, id))
    stacked = Sweep(folder).stacked("attention", block=2)
    assert read == ["t0"], "one trace, for its layers and patches"
    read.clear()
    stacked[2].compute()
    assert set(read) == {"t2", "t3"}


def test_what_cannot_be_stacked_is_refused(folder):
    sweep = Sweep(folder)
    for wrong in ({"variable": "tokens"}, {"block": 0}, {"rows": sweep.finished[:0]}):
        with pytest.raises(ValueError, match="expected rows, a variable of mass"):
            sweep.stacked(**wrong)
    rows = sweep.finished.assign(patches=[4, 4, 9, 4, 4])
    with pytest.raises(ValueError, match=r"kept has \[4, 9\] patches; choose rows of one size"):
        sweep.stacked("kept", rows)
    assert sweep.stacked("mass", rows).shape == (5, 4, 1)


def test_no_sweep(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"no sweep at .*; `visionpulse sweep` makes one"):
        Sweep(tmp_path)
    (folder / "table.csv").unlink()
    with pytest.raises(FileNotFoundError, match="a running sweep writes it every minute; after a kill, run it again"):
        _ = Sweep(folder).table


def test_a_sweep_is_read_without_torch(folder):
    code = (
        "import sys; sys.modules['torch'] = None; from visionpulse_analysis.experiments.sweeps.results import Sweep; "
    )
    code += f"print(Sweep({str(folder)!r}).stacked().mean().compute().item())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(Sweep(folder).stacked().mean().compute().item())
