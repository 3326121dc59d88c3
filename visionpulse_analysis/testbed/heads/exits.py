"""How DyVTE's gates are trained: from which layer on text, or one token of an answer, needs the image no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch.nn.functional import cross_entropy, one_hot

from visionpulse_analysis._util.files import write_whole
from visionpulse_analysis.attention.routing import Call, intercept, watch_layers
from visionpulse_analysis.pruners.networks.gates import Gates, StepGates
from visionpulse_analysis.testbed.heads.fitting import fit, state_folder
from visionpulse_analysis.testbed.heads.pairs import FIRST_HEAD_SEED, Places, questions_of, straight_answer
from visionpulse_analysis.testbed.scenes.questions import Question
from visionpulse_analysis.testbed.scenes.scene import Scene, generate
from visionpulse_analysis.testbed.training.batches import LANGUAGE, pack
from visionpulse_analysis.testbed.training.packing import Batch
from visionpulse_analysis.testbed.training.scoring import hidden_states

FIRST_EXIT_SEED = FIRST_HEAD_SEED + 3_000_000
AGREE, RATIO = 0.99, 1.03  # the authors': share of answer tokens, and cross-entropy over that of the dense model


@dataclass(frozen=True)
class Recipe:
    """What gates are trained on and how.

    Parameters
    ----------
    images : pictures of each size, by cells per side (the authors: 1 % of 665,000 conversations). each : questions.
    floor : nats that the cross-entropy may exceed the ratio by; the authors have none.
    steps, batch, rate : of the fit (the authors: 6e-5 for width 4,096).
    shuffled : control: labels of other pairs.
    per_token : for `DyVTESteps`: a pair for each token of an answer that another one follows.
    """

    images: tuple[tuple[int, int], ...] = ((4, 24), (8, 48))
    each: int = 6
    floor: float = 0.01
    steps: int = 600
    batch: int = 64
    rate: float = 1e-3
    shuffled: bool = False
    per_token: bool = False


@dataclass
class Exits:
    """Pairs of questions and pictures, or of tokens and pictures.

    text : float32 [pair, gate, states * width], as gates read it. free : bool [pair, gate], whether the image may leave
    after that layer.
    """

    text: torch.Tensor
    free: torch.Tensor


class _Watch:
    """Takes up the states that leave each layer, and hides patches in the layers from ``cut`` on.

    rows : bool [row, token], those that see them no more.
    """

    def __init__(self, batch: Any, cut: int, rows: torch.Tensor):
        self.batch, self.cut, self.left = batch, cut, list[torch.Tensor]()
        self.blind = rows[:, None, :, None] & (batch.ids[0] == LANGUAGE.ids["<|image_pad|>"])

    def enter(self, layer: int, block: Any, states: torch.Tensor) -> None:
        if layer:
            self.left.append(states)

    def leave(self, layer: int, states: torch.Tensor) -> None:
        """States that enter the next layer hold what the vision tower adds in between as well."""

    def __call__(self, call: Call) -> Any:
        if call.layer < self.cut:
            return call.run()
        return call.under(call.mask & ~self.blind).run()


def _asked(rows: Sequence[tuple[Scene, Sequence[Question]]]) -> Batch:
    """Scenes of one size and as many questions about each, with their straight answers."""
    return pack([(scene, [(one, straight_answer(scene, one)) for one in asked]) for scene, asked in rows])


def _predicted(
    vlm: Any, batch: Batch, cut: int, rows: torch.Tensor, at: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Without patches for some rows from a layer on: words int64 and losses in nats, float32, both [token], behind the
    tokens ``at``, bool [row, token]; and the states that leave each layer but the last."""
    watch = _Watch(batch, cut, rows)
    with intercept(vlm.model, watch), watch_layers(vlm.model, watch):
        logits = vlm.model.lm_head(hidden_states(vlm.model, batch)[at]).float()
    return logits.argmax(-1), cross_entropy(logits, batch.target[at], reduction="none"), watch.left


@torch.no_grad()
def step_exits(vlm: Any, rows: Sequence[tuple[Scene, Sequence[Question]]], floor: float) -> tuple[Exits, torch.Tensor]:
    """Features and labels of the tokens of straight answers, and which conversation each is of, int64 [token]."""
    batch, count, n = _asked(rows), len(rows[0][1]), vlm.n_layers
    places = Places.of(batch)
    at = places.answer & (batch.target != -100)
    words, dense, left = _predicted(vlm, batch, n, places.answer, at)
    free = []
    for gate in range(n - 1):
        found, loss, _ = _predicted(vlm, batch, gate + 1, places.answer, at)
        free.append((found == words) & (loss < RATIO * dense + floor))
    owner = torch.arange(len(rows))[:, None] * count + places.conversation - 1
    return Exits(torch.stack([states[at] for states in left], dim=1), torch.stack(free, dim=1)), owner[at]


