"""What a study was measured on, beside what the paper was, so that its reach need not be guessed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.studies.shared.paired import mean_of_ended
from visionpulse_analysis.studies.shared.per_trace import Arm
from visionpulse_analysis.traces import Trace

PAPER = "arXiv 2605.31457 measured Qwen3-VL and InternVL3.5 of 4B and 8B, on images of 1,280 visual tokens and more"


def measured_on(vlm: VLM, samples: Sequence[Sample], dense: Arm, share: float | None = None) -> str:
    """Say in numbers what was measured on, and that nothing beyond it was.

    Parameters
    ----------
    dense : the arm without pruning, of these samples
    share : of the patches that the study is about, 0 to 1, told in patches as well
    """
    patches = np.array([len(vlm.prompt(one.image, one.question).grid) for one in samples])
    ids = np.tile(np.arange(len(samples)), len(dense.length))
    length = mean_of_ended(dense.length.ravel(), dense.finished.ravel(), ids)
    ended = (
        "no dense trace ended"
        if dense.finished.sum() == 0
        else (f"dense traces that ended hold {length:.2f} tokens on average")
    )
    cut = int((~dense.finished).sum())
    kept = np.maximum(1, np.floor((share or 0) * patches).astype(int))
    told = "" if share is None else f"; {100 * share:g} % of them are {_range(kept)}"
    return (
        f"Measured on {vlm.name}: {vlm.n_layers} layers, {len(samples)} samples of {_range(patches)} visual tokens"
        f"{told}; {ended}, {cut} of {dense.finished.size} were cut off. {PAPER}. How far anything found here carries "
        "beyond what it was measured on is not measured."
    )


def cut_off_told(traces: Sequence[Trace]) -> str:
    """How many traces the limit of tokens cut off: what these would have gone on to say is in no number."""
    cut = sum(trace.meta.get("finished") is False for trace in traces)
    if cut == 0:
        return f"None of the {len(traces)} traces was cut off at the limit of tokens."
    return (
        f"Cut off at the limit of tokens: {cut} of {len(traces)} traces. What is said of their steps is of those up to "
        "the limit; what would have followed is not known."
    )


def _range(numbers: np.ndarray) -> str:
    least, most = int(numbers.min()), int(numbers.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
