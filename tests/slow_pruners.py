"""Random batches for the tests of the pruners, and each rule stated a second time: in numpy loops, row by row."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from visionpulse_analysis.pruners import Layout, View, VisionPulse

LAYERS, HEADS = 5, 4

VISIONPULSE = [
    VisionPulse.five_percent(),
    VisionPulse.ten_percent(),
    VisionPulse(temperature=3.0, budget_min=0.02, budget_max=0.9),
    VisionPulse(0, budget=0.29),
    VisionPulse(LAYERS - 1, temperature=6.0, budget_max=0.9),
    VisionPulse(temperature=2.0, budget_max=0.5, reuse_previous=True),
    VisionPulse(temperature=2.0, budget_max=0.5, hysteresis=3.0),
    VisionPulse(granularity="block", block_size=8, temperature=2.0, budget_max=0.5),
    VisionPulse(granularity="block", block_size=4, budget=0.3, hysteresis=1.5),
    VisionPulse(granularity="block", block_size=8, temperature=4.0, budget_max=0.6, reuse_previous=True),
]


@dataclass
class Batch:
    """Left-padded rows: ``places[row]`` are unpadded positions of the patches, ``lengths[row]`` the prompt lengths."""

    places: list[np.ndarray]
    lengths: list[int]

    @property
    def width(self) -> int:
        return max(self.lengths)

    def layout(self) -> Layout:
        widest = max(map(len, self.places))
        patches = torch.zeros(len(self.places), widest, dtype=torch.bool)
        places = torch.zeros(len(self.places), widest, dtype=torch.int64)
        starts = torch.tensor([self.width - length for length in self.lengths])
        for row, own in enumerate(self.places):
            patches[row, : len(own)] = True
            places[row, : len(own)] = torch.from_numpy(own) + starts[row]
        question = torch.zeros(len(self.places), self.width, dtype=torch.bool)
        question[:, -1] = True
        return Layout(patches, places, starts, LAYERS, LAYERS // 2, list(range(10, 10 + len(self.places))), question)


def random_batch(rng: np.random.Generator, rows: int = 3) -> Batch:
    """Rows with one or two images of different sizes and text around them."""
    places, lengths = [], []
    for _ in range(rows):
        before, between, after, first, second = rng.integers((1, 1, 1, 9, 0), (9, 6, 9, 60, 40))
        end = before + first + between
        places.append(np.concatenate([np.arange(before, before + first), np.arange(end, end + second)]))
        lengths.append(int(end + second + after))
    return Batch(places, lengths)


def random_logits(rng: np.random.Generator, batch: Batch, steps: int, scale: float = 6.0) -> list[list[torch.Tensor]]:
    """Logits [step][layer] -> float32 [row, head, key], -inf at padding; multiples of 1/4: exact sums, common ties."""
    result = []
    for step in range(steps):
        layers = []
        for _ in range(LAYERS):
            values = rng.normal(size=(len(batch.places), HEADS, batch.width + step)) * scale
            values = (np.round(values * 4) / 4).astype(np.float32)
            for row, length in enumerate(batch.lengths):
                values[row, :, : batch.width - length] = -np.inf
            layers.append(torch.from_numpy(values))
        result.append(layers)
    return result


def view_of(step: int, layer: int, logits: torch.Tensor, layout: Layout, shown: torch.Tensor | None = None) -> View:
    """A view with these logits, float32 [row, head, key]: keys are unit vectors, queries hold the logits."""
    keys = torch.eye(logits.shape[2]).expand(*logits.shape[:2], -1, -1)
    finite = logits.masked_fill(logits == -torch.inf, 0.0)
    mask = (logits > -torch.inf).all(dim=1)[:, None, None]
    return View(step, layer, layout, finite[:, :, None], keys, keys, mask, 1.0, shown)


def run(pruner, layout: Layout, logits: list[list[torch.Tensor]]):
    """Walk through a decode. Returns the selection after each step's record: dicts of what each layer saw."""
    selection, steps, shown, left = pruner.start(layout), [], None, []
    for layer in range(LAYERS):
        view = view_of(0, layer, logits[0][layer], layout, shown)
        selection.observe_prefill(view)
        new = selection.visible_prefill(view)
        if new is not None:
            shown = new if shown is None else new & shown
        left.append(shown)
    for step in range(1, len(logits)):
        views = [view_of(step, layer, logits[step][layer], layout, left[layer]) for layer in range(LAYERS)]
        seen = [selection.visible(view) for view in views]
        steps.append({"seen": seen, "kept": selection.kept, "mass": selection.mass, "budget": selection.budget})
    return steps


