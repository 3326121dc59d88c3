"""What a page of the explorer holds, in numbers and in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visionpulse_analysis.studies.shared.sentences import Finding, listed
from visionpulse_analysis.traces import Trace


def page_numbers(page: Path, dense: Trace, pruned: Trace) -> dict[str, Any]:
    """Size of the page and lengths of its traces, JSON-ready; ``cut_off`` : those that the limit of tokens ended."""
    traces = {"dense": dense, "pruned": pruned}
    return {
        "dense_steps": len(dense),
        "pruned_steps": len(pruned),
        "page_bytes": page.stat().st_size,
        "cut_off": [name for name, trace in traces.items() if not trace.meta["finished"]],
        "dense_answer": dense.answer,
        "pruned_answer": pruned.answer,
    }


def finding(n: dict[str, Any]) -> Finding:
    told = (
        f"A page of {n['page_bytes'] / 1000:.0f} kB that works with the network off: {n['dense_steps']} steps dense "
        f"beside {n['pruned_steps']} pruned, every step, layer and patch to be pointed at."
    )
    cut = f" Cut off at the limit of tokens: {listed(n['cut_off'])}." if n["cut_off"] else ""
    return Finding(told, f"{told}{cut}")
