"""Canvases: answers of a fixed length of which some words are masked, as a masked-diffusion model is trained on them.

An answer sees its whole prompt and itself, in both directions. A prompt sees neither the answer nor what comes behind:
it is read as the stock model reads it, so that its keys can be cached (the prefix mask of LaViDa). The state before a
place predicts the word there, masked or not (the shift of Dream): an autoregressive model has learned just that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import cross_entropy, pad, scaled_dot_product_attention

from visionpulse_analysis.attention.routing import Call, intercept
from visionpulse_analysis.testbed.heads.pairs import straight_answer
from visionpulse_analysis.testbed.scenes.questions import ANSWER_MARK, END_MARK, Question, TokenTruth, ask
from visionpulse_analysis.testbed.scenes.scene import Scene, generate
from visionpulse_analysis.testbed.training.batches import ALL_TASKS, LANGUAGE, pack
from visionpulse_analysis.testbed.training.packing import Batch
from visionpulse_analysis.testbed.training.scoring import hidden_states

PLACES = {"find": 20, "compare": 44}  # of a canvas, by task; a little more than the answer takes
SHORT = 4  # places of one without thoughts
MASK = "<|unk|>"  # of the vocabulary, and in no text of this world
FLOOR = 1e-3  # least share that is masked
DIRECT = "direct"


@dataclass(frozen=True)
class Canvas:
    """A question, its answer filled up with end marks, and whether it is answered without thoughts.

    Attributes
    ----------
    said : the tokens of the canvas, as many as `PLACES` says or, if ``direct``, `SHORT`.
    """

    question: Question
    said: tuple[TokenTruth, ...]
    direct: bool


def canvas_of(scene: Scene, question: Question, direct: bool) -> Canvas:
    """The canvas of a question: the way straight to what is asked for, which the bundled model goes as well.

    Raises
    ------
    ValueError
        The answer does not fit, or there is no canvas for questions of this task.
    """
    if question.task not in PLACES:
        raise ValueError(f"there are canvases for {', '.join(PLACES)}, not for {question.task!r}")
    trace, places = straight_answer(scene, question), SHORT if direct else PLACES[question.task]
    if direct:
        trace = trace[1 + next(n for n, token in enumerate(trace) if token.word == ANSWER_MARK) :]
    if len(trace) > places:
        raise ValueError(f"an answer of {len(trace)} words does not fit a canvas of {places}")
    return Canvas(question, (*trace, *[TokenTruth(END_MARK)] * (places - len(trace))), direct)


def pack_canvases(rows: Sequence[tuple[Scene, Sequence[Canvas]]]) -> tuple[Batch, torch.Tensor]:
    """Pack scenes of one size with their canvases: a batch with nothing masked, and where canvases are, bool [row, L].

    The batch's ``visible`` lets canvases see themselves in both directions; ``target`` is the word behind each place.
    """
    # One word more, since what a row ends with is left out of it.
    end, thought = [TokenTruth(END_MARK)], [TokenTruth(ANSWER_MARK)]
    batch = pack([(s, [(one.question, [*thought * one.direct, *one.said, *end]) for one in said]) for s, said in rows])
    answer, ids = torch.zeros_like(batch.ids, dtype=torch.bool), LANGUAGE.ids
    answer[:, 1:] = batch.ids[:, 1:] == batch.target[:, :-1]  # where nothing is predicted the target is no id
    answer[:, 1:] &= (batch.ids[:, :-1] != ids["<think>"]) | (batch.ids[:, 1:] != ids[ANSWER_MARK])  # that is asked
    batch.target[:, :-1][~answer[:, 1:]] = -100
    batch.target[:, -1] = -100
    back = batch.visible.transpose(2, 3) & answer[:, None, None] & answer[:, None, :, None]
    batch.visible |= back
    return batch, answer


def mask_pairs(
    batch: Batch, answer: torch.Tensor, canvases: Sequence[Canvas], rng: np.random.Generator
) -> torch.Tensor:
    """Mask each canvas and, in the next one, which is the same, all the other words; changes ``batch``.

    Each pair draws t uniformly and masks each word with p = t (1 - FLOOR) + FLOOR, at least one of them.

    Returns
    -------
    float32 [row, L]
        The weight of the prediction made at each place: 1 / (p * words of the canvas * canvases), 0 where none counts.
    """
    hidden, weights = [], []
    for canvas in canvases[::2]:
        n, share = len(canvas.said), rng.random() * (1 - FLOOR) + FLOOR
        hit = rng.random(n) < share
        hit[rng.integers(n)] = True
        other = max(1 - share, FLOOR)
        hidden += [hit, ~hit]
        weights += [hit / (share * n * len(canvases)), ~hit / (other * n * len(canvases))]
    masked, weight = torch.zeros_like(answer), torch.zeros(answer.shape)
    masked[answer] = torch.from_numpy(np.concatenate(hidden))
    weight[answer] = torch.from_numpy(np.concatenate(weights)).float()
    batch.ids[masked] = LANGUAGE.ids[MASK]
    batch.target[:, :-1][~masked[:, 1:]] = -100
    return pad(weight[:, 1:], (0, 1))


def draw_batch(
    rng: np.random.Generator, seeds: Sequence[int], cells: int, tasks: dict[str, float], each: int, direct: float
) -> tuple[Batch, torch.Tensor]:
    """Draw scenes with ``each`` questions, a share ``direct`` of them answered at once: a masked batch, its weights.

    All scenes of a batch are asked questions of the same tasks, so that no row is padded.
    """
    names, share = list(tasks), np.array(list(tasks.values()))
    asked = rng.choice(names, size=each, p=share / share.sum())
    at_once = rng.random(each) < direct
    rows = []
    for seed in seeds:
        scene = generate(seed, cells)
        said = [
            canvas_of(scene, ask(scene, str(task), rng), bool(one)) for task, one in zip(asked, at_once, strict=True)
        ]
        rows.append((scene, [canvas for canvas in said for _ in range(2)]))
    batch, answer = pack_canvases(rows)
    return batch, mask_pairs(batch, answer, [canvas for _, said in rows for canvas in said], rng)


def conversation_attention(batch: Batch):
    """Attention of packed rows that computes what a conversation may see, the prefix and itself, and nothing else."""
    prefix, length = batch.prefix, batch.ids.shape[1]
    starts = (batch.ids == LANGUAGE.ids["<|vision_end|>"]).nonzero()
    aligned = bool((starts[:, 1].view(len(batch.ids), -1) == starts[: len(starts) // len(batch.ids), 1]).all())
    bounds = [*starts[: len(starts) // len(batch.ids), 1].tolist(), length] if aligned else [prefix, length]

    def attend(call: Call):
        query, key, value, mask, scaling = call.query, call.key, call.value, call.mask, call.scaling
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        seen = key[:, :, :prefix], value[:, :, :prefix]
        parts = [scaled_dot_product_attention(query[:, :, :prefix], *seen, is_causal=True, scale=scaling)]
        for start, end in pairwise(bounds):
            own = [
                torch.cat([first, whole[:, :, start:end]], dim=2)
                for first, whole in zip(seen, (key, value), strict=True)
            ]
            rows = mask[:, :, start:end]
            may = torch.cat([rows[..., :prefix], rows[..., start:end]], dim=3)
            parts.append(scaled_dot_product_attention(query[:, :, start:end], *own, attn_mask=may, scale=scaling))
        return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None

    return attend


def diffusion_loss(model, batch: Batch, weights: torch.Tensor) -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
    """Weighted cross-entropy of the masked words (LLaDA-V), nats, and (right, total) of them by kind and task."""
    with intercept(model, conversation_attention(batch)):
        hidden = hidden_states(model, batch)
    chosen = batch.target != -100
    logits, target = model.lm_head(hidden[chosen]).float(), batch.target[chosen]
    loss = (cross_entropy(logits, target, reduction="none") * weights[chosen].to(logits.device)).sum()
    right, kind, task = logits.argmax(-1) == target, batch.kind[chosen], batch.task[chosen]
    groups = {name: kind == index for index, name in enumerate(LANGUAGE.kinds)}
    groups |= {name: (task == index) & (kind > 0) for index, name in enumerate(ALL_TASKS)}
    return loss, {name: (int((right & who).sum()), int(who.sum())) for name, who in groups.items()}
