"""What the bundled model is trained on, and in which order."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_VISION_SEED = 900_000_000  # evaluation and study scenes use smaller seeds than either of these
FIRST_TRAINING_SEED = 1_000_000_000
VISION_STEPS = 900
MIX = {"find": 0.25, "compare": 0.3, "count": 0.35, "describe": 0.1}


@dataclass(frozen=True)
class Stage:
    """One part of the curriculum.

    sizes : cells per side -> weight. tasks : task -> weight. A step draws ``images`` scenes of one size with
    ``questions`` questions each. ``rate`` : learning rate at the start and the end (cosine between). ``until`` :
    leave early once these kinds of token reach this teacher-forced accuracy (running mean). ``drills`` : share of
    the steps that are drills, without images.
    """

    name: str
    steps: int
    sizes: dict[int, float]
    tasks: dict[str, float]
    images: int
    questions: int
    rate: tuple[float, float]
    until: dict[str, float] = field(default_factory=dict)
    drills: float = 0.0


PLAN = (
    Stage("read", 3000, {4: 0.6, 6: 0.4}, {"describe": 1.0}, 16, 1, (1.5e-3, 1.5e-3), {"row": 0.9, "column": 0.9}),
    Stage("reason", 800, {4: 0.4, 6: 0.3, 8: 0.3}, MIX, 8, 4, (1.5e-3, 1.5e-3), drills=0.4),
    Stage("settle", 2000, {4: 0.1, 6: 0.15, 8: 0.75}, MIX, 8, 4, (1.5e-3, 2e-5), drills=0.1),
)

TRAINED_CELLS = tuple(sorted({cells for stage in PLAN for cells in stage.sizes}))  # per side
