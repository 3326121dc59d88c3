"""What the frontier shows, in sentences chosen by whole intervals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.statistics import Interval
from visionpulse_analysis.studies.frontier import Frontier, Point, advantage
from visionpulse_analysis.studies.trace_length_report import scaled, show


def verdicts(
    frontier: Frontier, shares: Mapping[str, Pruner], budgets: list[float], knobs: Mapping[str, Pruner]
) -> list[str]:
    """What transfers and what does not, each sentence chosen by its interval.

    shares : the arms of one pruner at several budgets, of which the first sentence speaks.
    """
    if frontier.dense.accuracy is None:
        return ["Without known answers only lengths can be compared; accuracy is left out."]
    lines = [_about_shares(frontier.group(shares))]
    for budget in budgets:
        name = f"VisionPulse {100 * budget:g} %"
        gain = advantage(frontier, name, f"random {100 * budget:g} %")
        if gain is not None:
            lines.append(f"At {100 * budget:g} % kept, {_about_gain(scaled(gain))}")
        late = advantage(frontier, name, f"last step only {100 * budget:g} %")
        if late is not None:
            lines.append(f"At {100 * budget:g} % kept, {_about_late(scaled(late))}")
    for knob in knobs:
        change = advantage(frontier, knob, f"VisionPulse {100 * budgets[0]:g} %")
        if change is not None:
            lines.append(f"{knob} at {100 * budgets[0]:g} %: {_about_knob(scaled(change))}")
    return lines


def _about_shares(points: Mapping[str, Point]) -> str:
    changes = {name: point.change.truth.change for name, point in points.items() if point.change.truth}
    lost = [name for name, change in changes.items() if change.high < 0]
    if lost:
        return f"Accuracy falls at these shares, and is not shown to fall at the others: {', '.join(lost)}."
    least = min(changes, key=lambda name: points[name].retention)
    return (
        f"Accuracy is not shown to fall at any share, down to {least}: this model is at its ceiling, and where its "
        "frontier breaks off remains unknown. A step of its traces asks for one place, which a few patches show."
    )


def _points(interval: Interval) -> str:
    return show(interval, 1, " points")


def _about_gain(gain: Interval) -> str:
    if gain.low >= 20:
        return f"the selection matters: VisionPulse beats random selection by {_points(gain)}, at least 20."
    if gain.low > 0:
        return f"VisionPulse beats random selection, by {_points(gain)}."
    return (
        f"VisionPulse is not shown to beat random selection ({_points(gain)}): here the model needs little of the "
        "image from the anchor on, or the selection misses what it needs."
    )


def _about_late(gain: Interval) -> str:
    if gain.low > 0:
        return (
            f"choosing afresh is worth {_points(gain)} over the choice of the step before: evidence moves step by step."
        )
    return f"the choice of the step before does as well, as far as can be told ({_points(gain)})."


def _about_knob(change: Interval) -> str:
    if np.isnan(change.low):
        return "changes no answer."
    if change.high < 0:
        return f"costs accuracy ({_points(change)})."
    if change.low > 0:
        return f"gains accuracy ({_points(change)})."
    return f"no difference of accuracy can be told ({_points(change)})."
