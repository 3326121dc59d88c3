"""What all measurements share: the sizes and ways that are benchmarked, by name, the machine, and where results lie."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from visionpulse_analysis._util.checks import whole_number
from visionpulse_analysis._util.files import write_whole
from visionpulse_analysis._util.later import torch
from visionpulse_analysis.pruners import Pruner, VisionPulse

if TYPE_CHECKING:
    from visionpulse_analysis.attention import Execution


T = TypeVar("T")
PACKAGES = ("torch", "transformers", "visionpulse_analysis")


def about_machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, memory, versions and date: JSON-ready."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(total_memory() / 1e9, 1),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def total_memory() -> int:
    """Memory of the machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory(device: str = "cpu") -> int:
    """Memory that can be taken now, in bytes."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    info = Path("/proc/meminfo")
    if not info.exists():
        return total_memory() // 2
    [available] = [line for line in info.read_text().splitlines() if line.startswith("MemAvailable:")]
    return int(available.split()[1]) * 1024


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, median and largest value."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def speedup(others: Sequence[float], own: Sequence[float]) -> dict[str, float]:
    """How many times as fast in each round: smallest, median and largest."""
    return spread([other / one for other, one in zip(others, own, strict=True)])


def turned(names: Sequence[T], turn: int) -> list[T]:
    """The same names from another one on in every round: none is always the first."""
    start = turn % len(names)
    return [*names[start:], *names[:start]]


def check_counts(**given: int | Sequence[int]) -> None:
    """Raise ValueError for the first that is no whole number, or none of 1 or more."""
    for name, values in given.items():
        for value in values if isinstance(values, Sequence) else [values]:
            whole_number(value, name, least=1)


def as_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows for a terminal: heading -> how `str.format` fills it from a row; what a row does not know stays empty."""

    import pandas as pd  # here, for names are checked without it

    def cell(form: str, row: Mapping[str, Any]) -> str:
        try:
            return form.format(**row)
        except (KeyError, TypeError):
            return ""

    table = [{heading: cell(form, row) for heading, form in columns.items()} for row in rows]
    return pd.DataFrame(table).to_string(index=False)


def ends(name: str, digits: int = 2) -> str:
    """How `as_table` writes a `spread`."""
    return "  ".join(f"{{{name}[{end}]:.{digits}f}}" for end in ("min", "median", "max"))


def write_result(result: dict[str, Any], path: Path) -> Path:
    """Keep a result as JSON; an existing file is replaced only once the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return path


SIZES = {
    "tiny": {"layers": 4, "width": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp": 96},
    "small": {"layers": 12, "width": 512, "heads": 8, "kv_heads": 4, "head_dim": 64, "mlp": 1536},
    "qwen3-vl-4b": {"layers": 36, "width": 2560, "heads": 32, "kv_heads": 8, "head_dim": 128, "mlp": 9728},
}
WORDS = {"qwen3-vl-4b": 151_936}  # of the vocabulary; that of the bundled model for the others
PRUNERS: dict[str, tuple[Pruner, Execution]] = {
    "masked_5": (VisionPulse.five_percent(), "masked"),
    "gathered_5": (VisionPulse.five_percent(), "gathered"),
    "gathered_10": (VisionPulse.ten_percent(), "gathered"),
    "reuse_5": (replace(VisionPulse.five_percent(), reuse_previous=True), "gathered"),
}
VARIANTS = ("stock", "eager", "dense", *PRUNERS)
UNPRUNED = ("stock", "eager", "dense", "flash")  # flash: our dense step, with PyTorch's flash kernel or none


def pruner_of(variant: str) -> tuple[Pruner | None, Execution]:
    """The pruner and execution of a variant; ``gathered_25`` keeps 25 % at every step, whatever the number.

    Raises ValueError for a name that is no variant.
    """
    if variant in UNPRUNED:
        return None, "masked"
    if variant in PRUNERS:
        return PRUNERS[variant]
    execution, _, percent = variant.partition("_")
    if execution not in ("masked", "gathered") or not percent.isdecimal() or not 1 <= int(percent) <= 100:
        raise ValueError(
            f"no variant {variant!r}: expected {', '.join(VARIANTS)}, flash, or masked_ or gathered_ with a percentage"
        )
    return VisionPulse(budget=int(percent) / 100), "masked" if execution == "masked" else "gathered"


def check_names(size: str, variants: Sequence[str] = ()) -> None:
    """Raise ValueError for a size that is not known, or a name that is no variant."""
    if size not in SIZES:
        raise ValueError(f"no size {size!r}; known: {', '.join(SIZES)}")
    for name in variants:
        pruner_of(name)
