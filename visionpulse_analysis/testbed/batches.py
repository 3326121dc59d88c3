"""Training batches: several questions about one image share its tokens.

A row is ``prefix | conversation 1 | conversation 2 | ...``. The prefix (system prompt and image) is seen by all
conversations, which do not see one another and all start at the position after the image: the loss is that of
separate conversations, at the price of one image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from visionpulse_analysis.testbed.model import PATCH
from visionpulse_analysis.testbed.questions import Question, TokenTruth, ask, reason
from visionpulse_analysis.testbed.scenes import Scene, generate
from visionpulse_analysis.testbed.tokens import SYSTEM_PROMPT, vocabulary

KINDS = ("template", "colour", "shape", "row", "column", "verdict", "number", "answer")
_IDS = {word: index for index, word in enumerate(vocabulary())}


@dataclass
class Batch:
    """Tensors of one training step; rows are images, L the padded row length.

    ids [row, L] int64; positions [3, row, L] int64; visible [row, 1, L, L] bool (query, key); target [row, L] int64
    (the next token, -100 where there is no loss); kind [row, L] int64 index into ``KINDS`` of the target;
    pixels [patch, values]; grid_thw [row, 3]; prefix: length of the shared prefix, the same in all rows.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    target: torch.Tensor
    kind: torch.Tensor
    pixels: torch.Tensor
    grid_thw: torch.Tensor
    prefix: int

    def to(self, device: str | torch.device) -> Batch:
        moved = {name: value.to(device) for name, value in vars(self).items() if name != "prefix"}
        return Batch(**moved, prefix=self.prefix)


def patches_of(image: np.ndarray) -> np.ndarray:
    """Normalised patches [patch, 3 * PATCH * PATCH] of an image, as the image processor makes them."""
    rows, cols = image.shape[0] // PATCH, image.shape[1] // PATCH
    values = image.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1.0
    blocks = values.reshape(3, rows, PATCH, cols, PATCH).transpose(1, 3, 0, 2, 4)
    return blocks.reshape(rows * cols, -1)


def make_batch(
    rng: np.random.Generator,
    scene_seeds: list[int],
    cells: int,
    tasks: dict[str, float],
    questions_per_image: int,
) -> Batch:
    """Draw scenes and questions and pack them.

    tasks : task name -> weight. The same generator state always gives the same batch.
    """
    names, weights = list(tasks), np.array(list(tasks.values()))
    rows = []
    for seed in scene_seeds:
        scene = generate(seed, cells)
        drawn = rng.choice(names, size=questions_per_image, p=weights / weights.sum())
        asked = [ask(scene, str(task), rng) for task in drawn]
        rows.append((scene, [(q, reason(scene, q, rng)) for q in asked]))
    return pack(rows)


def pack(rows: list[tuple[Scene, list[tuple[Question, list[TokenTruth]]]]]) -> Batch:
    """Pack scenes of one size with their questions and traces into one batch."""
    packed = [_pack_row(scene, conversations) for scene, conversations in rows]
    length = max(len(row["ids"]) for row in packed)
    size = len(packed)
    ids = np.full((size, length), _IDS["<|pad|>"])
    positions = np.zeros((3, size, length), np.int64)
    target = np.full((size, length), -100)
    kind = np.zeros((size, length), np.int64)
    segment = np.full((size, length), -1)
    for r, row in enumerate(packed):
        n = len(row["ids"])
        ids[r, :n], target[r, :n], kind[r, :n], segment[r, :n] = (
            row["ids"],
            row["target"],
            row["kind"],
            row["segment"],
        )
        positions[:, r, :n] = row["positions"]
    segments = torch.from_numpy(segment)
    same = segments[:, :, None] == segments[:, None, :]
    shared = (segments == 0)[:, None, :] & (segments >= 0)[:, :, None]
    visible = (same | shared) & torch.ones(length, length, dtype=torch.bool).tril()
    images = [scene.render() for scene, _ in rows]
    sides = [[1, image.shape[0] // PATCH, image.shape[1] // PATCH] for image in images]
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        visible[:, None],
        torch.from_numpy(target),
        torch.from_numpy(kind),
        torch.from_numpy(np.concatenate([patches_of(image) for image in images])),
        torch.tensor(sides),
        prefix=int((packed[0]["segment"] == 0).sum()),
    )


def _pack_row(scene: Scene, conversations: list[tuple[Question, list[TokenTruth]]]) -> dict[str, np.ndarray]:
    side = scene.cells * 2
    head = f"<|im_start|> system {SYSTEM_PROMPT} <|im_end|> <|im_start|> user <|vision_start|>".split()
    words = head + ["<|image_pad|>"] * side**2
    start = len(head)
    y, x = np.divmod(np.arange(side**2), side)
    positions = [np.tile(np.arange(start), (3, 1)), start + np.stack([np.zeros_like(y), y, x])]
    target, kind, segment = [-100] * len(words), [0] * len(words), [0] * len(words)
    for number, (question, trace) in enumerate(conversations, start=1):
        asked = f"<|vision_end|> {question.text} <|im_end|> <|im_start|> assistant <think>".split()
        said = [t.word for t in trace]
        words += asked + said[:-1]
        n = len(asked) + len(said) - 1
        target += [-100] * (len(asked) - 1) + [_IDS[word] for word in said]
        kind += [0] * (len(asked) - 1) + [KINDS.index(t.kind) for t in trace]
        segment += [number] * n
        positions.append(np.tile(start + side + np.arange(n), (3, 1)))
    return {
        "ids": np.array([_IDS[word] for word in words]),
        "target": np.array(target),
        "kind": np.array(kind),
        "segment": np.array(segment),
        "positions": np.concatenate(positions, axis=1),
    }
