"""What the model of charts is spoken to in, as batches are packed."""

from __future__ import annotations

from visionpulse_analysis.testbed.charts.dense import DENSE
from visionpulse_analysis.testbed.charts.questions import TASKS
from visionpulse_analysis.testbed.charts.reasoning import FROM_IMAGE, KINDS
from visionpulse_analysis.testbed.charts.words import SYSTEM_PROMPT, vocabulary
from visionpulse_analysis.testbed.training.packing import Language

IMAGE_WEIGHT = 3.0  # in the loss: four words in five are determined by text, and are learned first
LANGUAGE = Language(
    tuple(vocabulary()),
    SYSTEM_PROMPT,
    KINDS,
    (*TASKS, *DENSE),
    FROM_IMAGE,
    {kind: IMAGE_WEIGHT for kind in FROM_IMAGE if kind != "met"},
)