def row_logits(logits: torch.Tensor, batch: Batch, row: int) -> np.ndarray:
    """float64 [head, key] of one row without its padding."""
    return logits[row, :, batch.width - batch.lengths[row] :].double().numpy()


def slow_top(scores: list[float], k: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda patch: (-scores[patch], patch))[:k])


def slow_k(budget: float, n: int) -> int:
    """Floor in exact decimal arithmetic: 0.29 means 29/100."""
    return max(1, min(n, int(Fraction(repr(float(budget))) * n)))


def slow_mass(logits: np.ndarray, places: np.ndarray, tau: float) -> float:
    masses = []
    for head in logits:
        weights = [np.exp((value - head.max()) / tau) for value in head]
        masses.append(sum(weights[place] for place in places) / sum(weights))
    return float(np.float32(max(masses)))


def slow_share(mass: float, pruner) -> float:
    if pruner.budget is not None:
        return pruner.budget
    return min(max(mass, pruner.budget_min), pruner.budget_max)


def slow_tokens(logits: np.ndarray, places: np.ndarray, pruner, previous: set[int]) -> tuple[float, set[int]]:
    """Mass and kept patches of one row at one step."""
    mass = slow_mass(logits, places, pruner.temperature)
    scores = [sum(head[place] for head in logits) / len(logits) for place in places]
    scores = [score + (pruner.hysteresis if patch in previous else 0.0) for patch, score in enumerate(scores)]
    return mass, slow_top(scores, slow_k(slow_share(mass, pruner), len(places)))


def slow_blocks(logits: np.ndarray, places: np.ndarray, pruner, previous: set[int]) -> tuple[float, set[int]]:
    size, where = pruner.block_size, {int(place): patch for patch, place in enumerate(places)}
    blocks = [range(at, min(at + size, logits.shape[1])) for at in range(0, logits.shape[1], size)]
    shares = []
    for head in logits:
        weights = [np.exp((max(head[key] for key in block) - head.max()) / pruner.temperature) for block in blocks]
        shares.append([weight / sum(weights) for weight in weights])
    pure = [len(block) == size and all(key in where for key in block) for block in blocks]
    mass = max(sum(share for share, is_pure in zip(head, pure, strict=True) if is_pure) for head in shares)
    ceiling = -int(-Fraction(repr(float(slow_share(mass, pruner)))) * len(places) / size // 1)
    scores = {}
    for number, block in enumerate(blocks):
        if pure[number]:
            again = any(where[key] in previous for key in block)
            bonus = np.exp(pruner.hysteresis) if again else 1.0
            scores[number] = bonus * sum(head[number] for head in shares) / len(shares)
    best = sorted(scores, key=lambda number: (-scores[number], number))[: max(1, ceiling)]
    kept = {where[key] for number in best for key in blocks[number]}
    mixed = {where[key] for number, block in enumerate(blocks) if not pure[number] for key in block if key in where}
    return mass, kept | mixed


def as_sets(kept: torch.Tensor) -> list[set[int]]:
    return [set(np.flatnonzero(row).tolist()) for row in kept.numpy()]


def slow_weights(logits: np.ndarray, places: np.ndarray, among: set[int] | None = None) -> np.ndarray:
    """Head-mean softmax at the patches, float64 [patch]; patches outside ``among`` are not there."""
    logits = logits.copy()
    if among is not None:
        gone = [place for patch, place in enumerate(places) if patch not in among]
        logits[:, gone] = -np.inf
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0)[places]


def slow_dycoke(pruner, weights: list[np.ndarray]) -> list[set[int]]:
    """What each decode step reads; weights [step][patch] of the layer before."""
    everything, read, chosen = set(range(len(weights[0]))), [], set()
    for step, now in enumerate(weights):
        before = weights[step - 1]
        if step and now @ before / np.sqrt((now @ now) * (before @ before)) >= pruner.threshold:
            read.append(everything if pruner.unpruned_when_steady else chosen)
        else:
            chosen = slow_top(list(now), slow_k(pruner.budget, len(now)))
            read.append(chosen)
    return read


