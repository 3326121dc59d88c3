"""What decoding costs: stored measurements, or new ones on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from visionpulse_analysis._util.files import data_folder
from visionpulse_analysis.experiments.bench.batch import bench_batch
from visionpulse_analysis.experiments.bench.decode import bench_decode
from visionpulse_analysis.experiments.bench.machine import write_result
from visionpulse_analysis.experiments.bench.recording import bench_recording
from visionpulse_analysis.experiments.bench.synthetic import bounds

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
        steps, recording = self.rows("decode"), self.rows("recording")
        alone = steps.query("batch == 1").query("visual_tokens == visual_tokens.max()")
        most = steps.query("visual_tokens == visual_tokens.max()").query("batch == batch.max()")
        largest = max(row["batch"] for row in self.batch["rows"])
        together: dict[str, dict[str, Any]] = {}  # by visual tokens
        for row in sorted(self.batch["rows"], key=lambda row: (row["visual_tokens"], row["recorded"])):
            if row["batch"] == largest:
                speedup, of_size = (
                    row["speedup_over_first"]["median"],
                    together.setdefault(str(row["visual_tokens"]), {}),
                )
                plain = {"speedup": speedup, "bound": row["bound"], "ms": row["ms_per_sample"]}
                of_size |= {"recorded": speedup} if row["recorded"] else plain
        return {
            "visual_tokens": int(alone.visual_tokens.iloc[0]),
            **_by_variant(alone),
            "many_rows": {"batch": int(most.batch.iloc[0]), **_by_variant(most)},
            "bandwidth_gb_s": self.decode["bandwidth_gb_s"],
            "recording": {
                f"{row.variant}, {row.visual_tokens}": row["ratio_to_plain.median"] for _, row in recording.iterrows()
            },
            "largest_batch": largest,
            "together": together,
            "machine": self.decode["machine"],
        }


def _by_variant(steps: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Numbers of the variants of one context and batch size: number -> variant -> value."""
    # Medians say how fast; least and most of the rounds, whether that holds.
    names = {name: name for name in ("bound_over_dense", "time_over_limit", "step_ms", "selection_share")}
    for over in ("stock", "dense"):
        for word, statistic in (("speedup", "median"), ("least", "min"), ("most", "max")):
            names[f"{word}_over_{over}"] = f"speedup_over_{over}.{statistic}"
    steps = steps.set_index("variant")
    return {name: steps[column].dropna().to_dict() for name, column in names.items()}


def read_measurements(folder: str | Path = "") -> Measurements:
    """Read what ``visionpulse bench ... --save`` kept; an empty name reads what the project ships.

    Raises FileNotFoundError that names the missing result and how to make it.
    """
    source, found = Path(folder) if folder else data_folder() / "benchmarks", {}
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
    shares = ("stock", "dense", *SHARES)
    runs = {
        "decode": lambda: bench_decode(visual_tokens, batches, size=size, rounds=rounds, report=report),
        "retention": lambda: bench_decode(
            visual_tokens[-1:], (1,), size=size, rounds=rounds, variants=shares, report=report
        ),
        "recording": lambda: bench_recording(recorded_tokens, rounds=max(1, rounds // 2), memory=memory),
        "batch": lambda: bench_batch(samples=samples, rounds=max(1, rounds // 4), report=report),
    }
    command = f"visionpulse figures 07 -p rerun=True -p results={folder} -p size={size} -p rounds={rounds}"
    made = {}
    for part, run in runs.items():
        report(part)
        made[part] = {"command": command, **run()}
        write_result(made[part], Path(folder) / f"{part}.json")  # each at once: a later part may be interrupted
    return Measurements(**made)


def paper_bounds() -> pd.DataFrame:
    """How many times as fast as a dense step the bytes allow at the shapes of arXiv 2605.31457: 8 rows, Qwen3-VL-4B.

    A table [visual tokens, variant], computed from the configuration alone; the whole budget is kept.
    """
    found = pd.DataFrame(bounds("qwen3-vl-4b", (8192, 16384, 32768), 8))
    return found.pivot(index="visual_tokens", columns="variant", values="bound_over_dense")