@torch.no_grad()
def exits(vlm: Any, rows: Sequence[tuple[Scene, Sequence[Question]]], floor: float) -> Exits:
    """Features and labels of scenes of one size, as many questions about each."""
    batch, count, n = _asked(rows), len(rows[0][1]), vlm.n_layers
    places, chosen = Places.of(batch), batch.target != -100
    owner = (torch.arange(len(rows))[:, None] * count + places.conversation - 1)[chosen]
    per = torch.bincount(owner, minlength=len(rows) * count)
    said = torch.arange(batch.ids.shape[1]).expand_as(batch.ids) >= batch.prefix

    def of_each(values: torch.Tensor) -> torch.Tensor:
        return torch.bincount(owner, values, len(per)) / per

    words, losses, left = _predicted(vlm, batch, n, said, chosen)
    dense, free = of_each(losses), []
    for gate in range(n - 1):
        found, loss, _ = _predicted(vlm, batch, gate + 1, said, chosen)
        free.append((of_each((found == words).float()) > AGREE) & (of_each(loss) < RATIO * dense + floor))
    # The last token of a prompt is what its answer follows.
    number = torch.where(places.prompt, places.conversation, 0)
    belongs = one_hot(number, count + 1)[..., 1:]
    ends = (belongs.cumsum(1) * belongs).argmax(dim=1)  # [row, conversation]
    rest = belongs.float().scatter(1, ends[:, None], 0.0)
    text = []
    for states in left:
        mean = torch.einsum("rtw,rtc->rcw", states, rest) / rest.sum(dim=1)[..., None]
        last = states.gather(1, ends[..., None].expand(-1, -1, states.shape[2]))
        text.append(torch.cat([mean, last], dim=2).flatten(0, 1))
    return Exits(torch.stack(text, dim=1), torch.stack(free, dim=1))


def leaving(gates: Gates, text: torch.Tensor) -> torch.Tensor:
    """Which gates would let the image leave: bool [pair, gate]; ``text`` as in `Exits`."""
    return torch.stack([gates(text[:, n], n).argmax(dim=1) == 1 for n in range(text.shape[1])], dim=1)


def exit_data(vlm: Any, recipe: Recipe, folder: Path) -> Exits:
    """The pairs of a recipe; made once, kept in ``folder``."""
    told = repr([recipe.images, recipe.each, recipe.floor, recipe.per_token])
    path = state_folder(folder, vlm, told).with_suffix(".safetensors")
    if not path.exists():
        parts, first = list[Exits](), FIRST_EXIT_SEED
        for cells, images in recipe.images:
            scenes = [generate(first + number, cells) for number in range(images)]
            rows = [(scene, questions_of(scene, recipe.each)) for scene in scenes]
            eights = [rows[start : start + 8] for start in range(0, images, 8)]
            parts += [
                step_exits(vlm, eight, recipe.floor)[0] if recipe.per_token else exits(vlm, eight, recipe.floor)
                for eight in eights
            ]
            first += images
        folder.mkdir(parents=True, exist_ok=True)
        whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("text", "free")}
        write_whole(path, save(whole))
    return Exits(**load_file(path))


def tell_exits(gates: Gates, data: Exits, recipe: Recipe, seed: int) -> Callable[[int], torch.Tensor]:
    """The loss of a step: cross-entropy of "stay" and "leave", nats, sum over the gates of the mean over some pairs."""
    order = torch.randperm(len(data.free), generator=torch.Generator().manual_seed(0))
    # The tokens of an answer resemble those of the next; of prompts, seven are more than there are questions to each.
    others = data.free[order] if recipe.per_token else data.free.roll(7, dims=0)
    free = others if recipe.shuffled else data.free

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 4, step])
        at = torch.from_numpy(rng.choice(len(free), min(recipe.batch, len(free)), replace=False))
        every = range(free.shape[1])
        return torch.stack([cross_entropy(gates(data.text[at, n], n), free[at, n].long()) for n in every]).sum()

    return loss


def train_gates(
    vlm: Any, folder: Path, recipe: Recipe, seed: int, report: Callable[[str], None] = print
) -> tuple[Gates, dict[str, Any]]:
    """The gates, and what is told of their training."""
    kind = StepGates if recipe.per_token else Gates
    gates = kind.untrained(seed=seed, width=vlm.model.config.get_text_config().hidden_size, gates=vlm.n_layers - 1)
    loss = tell_exits(gates, exit_data(vlm, recipe, folder), recipe, seed)
    told = {"steps": recipe.steps, "rate": recipe.rate}
    return gates, {"fit": told | fit(gates, loss, state_folder(folder, vlm, seed, recipe), report=report, **told)}
