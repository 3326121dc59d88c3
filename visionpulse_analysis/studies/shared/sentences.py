"""What several reports say in the same words: which tests decided, what was cut off, what was measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.estimate import UNKNOWN, Estimate
from visionpulse_analysis.metrics.statistics import Claim
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.studies.shared.arms import DENSE, Arms, Change, Judged, mean_of_ended
from visionpulse_analysis.traces import Trace


class Finding(NamedTuple):
    """What a notebook found, told from the numbers inside its headline figure."""

    short: str  # one sentence with its interval, for the README
    long: str  # all of it, for docs/findings.md


COMPARED = {"rises": "more accurate than", "falls": "less accurate than", "not shown": "not told apart from"}
RULE = "Exact tests over samples decide, adjusted by Holm among all of these; an interval in brackets is of one alone."
CHANGED = {"rises": "a rise", "falls": "a fall", "not shown": "no change is shown"}
PAPER = "arXiv 2605.31457 measured Qwen3-VL and InternVL3.5 of 4B and 8B, on images of 1,280 visual tokens and more"


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def family_sentence(judged: Judged) -> str:
    """Which tests were adjusted together, and what decides."""
    one = next(iter(next(iter(judged.values())).values()))
    return f"{one.family[0].upper()}{one.family[1:]}: {one.size} tests. {RULE} Lengths are of pairs that both ended."


def adjusted(judged: Mapping[str, Claim]) -> str:
    """How it was decided what falls and rises."""
    size = judged["length"].size
    return f"What falls or rises is told by exact tests, adjusted (Holm) for all {size} of the notebook."


def written(estimate: Estimate | None, form: str) -> str:
    """An estimate by a format of its own, or that there is none."""
    return UNKNOWN if estimate is None else format(estimate, form)


def show_p(verdict: Claim | None) -> str:
    """The p of a test alone and among its family: ``0.012, adjusted 0.24``."""
    return "no test" if verdict is None or np.isnan(verdict.p) else f"{verdict.p:.2g}, adjusted {verdict.adjusted:.2g}"


def still_open(effect: Estimate) -> str:
    """What loss an effect that is not shown may still be, by its interval: "a loss of up to 9.6 points is open"."""
    if np.isnan(effect.low):
        return "how large a loss is open cannot be said of so few samples"
    if effect.low >= 0:
        return "its interval leaves no loss"
    return f"a loss of up to {-100 * effect.low:.1f} points is open"


def cut_off_column(change: Change) -> str:
    """How many traces of an arm were cut off: "3 of 36"."""
    return f"{change.cut_off.n_arm} of {change.n_pairs}"


def cut_off_sentences(changes: Mapping[str, Change], limit: int | None) -> list[str]:
    """Which arms have traces without an end, and what the pairs that ended say of the length of these arms.

    limit : of tokens; None where no trace was cut off.
    """
    cut = {arm: change for arm, change in changes.items() if change.cut_off.n_arm}
    some = next(iter(changes.values()), None)
    if some is None:
        return []
    where = "" if limit is None else f" at the limit of {limit} tokens"
    counts = [f"{arm} {change.cut_off.n_arm}" for arm, change in cut.items()]
    lines = [f"Cut off{where}, of {some.n_pairs}: {', '.join([f'dense {some.cut_off.n_dense}', *counts])}."]
    if cut:
        ended = [f"{arm}: {ended_length(change)}" for arm, change in cut.items()]
        lines.append(f"Tokens more than dense, over the pairs in which both traces ended: {'; '.join(ended)}.")
    return lines


def ended_length(change: Change) -> str:
    """Change in tokens over the pairs that ended, and how much longer the rest is at least."""
    ended = f"{change.tokens:+.1f} ({change.n_both} pairs)" if change.n_both else "no such pair"
    at_least = change.cut_off.at_least
    return ended if np.isnan(at_least) else f"{ended}, the rest at least {at_least:+.0f}, as far as the limit allows"


def about_cut_off(change: Change, verdicts: Mapping[str, Claim]) -> str:
    """A sentence about the traces that reached the limit, with a space in front; empty without one."""
    cut = change.cut_off
    if cut.n_arm == cut.n_dense == 0:
        return ""
    longer = f", longer by at least {cut.at_least:.0f} tokens on average" if cut.only_arm else ""
    shorter = f", shorter by at least {-cut.at_most:.0f} tokens on average" if cut.only_dense else ""
    decided = {"rises": "more than densely", "falls": "fewer than densely", "not shown": "no difference is shown"}
    return (
        f" Cut off at the limit: {cut_off_column(change)} traces, densely {cut.n_dense} "
        f"({decided[verdicts['cut off'].decision]}; {cut.change:+.1p}). Only here {cut.only_arm}"
        f"{longer}; only densely {cut.only_dense}{shorter}."
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


def measured_on(vlm: VLM, samples: Sequence[Sample], arms: Arms, share: float | None = None) -> str:
    """Say in numbers what was measured on, and that nothing beyond it was.

    Parameters
    ----------
    arms : of these samples, dense among them
    share : of the patches that the study is about, 0 to 1, told in patches as well
    """
    patches = np.array([len(vlm.prompt(one.image, one.question).grid) for one in samples])
    dense = arms.rows(DENSE)
    length = mean_of_ended(dense)
    ended = (
        f"dense traces that ended hold {length:.2f} tokens on average" if length.n_values else "no dense trace ended"
    )
    kept = np.maximum(1, np.floor((share or 0) * patches).astype(int))
    told = "" if share is None else f"; {100 * share:g} % of them are {_range(kept)}"
    return (
        f"Measured on {vlm.name}: {vlm.n_layers} layers, {len(samples)} samples of {_range(patches)} visual tokens"
        f"{told}; {ended}, {int((~dense['finished']).sum())} of {len(dense)} were cut off. {PAPER}. How far anything "
        "found here carries beyond what it was measured on is not measured."
    )


def _range(numbers: np.ndarray) -> str:
    least, most = int(numbers.min()), int(numbers.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
