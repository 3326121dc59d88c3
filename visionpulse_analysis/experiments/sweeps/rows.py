"""What one trace comes to in the tidy table. A pure function of the trace: stored or just made, the row is the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from visionpulse_analysis.traces import Trace

# Text stays text: an answer "3", "NA" or "None" is no number and not missing. "right" and "score" are empty where
# nobody knows; "judge" names the rule (`judging.JUDGES`) or the model that scored, or is to score, the answer.
DTYPES: dict[str, Any] = {
    "id": "string",
    "model": "string",
    "sample": "string",
    "pruner": "string",
    "seed": "Int64",
    "task": "string",
    "question": "string",
    "expected": "string",
    "status": "string",
    "right": "boolean",
    "score": "float64",
    "judge": "string",
    "answer": "string",
    "finished": "boolean",
    "tokens": "Int64",
    "patches": "Int64",
    "kept": "float64",
    "mass": "float64",
    "logprob": "float64",
    "weights": "string",
    "error": "string",
}
COLUMNS = tuple(DTYPES)


def row_of(trace: Trace) -> dict[str, Any]:
    """Measure one trace.

    Returns
    -------
    dict
        answer : the text after the reasoning. finished : False where the limit of tokens cut the trace off. tokens,
        patches : numbers of them. kept : mean share of the patches visible over the steps after prefill; 1 when dense.
        mass : mean image mass over steps and recorded layers, 0..1, or None where none was recorded. logprob : mean
        natural log probability of the tokens. weights : hash of the model's weights.
    """
    kept = None if trace.kept is None else np.asarray(trace.kept.values)[1:]
    mass = np.asarray(trace.mass.values, dtype=np.float64)
    return {
        "answer": trace.answer,
        "finished": bool(trace.meta.get("finished")),
        "tokens": len(trace),
        "patches": len(trace.grid),
        "kept": 1.0 if kept is None or len(kept) == 0 else float(kept.mean()),
        "mass": float(mass.mean()) if mass.size else None,
        "logprob": float(np.mean(trace.logprobs, dtype=np.float64)),
        "weights": trace.meta.get("model_hash"),
    }
