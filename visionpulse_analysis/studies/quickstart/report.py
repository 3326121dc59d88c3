"""One trace in a sentence: how much of each step's attention the image gets, and how often it moves."""

from __future__ import annotations

from typing import Any

from visionpulse_analysis.studies.shared.sentences import Finding
from visionpulse_analysis.studies.step_dependence.measure import masses_of, rows_of
from visionpulse_analysis.traces import Trace

CUT = ", cut off at the limit of tokens,"


def trace_numbers(trace: Trace, layer: int) -> dict[str, Any]:
    """How much one trace looks at the image at a layer, and how often elsewhere than the step before, JSON-ready.

    ``moves`` counts the steps after the first whose most attended patch is another one than at the step before.
    """
    mass, strongest = masses_of(trace, layer), rows_of(trace, layer).argmax(axis=1)
    return {
        "steps": len(trace),
        "mean_mass": float(mass.mean()),
        "least_mass": float(mass.min()),
        "most_mass": float(mass.max()),
        "moves": int((strongest[1:] != strongest[:-1]).sum()),
        "answer": trace.answer,
        "finished": trace.meta.get("finished"),
    }


def trace_sentence(n: dict[str, Any]) -> str:
    """The numbers of one trace in words; of one trace there is no interval."""
    shares = (f"{100 * n[name]:.0f}" for name in ("least_mass", "most_mass", "mean_mass"))
    return (
        "In one trace of {steps} steps{cut} the image holds between {} and {} % of a step's attention, {} % on "
        "average; the most attended patch is another one than at the step before at {moves} of {} steps."
    ).format(*shares, n["steps"] - 1, steps=n["steps"], moves=n["moves"], cut=CUT * (n["finished"] is False))


def finding(n: dict[str, Any]) -> Finding:
    """Of one trace there is no interval."""
    told = trace_sentence(n)
    return Finding(f"{told.partition(';')[0]}.", told)
