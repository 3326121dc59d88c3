"""What decoding costs: stored measurements, or new ones on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from visionpulse_analysis.experiments.bench.batch import bench_batch
from visionpulse_analysis.experiments.bench.bytes import bounds
from visionpulse_analysis.experiments.bench.decode import bench_decode
from visionpulse_analysis.experiments.bench.machine import write_result
from visionpulse_analysis.experiments.bench.recording import bench_recording
from visionpulse_analysis.models.loading import data_folder

PARTS = ("decode", "retention", "recording", "batch")
SHARES = ("gathered_1", "gathered_2", "gathered_5", "gathered_10", "gathered_25", "gathered_50")


@dataclass
class Measurements:
    """One result of each benchmark, as ``visionpulse bench --json`` gives it; ``retention`` is of `bench_decode`."""

    decode: dict[str, Any]
    retention: dict[str, Any]
    recording: dict[str, Any]
    batch: dict[str, Any]

    def rows(self, part: str) -> pd.DataFrame:
        """The rows of one part as a table; nested values become columns such as ``speedup_over_stock.median``."""
        return pd.json_normalize(getattr(self, part)["rows"])

    @property
    def hash(self) -> str:
        """sha256 (hex) over all of it."""
        content = json.dumps([getattr(self, part) for part in PARTS], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def numbers(self) -> dict[str, Any]:
        """Headline numbers, JSON-ready: at the longest context, one row at a time and with the most rows measured."""
        steps = self.rows("decode")
        alone = steps.query("batch == 1")
        longest = alone.query(f"visual_tokens == {alone.visual_tokens.max()}").set_index("variant")
        most = steps.query(f"visual_tokens == {steps.visual_tokens.max()}")
        most = most.query(f"batch == {most.batch.max()}").set_index("variant")
        recording, largest = self.rows("recording"), max(row["batch"] for row in self.batch["rows"])
        together = [row for row in self.batch["rows"] if row["batch"] == largest]
        return {
            "visual_tokens": int(longest.visual_tokens.iloc[0]),
            **_of(longest),
            "many_rows": {
                "batch": int(most.batch.iloc[0]),
                **_of(most),
            },
            "bandwidth_gb_s": self.decode["bandwidth_gb_s"],
            "recording": {
                f"{row.variant}, {row.visual_tokens}": row["ratio_to_plain.median"] for _, row in recording.iterrows()
            },
            "largest_batch": largest,
            "together": {  # by visual tokens
                str(plain["visual_tokens"]): {
                    "speedup": plain["speedup_over_first"]["median"],
                    "recorded": recorded["speedup_over_first"]["median"],
                    "bound": plain["bound"],
                    "ms": plain["ms_per_sample"],
                }
                for plain, recorded in _pairs(together)
            },
            "machine": self.decode["machine"],
        }


def _pairs(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """For each number of visual tokens, in order, the row that was not recorded and the one that was."""
    ordered = sorted(rows, key=lambda row: (row["visual_tokens"], row["recorded"]))
    return list(zip(ordered[::2], ordered[1::2], strict=True))


def _of(steps: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Numbers of the variants of one context and batch size."""
    names = {"speedup_over_stock": "speedup_over_stock.median", "speedup_over_dense": "speedup_over_dense.median"}
    names |= {"least_over_dense": "speedup_over_dense.min", "most_over_dense": "speedup_over_dense.max"}
    names |= {"least_over_stock": "speedup_over_stock.min", "most_over_stock": "speedup_over_stock.max"}
    names |= {name: name for name in ("bound_over_dense", "time_over_limit", "step_ms", "selection_share")}
    return {name: steps[column].dropna().to_dict() for name, column in names.items()}


def read_measurements(folder: str | Path = "") -> Measurements:
    """Read what ``visionpulse bench ... --save`` kept; an empty name reads what the project ships.

    Raises FileNotFoundError that names the missing result and how to make it.
    """
    source = Path(folder) if folder else data_folder() / "benchmarks"
    found = {}
    for part in PARTS:
        path = source / f"{part}.json"
        if not path.exists():
            raise FileNotFoundError(f"no result {path}; make them with measure_all(), or the notebook's rerun=True")
        found[part] = json.loads(path.read_text("utf-8"))
    return Measurements(**found)


def measure_all(
    folder: str | Path,
    *,
    size: str = "small",
    visual_tokens: tuple[int, ...] = (1024, 8192, 16384, 32768),
    batches: tuple[int, ...] = (1, 8),
    recorded_tokens: tuple[int, ...] = (1024, 4096),
    samples: int = 24,
    rounds: int = 12,
    memory: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> Measurements:
    """Measure everything on this machine and keep it in a folder.

    Takes about a quarter of an hour on two cores. Nothing else should run meanwhile. Raises ValueError without a
    folder: the results that the project ships stay as they are.
    """
    if not str(folder):
        raise ValueError(
            "expected a folder for the new results, got an empty name; name one (in the notebook: results='...'), "
            f"also {data_folder() / 'benchmarks'} if they shall replace those of the project"
        )
    target = Path(folder)
    results = {
        "decode": lambda: bench_decode(visual_tokens, batches, size=size, rounds=rounds, report=report),
        "retention": lambda: bench_decode(
            visual_tokens[-1:], (1,), size=size, rounds=rounds, variants=("stock", "dense", *SHARES), report=report
        ),
        "recording": lambda: bench_recording(recorded_tokens, rounds=max(1, rounds // 2), memory=memory),
        "batch": lambda: bench_batch(samples=samples, rounds=max(1, rounds // 4), report=report),
    }
    made = {}
    for part, run in results.items():
        report(part)
        made[part] = {
            "command": f"visionpulse figures 07 -p rerun=True -p results={folder} -p size={size} -p rounds={rounds}",
            **run(),
        }
        write_result(made[part], target / f"{part}.json")
    return Measurements(**made)


def paper_bounds() -> pd.DataFrame:
    """How many times as fast as a dense step the bytes allow at the shapes of arXiv 2605.31457: 8 rows, Qwen3-VL-4B.

    A table [visual tokens, variant], computed from the configuration alone; the whole budget is kept.
    """
    found = pd.DataFrame(bounds("qwen3-vl-4b", (8192, 16384, 32768), 8))
    return found.pivot(index="visual_tokens", columns="variant", values="bound_over_dense")
