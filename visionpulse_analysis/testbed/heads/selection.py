"""How CoViPAL's scorer is trained: first to foresee attention, then end to end through the frozen model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch.nn.functional import cross_entropy

from visionpulse_analysis._util.files import write_whole
from visionpulse_analysis.attention.routing import Call, intercept, watch_layers
from visionpulse_analysis.pruners.networks.scorer import Scorer
from visionpulse_analysis.testbed.heads.fitting import fit, state_folder
from visionpulse_analysis.testbed.heads.pairs import (
    FIRST_HEAD_SEED,
    Pairs,
    Places,
    make_pairs,
    questions_of,
    straight_answer,
)
from visionpulse_analysis.testbed.scenes.scene import generate
from visionpulse_analysis.testbed.training.batches import LANGUAGE, pack
from visionpulse_analysis.testbed.training.scoring import hidden_states

FIRST = ("layer", "guidance", "images", "each", "steps", "batch", "rate", "shuffled")  # what a first stage depends on
FIRST_SOFT_SEED = FIRST_HEAD_SEED + 1_000_000  # scenes of the second stage


@dataclass(frozen=True)
class Recipe:
    """What a scorer is trained on and how.

    Parameters
    ----------
    layer : the layer whose entering states are scored.
    guidance : the layer whose attention is foreseen. The paper's rule is a deep one (16 of 32 given as an example);
        here by what was measured on validation scenes before any head was trained: attention from the rows of the
        answer holds the named objects at layers 3 and 4 only.
    images : pictures of each size in the first stage, by cells per side. each : questions about each of them.
    steps, batch, rate : of the first stage; 0 steps leave it out.
    soft_steps, soft_images, soft_rate, soft_cells : the same of the second stage, one question a picture.
    budgets : shares that the second stage draws from (the paper's are not known). temperature : of its soft choice, see
        `soft_choice`.
    shuffled : control: labels of other questions about the same picture.
    """

    layer: int = 0
    guidance: int = 4
    images: tuple[tuple[int, int], ...] = ((4, 160), (6, 240), (8, 400))
    each: int = 6
    steps: int = 800
    batch: int = 32
    rate: float = 2e-3
    soft_steps: int = 60
    soft_images: int = 8
    soft_rate: float = 3e-4
    soft_cells: tuple[int, ...] = (4, 6, 8)
    budgets: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5)
    temperature: float = 0.25
    shuffled: bool = False


def labels(pairs: Pairs, guidance: int, shuffled: bool = False) -> torch.Tensor:
    """Attention that each patch receives at the guidance layer, its mean over the picture 1: float32 [pair, patch]."""
    seen = pairs.prompt_seen[:, guidance] + pairs.answer_seen[:, guidance]
    if shuffled:  # each picture's questions in a circle: the pictures stay, what was asked does not
        each = int((pairs.image == 0).sum())
        seen = seen.view(-1, each, seen.shape[1]).roll(1, dims=1).flatten(0, 1)
    return seen / seen.mean(dim=1, keepdim=True)


def pairs_of(vlm: Any, recipe: Recipe, folder: Path) -> list[Pairs]:
    """The pairs of the first stage, one entry for each size; made once, kept in ``folder``."""
    found, first = [], FIRST_HEAD_SEED
    for cells, images in recipe.images:
        path = folder / f"pairs-{cells}-{images}-{recipe.each}-{recipe.layer}-{vlm.weights_hash}.safetensors"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            pairs = make_pairs(vlm, first, images, cells, layer=recipe.layer, each=recipe.each)
            write_whole(path, save({name: value.contiguous() for name, value in pairs.to_dict().items()}))
        found.append(Pairs(**load_file(path)))
        first += images
    return found


def foresee(scorer: Scorer, groups: list[Pairs], recipe: Recipe, seed: int) -> Callable[[int], torch.Tensor]:
    """The loss of the first stage: mean squared error of the scores of some questions, all of one size of picture."""
    targets = [labels(pairs, recipe.guidance, recipe.shuffled) for pairs in groups]
    share = np.array([len(pairs) for pairs in groups]) / sum(map(len, groups))

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, step])
        group = int(rng.choice(len(groups), p=share))
        pairs, at = groups[group], torch.from_numpy(rng.choice(len(groups[group]), recipe.batch, replace=False))
        return ((scored(scorer, pairs, at) - targets[group][at]) ** 2).mean()

    return loss


def scored(scorer: Scorer, pairs: Pairs, at: torch.Tensor) -> torch.Tensor:
    """Scores of some of the pairs, ``at`` int64 [n]: float32 [n, patch]."""
    patches = pairs.states[pairs.image[at]]
    return scorer(patches, pairs.words[at], torch.ones(patches.shape[:2], dtype=torch.bool), pairs.asked[at])


def soft_choice(scores: torch.Tensor, budget: float, temperature: float) -> torch.Tensor:
    """Logarithm of how much each patch is kept: float32 [row, patch], log 1/2 at the last one that a budget keeps.

    ``log sigmoid((S - tau) / T)``, tau the ``round(budget * n)``-th highest score of the row, T in units of the spread
    of its scores: scores that are all alike would else hide nothing, and an untrained scorer would learn nothing.
    """
    k = max(1, round(budget * scores.shape[1]))
    tau = scores.topk(k, dim=1).values[:, -1:]
    return torch.nn.functional.logsigmoid((scores - tau) / (temperature * scores.std(dim=1, keepdim=True)))


class _Softly:
    """From a layer on, adds to the logits of patches what the scorer makes of the states that enter that layer."""

    def __init__(self, scorer: Scorer, batch: Any, recipe: Recipe, budget: float):
        self.scorer, self.batch, self.recipe, self.budget = scorer, batch, recipe, budget
        self.patches = batch.ids[0] == LANGUAGE.ids["<|image_pad|>"]
        self.places, self.added = Places.of(batch), torch.zeros(0)

    def enter(self, layer: int, block: Any, states: torch.Tensor) -> None:
        if layer != self.recipe.layer:
            return
        words = [states[row, at] for row, at in enumerate(self.places.words)]
        asked = [torch.ones(len(one), dtype=torch.bool) for one in words]
        patches, pad = states[:, self.patches], torch.nn.utils.rnn.pad_sequence
        present = torch.ones(patches.shape[:2], dtype=torch.bool)
        scores = self.scorer(patches, pad(words, batch_first=True), present, pad(asked, batch_first=True))
        self.added = torch.zeros(self.batch.ids.shape)
        self.added[:, self.patches] = soft_choice(scores, self.budget, self.recipe.temperature)

    def leave(self, layer: int, states: torch.Tensor) -> None:
        """Nothing to do."""

    def __call__(self, call: Call) -> Any:
        if call.layer < self.recipe.layer:
            return call.run()
        # A patch goes on seeing itself, as under a hard choice.
        own = torch.eye(self.added.shape[1], dtype=torch.bool)
        added = self.added[:, None, None].expand(-1, 1, len(own), -1).masked_fill(own, 0.0)
        return call.under(added.masked_fill(~call.mask, torch.finfo(torch.float32).min)).run()


def end_to_end(vlm: Any, scorer: Scorer, recipe: Recipe, seed: int) -> Callable[[int], torch.Tensor]:
    """The loss of the second stage: cross-entropy of the answers, nats, under the soft choice of a budget."""

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 2, step])
        cells, budget = int(rng.choice(recipe.soft_cells)), float(rng.choice(recipe.budgets))
        scenes = [generate(FIRST_SOFT_SEED + step * recipe.soft_images + n, cells) for n in range(recipe.soft_images)]
        asked = [questions_of(scene, 1 + number % 3)[-1] for number, scene in enumerate(scenes)]
        batch = pack([(s, [(q, straight_answer(s, q))]) for s, q in zip(scenes, asked, strict=True)])
        softly = _Softly(scorer, batch, recipe, budget)
        with intercept(vlm.model, softly), watch_layers(vlm.model, softly):
            hidden = hidden_states(vlm.model, batch)
        chosen = batch.target != -100
        return cross_entropy(vlm.model.lm_head(hidden[chosen]).float(), batch.target[chosen])

    return loss


def train_scorer(
    vlm: Any, folder: Path, recipe: Recipe, seed: int, report: Callable[[str], None] = print
) -> tuple[Scorer, dict[str, Any]]:
    """Both stages, or what is left of them; the scorer, and what is told of its training."""
    width = vlm.model.config.get_text_config().hidden_size
    scorer = Scorer.untrained(seed=seed, width=width)
    stages = {}
    trained = [parameter for parameter in vlm.model.parameters() if parameter.requires_grad]
    vlm.model.requires_grad_(False)
    try:
        if recipe.steps:
            loss = foresee(scorer, pairs_of(vlm, recipe, folder), recipe, seed)
            told = {"steps": recipe.steps, "rate": recipe.rate}
            first = [getattr(recipe, name) for name in FIRST]
            stages["stage 1"] = told | fit(scorer, loss, state_folder(folder, vlm, seed, first), report=report, **told)
        if recipe.soft_steps:
            loss = end_to_end(vlm, scorer, recipe, seed)
            told = {"steps": recipe.soft_steps, "rate": recipe.soft_rate}
            both = state_folder(folder, vlm, seed, recipe)
            stages["stage 2"] = told | fit(scorer, loss, both, report=report, **told)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return scorer, stages