def slow_st3(pruner, logits: list[list[np.ndarray]], places: np.ndarray) -> list[list[set[int]]]:
    """What each step (prefill first) reads at each layer; logits [step][layer] -> [head, key]."""
    n, start = len(places), LAYERS // 4 if pruner.start_layer is None else pruner.start_layer
    held, steps = [set(range(n)) for _ in range(LAYERS)], []
    first: np.ndarray | None = None
    for step, layers in enumerate(logits):
        x = min(1, step / pruner.horizon)
        shape = {"cosine": np.cos(np.pi * x) / 2 + 0.5, "linear": 1 - x, "exponential": np.exp(-3 * x), "none": 1}
        above, scores, seen = set(range(n)), first, []
        for layer in range(LAYERS):
            reductions = (layer - start) // pruner.stride + 1 if layer >= start else 0
            share = (1 - pruner.rate) ** reductions * max(pruner.floor, shape[pruner.decay])
            among = held[layer] & above
            k = min(len(among), max(1, int(np.ceil(share * n - 1e-9))))
            kept = among
            if scores is not None:
                kept = {patch for _, patch in sorted((-scores[patch], patch) for patch in among)[:k]}
            held[layer] = above = kept
            scores = slow_weights(layers[layer], places, kept)
            first = scores if layer == 0 else first
            seen.append(kept)
        steps.append(seen)
    return steps


class SlowWeighing:
    """A model that generates greedily, its eager attention written out head by head and logits of patches weighed anew.

    Parameters
    ----------
    vlm : VLM
        Its language part must compute a plain softmax.
    prompt : Prompt
    weigh : callable
        (layer, head, float64 logits [patch], float64 logprobs [word] of the step before) -> float64 logits [patch].

    Attributes
    ----------
    tokens : list of int. logprobs : list of float, of each token. rows : float64 [step, layer, head, patch].
    """

    def __init__(self, vlm, prompt, weigh, steps: int, monkeypatch):
        self.places, self.weigh = prompt.grid.position.copy(), weigh
        self.before: np.ndarray | None = None
        self.tokens, self.logprobs, rows = [], [], []
        decoder = vlm.model.get_decoder()
        inputs, past = vlm.family.batch([prompt], padding=0), None
        position = vlm.family.positions(vlm.model, inputs)
        kernel = decoder.config._attn_implementation
        module = sys.modules[type(decoder.layers[0].self_attn).__module__]
        vlm.model.set_attn_implementation({"text_config": "eager"})
        with monkeypatch.context() as patch, torch.inference_mode():
            patch.setattr(module, "eager_attention_forward", self.attend)
            for _ in range(steps):
                self.seen = []
                out = vlm.model(**inputs, position_ids=position, past_key_values=past, use_cache=True)
                past, logprobs = out.past_key_values, torch.log_softmax(out.logits[0, -1].double(), dim=0)
                self.before = logprobs.numpy()
                token = int(logprobs.argmax())
                self.tokens.append(token)
                self.logprobs.append(float(logprobs[token]))
                rows.append(np.stack(self.seen))
                inputs, position = {"input_ids": torch.tensor([[token]])}, position[..., -1:] + 1
        vlm.model.set_attn_implementation({"text_config": kernel})
        self.rows = np.stack(rows)

    def attend(self, module, query, key, value, mask, scaling, **options):
        heads, length = query.shape[1:3]
        shared = heads // key.shape[1]
        output, rows = torch.zeros(1, length, heads, value.shape[3]), []
        for head in range(heads):
            keys, values = key[0, head // shared].double(), value[0, head // shared].double()
            logits = query[0, head].double() @ keys.T * scaling
            if mask is not None:
                logits = logits + mask[0, 0, :, : len(keys)]
            if self.before is not None:  # prefill is left as it is
                new = self.weigh(module.layer_idx, head, logits[-1, self.places].numpy(), self.before)
                logits[-1, self.places] = torch.from_numpy(new)
            weights = torch.softmax(logits, dim=1)
            rows.append(weights[-1, self.places].numpy())
            output[0, :, head] = (weights @ values).float()
        self.seen.append(np.stack(rows))
        return output, None


def slow_adaptvis(pruner):
    """`AdaptVis` for `SlowWeighing`."""

    def weigh(layer: int, head: int, logits: np.ndarray, logprobs: np.ndarray) -> np.ndarray:
        sure = max(np.exp(one) for one in logprobs) >= pruner.threshold
        return logits * (pruner.sharp if sure else pruner.smooth)

    return weigh
