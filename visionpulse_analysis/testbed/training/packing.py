"""Training batches of any world: several conversations about one image share its tokens.

A row is ``prefix | conversation 1 | conversation 2 | ...``. The prefix (system prompt and image) is seen by all
conversations, which do not see one another and all start at the position after the image: the loss is that of
separate conversations, at the price of one image.

A drill is a batch of conversations without their images, with a loss only on the words that the text before them
determines. It teaches copying and comparing words at a fraction of the price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from visionpulse_analysis._util.later import torch

PATCH = 8  # pixels per patch side, in every world


class Asked(Protocol):
    """A question, of a task of its language."""

    @property
    def task(self) -> str: ...

    @property
    def text(self) -> str: ...


class Said(Protocol):
    """A token of a trace, of a kind of its language."""

    @property
    def word(self) -> str: ...

    @property
    def kind(self) -> str: ...


Conversation = tuple[Asked, Sequence[Said]]


@dataclass(frozen=True)
class Language:
    """What the questions and traces of a world are made of.

    words : in id order. kinds, tasks : of tokens and of questions; a token that is an answer has the kind "answer".
    from_image : the kinds that are read off the image, on which a drill has no loss. weights : of kinds in the loss,
    1 where not given.
    """

    words: tuple[str, ...]
    system_prompt: str
    kinds: tuple[str, ...]
    tasks: tuple[str, ...]
    from_image: tuple[str, ...]
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if shared := set(self.kinds) & set(self.tasks):
            raise ValueError(f"scores go by name, and these are kinds of token and tasks at once: {sorted(shared)}")

    @cached_property
    def ids(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}


@dataclass
class Batch:
    """Tensors of one training step; rows are images, L the padded row length.

    ids [row, L] int64; positions [3, row, L] int64; visible [row, 1, L, L] bool (query, key); target [row, L] int64
    (the next token, -100 where there is no loss); kind and task [row, L] int64 index into the language's kinds and
    tasks, of the target; pixels [patch, values] and grid_thw [row, 3], None in a drill; prefix: length of the shared
    prefix, the same in all rows.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    target: torch.Tensor
    kind: torch.Tensor
    task: torch.Tensor
    pixels: torch.Tensor | None
    grid_thw: torch.Tensor | None
    prefix: int

    def to(self, device: str | torch.device) -> Batch:
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)})


def patches_of(image: np.ndarray) -> np.ndarray:
    """Normalised patches [patch, 3 * PATCH * PATCH] of an image, as the image processor makes them."""
    rows, cols = image.shape[0] // PATCH, image.shape[1] // PATCH
    values = image.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1.0
    blocks = values.reshape(3, rows, PATCH, cols, PATCH).transpose(1, 3, 0, 2, 4)
    return blocks.reshape(rows * cols, -1)


def pack_images(rows: Sequence[tuple[np.ndarray | None, Sequence[Conversation]]], language: Language) -> Batch:
    """Pack images of one size, uint8 [row_px, col_px, 3], and their conversations; a drill where no row has one."""
    packed = [_pack_row(image, conversations, language) for image, conversations in rows]
    length = max(len(row["ids"]) for row in packed)
    size = len(packed)
    ids = np.full((size, length), language.ids["<|pad|>"])
    positions = np.zeros((3, size, length), np.int64)
    target = np.full((size, length), -100)
    kind, task = np.zeros((2, size, length), np.int64)
    segment = np.full((size, length), -1)
    for r, row in enumerate(packed):
        n = len(row["ids"])
        for name, whole in (("ids", ids), ("target", target), ("kind", kind), ("task", task), ("segment", segment)):
            whole[r, :n] = row[name]
        positions[:, r, :n] = row["positions"]
    segments = torch.from_numpy(segment)
    same = segments[:, :, None] == segments[:, None, :]
    shared = (segments == 0)[:, None, :] & (segments >= 0)[:, :, None]
    visible = (same | shared) & torch.ones(length, length, dtype=torch.bool).tril()
    images = [image for image, _ in rows if image is not None]
    sides = [[1, image.shape[0] // PATCH, image.shape[1] // PATCH] for image in images]
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        visible[:, None],
        torch.from_numpy(target),
        torch.from_numpy(kind),
        torch.from_numpy(task),
        torch.from_numpy(np.concatenate([patches_of(image) for image in images])) if images else None,
        torch.tensor(sides) if images else None,
        prefix=int((packed[0]["segment"] == 0).sum()),
    )


def _pack_row(
    image: np.ndarray | None, conversations: Sequence[Conversation], language: Language
) -> dict[str, np.ndarray]:
    rows, cols = (0, 0) if image is None else (image.shape[0] // PATCH, image.shape[1] // PATCH)
    blind = language.from_image if image is None else ()
    head = f"<|im_start|> system {language.system_prompt} <|im_end|> <|im_start|> user <|vision_start|>".split()
    words = head + ["<|image_pad|>"] * (rows * cols)
    start = len(head)
    y, x = np.indices((rows, cols)).reshape(2, -1)
    positions = [np.tile(np.arange(start), (3, 1)), start + np.stack([np.zeros_like(y), y, x])]
    target = [-100] * len(words)
    kind, task, segment = ([0] * len(words) for _ in range(3))
    for number, (question, trace) in enumerate(conversations, start=1):
        asked = f"<|vision_end|> {question.text} <|im_end|> <|im_start|> assistant <think>".split()
        said = [t.word for t in trace]
        words += asked + said[:-1]
        n = len(asked) + len(said) - 1
        target += [-100] * (len(asked) - 1) + [-100 if t.kind in blind else language.ids[t.word] for t in trace]
        kind += [0] * (len(asked) - 1) + [language.kinds.index(t.kind) for t in trace]
        task += [language.tasks.index(question.task)] * n
        segment += [number] * n
        positions.append(np.tile(start + max(rows, cols) + np.arange(n), (3, 1)))
    return {
        "ids": np.array([language.ids[word] for word in words]),
        "target": np.array(target),
        "kind": np.array(kind),
        "task": np.array(task),
        "segment": np.array(segment),
        "positions": np.concatenate(positions, axis=1),
    }
