"""How the network from attention to relevance is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from visionpulse_analysis._util.files import write_whole
from visionpulse_analysis.decoding.patch_gradients import relevance
from visionpulse_analysis.pruners.networks.compressor import Compressor
from visionpulse_analysis.testbed.heads.fitting import fit, state_folder
from visionpulse_analysis.testbed.heads.pairs import FIRST_HEAD_SEED, make_pairs, questions_of, straight_answer
from visionpulse_analysis.testbed.scenes.scene import generate

FIRST_RELEVANCE_SEED = FIRST_HEAD_SEED + 2_000_000


@dataclass(frozen=True)
class Recipe:
    """What the network is trained on and how.

    Parameters
    ----------
    layer : whose attention is read.
    images : pictures of each size, by cells per side: 64 patches only, for the paper says that it works for many more.
    each : questions about each. tokens : of the answer, whose relevance is followed.
    steps, batch, rate : of the fit (the paper: 100 epochs of Adam at 1e-3, batches of 128).
    shuffled : control: relevance of other pairs.
    """

    layer: int = 0
    images: tuple[tuple[int, int], ...] = ((4, 100),)
    each: int = 3
    tokens: int = 12
    steps: int = 400
    batch: int = 64
    rate: float = 3e-3
    shuffled: bool = False


def relevance_data(vlm: Any, recipe: Recipe, folder: Path) -> list[dict[str, torch.Tensor]]:
    """For each size of picture: ``seen`` float32 [pair, layer, patch], the words' attention, and ``relevance`` float32
    [pair, patch] of the straight answer; made once, kept in ``folder``."""
    found, first = [], FIRST_RELEVANCE_SEED
    for cells, images in recipe.images:
        path = folder / f"relevance-{cells}-{images}-{recipe.each}-{recipe.tokens}-{vlm.weights_hash}.safetensors"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            seen = make_pairs(vlm, first, images, cells, layer=0, each=recipe.each).words_seen.contiguous()
            labels = [one for seed in range(first, first + images) for one in _relevances(vlm, seed, cells, recipe)]
            write_whole(path, save({"seen": seen, "relevance": torch.stack(labels)}))
        found.append(load_file(path))
        first += images
    return found


def _relevances(vlm: Any, seed: int, cells: int, recipe: Recipe) -> list[torch.Tensor]:
    """Of one scene's questions, float32 [patch] each."""
    scene = generate(seed, cells)
    found = []
    for question in questions_of(scene, recipe.each):
        words = [one.word for one in straight_answer(scene, question)][: recipe.tokens]
        answer = torch.tensor(vlm.tokenizer.convert_tokens_to_ids(words))
        found.append(relevance(vlm, vlm.prompt(scene.render(), question.text), answer))
    return found


def target(found: torch.Tensor) -> torch.Tensor:
    """Relevance [pair, patch] with its lower half set to 0, its sum 1."""
    half = found.shape[1] // 2
    upper = found * (found.argsort(dim=1).argsort(dim=1) >= half)
    return upper / upper.sum(dim=1, keepdim=True).clamp(min=1e-12)


def divergence(logarithms: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """KL(wanted || found) in nats, float32 [pair]; ``logarithms`` and ``wanted`` float32 [pair, patch]."""
    return (torch.xlogy(wanted, wanted) - wanted * logarithms).sum(dim=1)


def expect(network: Compressor, data: list[dict[str, torch.Tensor]], recipe: Recipe, seed: int) -> Callable:
    """The loss of a step: divergence of the network's shares from the relevance, of pairs of one size of picture."""
    wanted = [target(group["relevance"]) for group in data]
    if recipe.shuffled:
        wanted = [one.roll(7, dims=0) for one in wanted]  # more than the questions of one picture
    share = np.array([len(one) for one in wanted]) / sum(map(len, wanted))

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 3, step])
        group = int(rng.choice(len(data), p=share))
        at = torch.from_numpy(rng.choice(len(wanted[group]), min(recipe.batch, len(wanted[group])), replace=False))
        seen = data[group]["seen"][at, recipe.layer]
        return divergence(network(seen, torch.ones(seen.shape, dtype=torch.bool)), wanted[group][at]).mean()

    return loss


def train_compressor(
    vlm: Any, folder: Path, recipe: Recipe, seed: int, report: Callable[[str], None] = print
) -> tuple[Compressor, dict[str, Any]]:
    """The network, and what is told of its training."""
    network = Compressor.untrained(seed=seed)
    loss = expect(network, relevance_data(vlm, recipe, folder), recipe, seed)
    told = {"steps": recipe.steps, "rate": recipe.rate}
    return network, {"fit": told | fit(network, loss, state_folder(folder, vlm, seed, recipe), report=report, **told)}
