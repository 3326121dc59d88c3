"""Training batches: several questions about one image share its tokens.

A row is ``prefix | conversation 1 | conversation 2 | ...``. The prefix (system prompt and image) is seen by all
conversations, which do not see one another and all start at the position after the image: the loss is that of
separate conversations, at the price of one image.

A drill is a batch of conversations without their images, with a loss only on the words that the text before them
determines. It teaches copying and comparing words at a fraction of the price.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from visionpulse_analysis.testbed.model import PATCH
from visionpulse_analysis.testbed.questions import TASKS, Question, TokenTruth, ask, reason
from visionpulse_analysis.testbed.scenes import Scene, generate
from visionpulse_analysis.testbed.tokens import SYSTEM_PROMPT, vocabulary

KINDS = ("template", "colour", "shape", "row", "column", "verdict", "number", "answer")
READ_OFF_THE_IMAGE = ("colour", "shape", "row", "column", "number")
ALL_TASKS = (*TASKS, "describe")
DRILL_TASKS = {"find": 0.4, "compare": 0.6}
DRILL_TARGET_WEIGHT = 0.3  # a searcher who mostly meets other objects first, so that "no" is as common as "yes"
_IDS = {word: index for index, word in enumerate(vocabulary())}


@dataclass
class Batch:
    """Tensors of one training step; rows are images, L the padded row length.

    ids [row, L] int64; positions [3, row, L] int64; visible [row, 1, L, L] bool (query, key); target [row, L] int64
    (the next token, -100 where there is no loss); kind and task [row, L] int64 index into ``KINDS`` and ``ALL_TASKS``
    of the target; pixels [patch, values] and grid_thw [row, 3], None in a drill; prefix: length of the shared prefix,
    the same in all rows.
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


def make_drill(rng: np.random.Generator, scene_seeds: list[int]) -> Batch:
    """Draw small scenes and pack one question about each, without images. The same generator state, the same batch."""
    names, weights = list(DRILL_TASKS), list(DRILL_TASKS.values())
    rows = []
    for seed in scene_seeds:
        scene = generate(seed, 8, int(rng.integers(2, 6)))
        question = ask(scene, str(rng.choice(names, p=weights)), rng)
        rows.append((None, [(question, reason(scene, question, rng, target_weight=DRILL_TARGET_WEIGHT))]))
    return pack(rows)


def pack(rows: list[tuple[Scene | None, list[tuple[Question, list[TokenTruth]]]]]) -> Batch:
    """Pack scenes of one size with their questions and traces into one batch; a drill where no row has a scene."""
    packed = [_pack_row(scene, conversations) for scene, conversations in rows]
    length = max(len(row["ids"]) for row in packed)
    size = len(packed)
    ids = np.full((size, length), _IDS["<|pad|>"])
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
    images = [scene.render() for scene, _ in rows if scene is not None]
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


def _pack_row(scene: Scene | None, conversations: list[tuple[Question, list[TokenTruth]]]) -> dict[str, np.ndarray]:
    side = 0 if scene is None else scene.cells * 2
    blind = READ_OFF_THE_IMAGE if scene is None else ()
    head = f"<|im_start|> system {SYSTEM_PROMPT} <|im_end|> <|im_start|> user <|vision_start|>".split()
    words = head + ["<|image_pad|>"] * side**2
    start = len(head)
    y, x = np.indices((side, side)).reshape(2, -1)
    positions = [np.tile(np.arange(start), (3, 1)), start + np.stack([np.zeros_like(y), y, x])]
    target = [-100] * len(words)
    kind, task, segment = ([0] * len(words) for _ in range(3))
    for number, (question, trace) in enumerate(conversations, start=1):
        asked = f"<|vision_end|> {question.text} <|im_end|> <|im_start|> assistant <think>".split()
        said = [t.word for t in trace]
        words += asked + said[:-1]
        n = len(asked) + len(said) - 1
        target += [-100] * (len(asked) - 1) + [-100 if t.kind in blind else _IDS[t.word] for t in trace]
        kind += [0] * (len(asked) - 1) + [KINDS.index(t.kind) for t in trace]
        task += [ALL_TASKS.index(question.task)] * n
        segment += [number] * n
        positions.append(np.tile(start + side + np.arange(n), (3, 1)))
    return {
        "ids": np.array([_IDS[word] for word in words]),
        "target": np.array(target),
        "kind": np.array(kind),
        "task": np.array(task),
        "segment": np.array(segment),
        "positions": np.concatenate(positions, axis=1),
    }
