"""What a measurement was made on, and where its result is kept."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

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


def write_result(result: dict[str, Any], path: Path) -> Path:
    """Keep a result as JSON; an existing file is replaced only once the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    draft.replace(path)
    return path
