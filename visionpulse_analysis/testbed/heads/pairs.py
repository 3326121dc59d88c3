"""Questions about generated scenes, with what each layer of the frozen model makes of patches, words and answers.

The answer that is fed in is the one which the model would greedily give: a searcher who goes straight to what is asked
for. It is right in nearly all cases (`data/README.md`), and no decode is needed to have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from visionpulse_analysis.attention.routing import Call, intercept, watch_layers
from visionpulse_analysis.testbed.scenes.questions import TASKS, Question, TokenTruth, ask, reason
from visionpulse_analysis.testbed.scenes.scene import Scene, generate
from visionpulse_analysis.testbed.training.batches import LANGUAGE, pack
from visionpulse_analysis.testbed.training.packing import Batch
from visionpulse_analysis.testbed.training.scoring import hidden_states
from visionpulse_analysis.testbed.training.vision import patch_labels

STRAIGHT = 1e9  # weight of the target beside that of any other object
FIRST_HEAD_SEED = 950_000_000  # scenes that heads are trained on: not those of the model, nor of any study
FIRST_CHECK_SEED = 520_000  # validation scenes of heads


def straight_answer(scene: Scene, question: Question) -> list[TokenTruth]:
    """The trace that goes to what is asked for without a detour."""
    return reason(scene, question, np.random.default_rng(scene.seed), target_weight=STRAIGHT)


def questions_of(scene: Scene, count: int) -> list[Question]:
    """``count`` questions about a scene, the tasks in turn; the seed of the scene fixes them."""
    rng = np.random.default_rng([scene.seed, 6])
    return [ask(scene, TASKS[number % len(TASKS)], rng) for number in range(count)]


@dataclass
class Pairs:
    """Questions about pictures of one size.

    Attributes
    ----------
    states : float [image, patch, width]
        Entering the layer asked for.
    image, task : int64 [pair]
    words, asked : float [pair, word, width] and bool [pair, word]
        The question's words as they enter that layer, and which are there.
    prompt_seen, answer_seen : float [pair, layer, patch]
        Attention that a patch receives from the rows of question and template, and of the answer, sums over heads and
        rows.
    words_seen : float [pair, layer, patch]
        The same from the question's words alone, mean over heads and words.
    named : bool [pair, patch]
        Patches of the objects that the question is about.
    """

    states: torch.Tensor
    image: torch.Tensor
    words: torch.Tensor
    asked: torch.Tensor
    prompt_seen: torch.Tensor
    answer_seen: torch.Tensor
    words_seen: torch.Tensor
    named: torch.Tensor
    task: torch.Tensor

    def __len__(self) -> int:
        return len(self.image)

    def to_dict(self) -> dict[str, torch.Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Places:
    """Which tokens of a packed batch are what: bool [row, L] each, and the number of the conversation, int64 [row, L].

    words : of a question. prompt : all of a conversation up to the token that the answer follows. answer : its rest.
    """

    conversation: torch.Tensor
    words: torch.Tensor
    prompt: torch.Tensor
    answer: torch.Tensor

    @classmethod
    def of(cls, batch: Batch) -> Places:
        """Read off the marks of the template."""
        ids, mark = batch.ids, LANGUAGE.ids
        number = (ids == mark["<|vision_end|>"]).cumsum(1)
        ended, thinking = (ids == mark["<|im_end|>"]).cumsum(1), (ids == mark["<think>"]).cumsum(1)
        inside = (number > 0) & (ids != mark["<|pad|>"])
        answer = inside & (thinking == number) & (ids != mark["<think>"])
        words = inside & (ended == number) & (ids != mark["<|vision_end|>"])
        return cls(number, words, inside & ~answer, answer)


class Seen:
    """Takes up the states that enter one layer, and the attention that patches receive from conversations in all."""

    def __init__(self, batch: Batch, layer: int):
        self.batch, self.layer, self.places = batch, layer, Places.of(batch)
        self.patches = batch.ids[0] == LANGUAGE.ids["<|image_pad|>"]  # the same in all rows
        self.states: Any = None
        self.prompt: list[torch.Tensor] = []  # [row, conversation, patch] for each layer, as the next two
        self.answer: list[torch.Tensor] = []
        self.words: list[torch.Tensor] = []

    def enter(self, layer: int, block: Any, states: torch.Tensor) -> None:
        if layer == self.layer:
            self.states = states

    def leave(self, layer: int, states: torch.Tensor) -> None:
        """Nothing to take up."""

    def __call__(self, call: Call) -> Any:
        start, groups = self.batch.prefix, call.query.shape[1] // call.key.shape[1]
        key = call.key.repeat_interleave(groups, dim=1)
        logits = (call.query[:, :, start:] @ key.transpose(2, 3)) * call.scaling
        weights = torch.softmax(logits.masked_fill(~call.mask[:, :, start:], -torch.inf), dim=-1)
        received = weights[..., self.patches].sum(dim=1)  # [row, q, patch]
        number, count = self.places.conversation[:, start:], int(self.places.conversation.max())
        places = self.places
        for rows, found in ((places.prompt, self.prompt), (places.answer, self.answer), (places.words, self.words)):
            owner = torch.where(rows[:, start:], number, 0)
            of_each = torch.nn.functional.one_hot(owner, count + 1)[..., 1:].to(received)
            found.append(torch.einsum("rqp,rqc->rcp", received, of_each))
        return call.run()


@torch.no_grad()
def see(vlm: Any, rows: Sequence[tuple[Scene, Sequence[Question]]], layer: int) -> Pairs:
    """Ask the model questions about scenes of one size, as many about each, and take up what it makes of them.

    Parameters
    ----------
    vlm : VLM of the bundled architecture and language
    rows : list of (scene, questions)
    layer : int, whose entering states are taken
    """
    batch = pack([(scene, [(one, straight_answer(scene, one)) for one in asked]) for scene, asked in rows])
    seen = Seen(batch.to(vlm.model.device), layer)
    with intercept(vlm.model, seen), watch_layers(vlm.model, seen):
        hidden_states(vlm.model, seen.batch)
    words, asked = [], []
    for row, (_, questions) in enumerate(rows):
        for number in range(1, len(questions) + 1):
            at = seen.places.words[row] & (seen.places.conversation[row] == number)
            words.append(seen.states[row, at])
            asked.append(torch.ones(int(at.sum()), dtype=torch.bool))
    pad, heads = torch.nn.utils.rnn.pad_sequence, vlm.model.config.get_text_config().num_attention_heads
    count, counts = len(rows[0][1]), torch.tensor([len(one) for one in asked])
    return Pairs(
        seen.states[:, seen.patches],
        torch.arange(len(rows)).repeat_interleave(count),
        pad(words, batch_first=True),
        pad(asked, batch_first=True),
        torch.stack(seen.prompt, dim=2).flatten(0, 1),
        torch.stack(seen.answer, dim=2).flatten(0, 1),
        torch.stack(seen.words, dim=2).flatten(0, 1) / (heads * counts[:, None, None]),
        torch.stack([_named(scene, one) for scene, questions in rows for one in questions]),
        torch.tensor([TASKS.index(one.task) for _, questions in rows for one in questions]),
    )


def _named(scene: Scene, question: Question) -> torch.Tensor:
    """Patches of the objects that a question is about, bool [patch]: those that the straight answer names."""
    cell = torch.from_numpy(patch_labels(scene)[:, 2:])
    places = {(scene.objects[one].row, scene.objects[one].col) for one in question.targets}
    return torch.tensor([tuple(one) in places for one in cell.tolist()])


def joined(parts: Sequence[Pairs]) -> Pairs:
    """The pairs of several batches of pictures of one size, as one."""
    first, pictures = parts[0], 0
    width = max(part.words.shape[1] for part in parts)
    moved = []
    for part in parts:
        spare = width - part.words.shape[1]
        pad = torch.nn.functional.pad
        moved.append(
            replace(
                part,
                image=part.image + pictures,
                words=pad(part.words, (0, 0, 0, spare)),
                asked=pad(part.asked, (0, spare)),
            )
        )
        pictures += len(part.states)
    return type(first)(**{f.name: torch.cat([getattr(part, f.name) for part in moved]) for f in fields(first)})


def make_pairs(
    vlm: Any, first_seed: int, images: int, cells: int, *, layer: int, each: int = 6, at_once: int = 8
) -> Pairs:
    """Pairs of scenes with consecutive seeds, ``each`` questions about every one of them."""
    scenes = [generate(first_seed + number, cells) for number in range(images)]
    rows = [(scene, questions_of(scene, each)) for scene in scenes]
    return joined([see(vlm, rows[start : start + at_once], layer) for start in range(0, images, at_once)])
