"""The diffusion twin, asked and scored: questions about scenes, the canvases of their answers, and what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionpulse_analysis.decoding.denoising import denoise
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.testbed.diffusion.canvases import DIRECT, PLACES, SHORT, canvas_of
from visionpulse_analysis.testbed.scenes.questions import ANSWER_MARK, END_MARK, Question, ask
from visionpulse_analysis.testbed.scenes.scene import Scene, generate
from visionpulse_analysis.testbed.scenes.truth import answer_is_right
from visionpulse_analysis.testbed.training.evaluation import noise
from visionpulse_analysis.testbed.training.evaluation_set import Item
from visionpulse_analysis.traces import Trace

FIRST_SCORE_SEED = 530_000  # validation scenes of the twin
SCORED = 40  # scenes
CELLS = 4  # cells per side of a scene that it was trained on


@dataclass(frozen=True)
class Asked:
    """A scene, a question about it, and whether it is to be answered without thoughts."""

    scene: Scene
    question: Question
    direct: bool = False

    @property
    def canvas(self) -> int:
        """How many places its answer has."""
        return SHORT if self.direct else PLACES[self.question.task]

    @property
    def prompt_options(self) -> dict[str, str]:
        """How it is asked: without thoughts, they are over before the answer begins."""
        return {"prefix": ANSWER_MARK} if self.direct else {}


def draw_asked(count: int, task: str, *, first_seed: int, cells: int = CELLS) -> list[Asked]:
    """Scenes of consecutive seeds with one question each, of a ``task``, or of all in turn for "direct"."""
    asked = []
    for number in range(count):
        scene = generate(first_seed + number, cells)
        kind = (*PLACES,)[number % len(PLACES)] if task == DIRECT else task
        asked.append(Asked(scene, ask(scene, kind, np.random.default_rng([scene.seed, 8])), direct=task == DIRECT))
    return asked


def denoise_all(vlm: VLM, asked: Sequence[Asked], *, images: Sequence[np.ndarray] | None = None, **options: Any):
    """Answers to questions with canvases of one length, as :func:`denoise` gives them: list of Trace."""
    canvases = {one.canvas for one in asked}
    if len(canvases) != 1:
        raise ValueError(f"questions of one call have canvases of one length, got {sorted(canvases)}")
    pictures = [one.scene.render() for one in asked] if images is None else list(images)
    settings = {"canvas": canvases.pop(), "prompt_options": [one.prompt_options for one in asked], **options}
    return denoise(vlm, pictures, [one.question.text for one in asked], **settings)


def right(asked: Sequence[Asked], traces: Sequence[Trace]) -> np.ndarray:
    """Whether each answer is exactly right: bool [question]."""
    return np.array([answer_is_right(a.question, trace.answer) for a, trace in zip(asked, traces, strict=True)])


def whole(asked: Sequence[Asked], traces: Sequence[Trace]) -> np.ndarray:
    """Whether each canvas is, word by word, the one that it was trained to give: bool [question]."""
    wanted = [" ".join(token.word for token in canvas_of(a.scene, a.question, a.direct).said) for a in asked]
    ended = [text[: text.index(END_MARK) + len(END_MARK)] for text in wanted]
    return np.array([trace.text.split() == text.split() for trace, text in zip(traces, ended, strict=True)])


def score_twin(vlm: VLM, count: int = SCORED, first_seed: int = FIRST_SCORE_SEED) -> dict[str, Any]:
    """Shares of right answers on validation scenes: of each task and of direct answers, and the controls.

    Returns
    -------
    dict
        ``tasks`` : exact answers with as many steps as places. ``whole`` : of each task, canvases right word by word.
        ``one_step`` : exact answers where all places are unmasked at once. ``noise`` : for noise in place of pictures,
        exact answers, which for yes or no may be guessed; ``noise_whole`` : canvases right word by word.
    """
    found: dict[str, Any] = {name: {} for name in ("tasks", "whole", "one_step", "noise", "noise_whole")}
    for task in (*PLACES, DIRECT):
        asked = draw_asked(count, task, first_seed=first_seed)
        traces = denoise_all(vlm, asked, layers="none")
        found["tasks"][task] = float(right(asked, traces).mean())
        found["whole"][task] = float(whole(asked, traces).mean())
        found["one_step"][task] = float(right(asked, denoise_all(vlm, asked, layers="none", steps=1)).mean())
        blank = [noise(Item(one.scene, {})) for one in asked]
        seen_none = denoise_all(vlm, asked, layers="none", images=blank)
        found["noise"][task] = float(right(asked, seen_none).mean())
        found["noise_whole"][task] = float(whole(asked, seen_none).mean())
    return found
