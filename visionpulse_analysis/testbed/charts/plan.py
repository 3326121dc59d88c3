"""What the model of charts is trained on, and in which order."""

from __future__ import annotations

from dataclasses import dataclass, field

from visionpulse_analysis.testbed.charts.dense import DENSE
from visionpulse_analysis.testbed.charts.questions import TASKS

FIRST_TRAINING_SEED = 1_000_000_000  # evaluation and study charts use smaller seeds
MOST_IMAGES = 64  # of a step
READING = {"describe": 0.1, "read": 0.25, "visit": 0.1, "check": 0.15, "survey": 0.2, "find": 0.2}
REASONING = {
    "value": 0.13, "larger": 0.12, "sum": 0.08, "difference": 0.08, "extreme": 0.12,
    "above": 0.15, "trend": 0.07, "legend": 0.08, "hop": 0.1,
}  # fmt: skip
AGAIN = {"describe": 0.1, "read": 0.2, "visit": 0.05, "check": 0.1, "survey": 0.4, "find": 0.15}
MIX = {**{task: 0.3 * READING[task] for task in DENSE}, **{task: 0.7 * REASONING[task] for task in TASKS}}
LAST = {**{task: 0.4 * AGAIN[task] for task in DENSE}, **{task: 0.6 * REASONING[task] for task in TASKS}}


@dataclass(frozen=True)
class ChartStage:
    """One part of the curriculum.

    sizes : patches per side -> weight. tasks : task -> weight, none where the tower learns alone. A step draws charts
    of one size, as many as have ``patches`` patches together (one at least), with ``questions`` questions each.
    ``rate`` : learning rate at the start and the end (cosine between). ``tower`` : weight of the loss on the tower's
    patches. ``until`` : leave early once these reach this accuracy (running mean). ``kinds`` : of charts -> weight,
    those of :func:`generate` where none is given.
    """

    name: str
    steps: int
    sizes: dict[int, float]
    tasks: dict[str, float]
    patches: int
    questions: int
    rate: tuple[float, float]
    tower: float
    until: dict[str, float] = field(default_factory=dict)
    kinds: dict[str, float] = field(default_factory=dict)


SEEN = {"see letter": 0.95, "see digit": 0.97, "see top": 0.85}
BARS = {"label": 0.95, "tick": 0.9, "part": 0.8, "over": 0.9}
READ = {"place": 0.95, "tick": 0.9, "part": 0.9, "glance": 0.8}
PLAN = (
    ChartStage("see", 2500, {12: 0.6, 16: 0.4}, {}, 1152, 0, (2e-3, 1e-3), 1.0, SEEN),
    ChartStage("bars", 6000, {12: 1.0}, READING, 576, 5, (1.5e-3, 1.5e-3), 0.05, BARS, {"bar": 1.0}),
    ChartStage("read", 12000, {12: 0.8, 16: 0.2}, READING, 576, 5, (1.5e-3, 1.5e-3), 0.05, READ),
    ChartStage("reason", 6000, {12: 0.5, 16: 0.4, 24: 0.1}, MIX, 576, 4, (1.5e-3, 1.5e-3), 0.03, {"glance": 0.85}),
    ChartStage("settle", 8000, {12: 0.05, 16: 0.15, 24: 0.6, 32: 0.2}, MIX, 576, 4, (1.5e-3, 2e-5), 0.03),
    ChartStage("again", 3600, {12: 0.1, 16: 0.25, 24: 0.55, 32: 0.1}, LAST, 576, 6, (1e-3, 2e-5), 0.03),
)
