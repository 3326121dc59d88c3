"""Prefill and decode with patches really taken out: every layer runs, by hand, on the tokens that are left."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb


@dataclass
class Inputs:
    """What enters layer 0 for one unpadded prompt and the answer so far, and what the layers need beside it.

    states [token, width]; cos, sin [token, dim]; deepstack: each [patch, width], added after the first layers; places:
    int64 [patch]; prompt: number of prompt tokens; question: int64, places of the question's words.
    """

    states: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    deepstack: list[torch.Tensor]
    places: torch.Tensor
    prompt: int
    question: torch.Tensor


class Layer:
    """One layer just before it runs, on the tokens alive: ``tokens`` int64, their places in the whole sequence."""

    def __init__(self, number: int, block, inputs: Inputs, tokens: torch.Tensor, states: torch.Tensor):
        self.number, self.block, self.inputs, self.tokens, self.states = number, block, inputs, tokens, states
        attention, entering = block.self_attn, block.input_layernorm(states)[None]
        shape = (1, len(states), -1, attention.head_dim)
        self.query = attention.q_norm(attention.q_proj(entering).view(shape)).transpose(1, 2)
        self.key = attention.k_norm(attention.k_proj(entering).view(shape)).transpose(1, 2)
        self.value = attention.v_proj(entering).view(shape).transpose(1, 2)
        self.group = self.query.shape[1] // self.key.shape[1]

    @property
    def patches(self) -> list[int]:
        """Numbers of the patches alive."""
        return [patch for patch, place in enumerate(self.inputs.places) if place in self.tokens]

    def among(self, places: torch.Tensor) -> list[int]:
        """Where some places of the whole sequence are among the tokens alive."""
        return [self.tokens.tolist().index(place) for place in places.tolist()]

    @property
    def at(self) -> list[int]:
        """Where the patches alive are among the tokens alive."""
        return self.among(self.inputs.places[self.patches])

    def values(self) -> torch.Tensor:
        """[head, token, dim]."""
        return self.value[0].repeat_interleave(self.group, 0)

    def weights(self, rope: bool = True) -> torch.Tensor:
        """Softmax attention [head, query, key] among the tokens alive."""
        query, key = self.query, self.key
        if rope:
            at = self.tokens
            query, key = apply_rotary_pos_emb(query, key, self.inputs.cos[None, at], self.inputs.sin[None, at])
        logits = query[0] @ key[0].repeat_interleave(self.group, 0).transpose(1, 2) * self.block.self_attn.scaling
        future = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
        return logits.masked_fill(future, -torch.inf).softmax(-1)

    def run(self, edit: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
        """States [token, width] after the layer; ``edit`` changes the weights [head, query, key] after the softmax."""
        weights = self.weights() if edit is None else edit(self.weights())
        self.row = torch.zeros(len(self.inputs.places))
        self.row[self.patches] = weights[:, -1].mean(0)[self.at]
        mixed = weights @ self.values()
        states = self.states + self.block.self_attn.o_proj(mixed.transpose(0, 1).flatten(1))
        return states + self.block.mlp(self.block.post_attention_layernorm(states))

    @property
    def is_prefill(self) -> bool:
        return int(self.tokens[-1]) == self.inputs.prompt - 1

    def is_prompt_text(self) -> torch.Tensor:
        """Which tokens alive are text of the prompt: bool [token]."""
        return torch.tensor([t < self.inputs.prompt and t not in self.inputs.places for t in self.tokens.tolist()])


class Rule:
    """A method stated slowly, for one prompt: ``before`` says which patches of a layer stay, ``run`` runs the layer."""

    def __init__(self, pruner, seed: int):
        self.pruner, self.seed = pruner, seed

    def before(self, layer: Layer) -> list[int]:
        """Numbers of the patches, among those alive, that exist from this layer on."""
        return layer.patches

    def run(self, layer: Layer) -> torch.Tensor:
        """States [token, width] after the layer, which now has only those patches."""
        return layer.run()


@torch.inference_mode()
def inputs_of(vlm, picture, question: str, answer: list[int], words: list[int]) -> Inputs:
    """Embed prompt and answer (token ids) with the model's own parts; ``words``: token ids of the question."""
    model, prompt = vlm.model.model, vlm.prompt(picture, question)
    ids = torch.cat([prompt.ids, torch.tensor(answer, dtype=torch.int64)])
    grid_thw = prompt.inputs["image_grid_thw"]
    vision = model.visual(prompt.inputs["pixel_values"], grid_thw=grid_thw)
    states = model.language_model.embed_tokens(ids).clone()
    places = torch.tensor(prompt.grid.position)
    states[places] = vision.pooler_output
    kinds = (ids == vlm.model.config.image_token_id).int()[None]
    position, _ = model.get_rope_index(ids[None], mm_token_type_ids=kinds, image_grid_thw=grid_thw)
    cos, sin = model.language_model.rotary_emb(states[None], position)
    listed = prompt.ids.tolist()
    start = max(at for at in range(len(listed)) if listed[at : at + len(words)] == words)
    spoken = torch.arange(start, start + len(words))
    return Inputs(states, cos[0], sin[0], list(vision.deepstack_features), places, len(listed), spoken)


@torch.inference_mode()
def slow_forward(vlm, inputs: Inputs, rule: Rule, ran: list[list[int]] | None = None):
    """Logprobs [word] after the last token, the patches that each layer ran with, and its row [layer, patch].

    ``ran`` gives the patches of an earlier prefill; without it the rule chooses them.
    """
    language = vlm.model.model.language_model
    tokens, states = torch.arange(len(inputs.states)), inputs.states
    chosen, rows = [], []
    for number, block in enumerate(language.layers):
        chosen.append(rule.before(Layer(number, block, inputs, tokens, states)) if ran is None else ran[number])
        gone = set(inputs.places.tolist()) - set(inputs.places[chosen[-1]].tolist())
        stay = [at for at, token in enumerate(tokens.tolist()) if token not in gone]
        tokens, states = tokens[stay], states[stay]
        layer = Layer(number, block, inputs, tokens, states)
        states = rule.run(layer).clone()
        rows.append(layer.row)
        if number < len(inputs.deepstack):
            states[layer.at] += inputs.deepstack[number][layer.patches]
    logprobs = torch.log_softmax(vlm.model.lm_head(language.norm(states[-1])), -1)
    return logprobs, chosen, torch.stack(rows).numpy()


def best(scores: torch.Tensor, among: list[int], k: int) -> list[int]:
    """The ``k`` of ``among`` with the highest scores, in order."""
    order = sorted(range(len(among)), key=lambda at: (-float(scores[at]), at))
    return sorted(among[at] for at in order[:k])


class SlowFastV(Rule):
    def before(self, layer):
        if layer.number == self.pruner.layer - 1:
            self.scores = layer.weights(self.pruner.rope)[:, -1][:, layer.at].mean(0)
        if layer.number != self.pruner.layer:
            return layer.patches
        return best(self.scores, layer.patches, round(self.pruner.budget * len(layer.patches)))


class SlowVTW(Rule):
    def before(self, layer):
        return [] if layer.number == (4 if self.pruner.layer is None else self.pruner.layer) else layer.patches


class SlowPyramid(Rule):
    def before(self, layer):
        layers = self.pruner.layers or (2, 4, 6)
        if layer.number not in layers:
            return layer.patches
        k = max(1, int(len(layer.inputs.places) * self.pruner.ratio ** (layers.index(layer.number) + 1)))
        return best(layer.weights()[:, -1][:, layer.at].mean(0), layer.patches, k)


def directions(states: torch.Tensor) -> list[torch.Tensor]:
    return [vector / vector.norm() for vector in states.double()]


def add_farthest(units: list[torch.Tensor], chosen: list[int], k: int) -> list[int]:
    """Add the one whose nearest chosen one is farthest; begin with the one whose nearest other is."""
    apart = [[1 - float(a @ b) for b in units] for a in units]
    n = range(len(units))
    chosen = chosen or [max(n, key=lambda i: min(apart[i][j] for j in n if j != i))]
    while len(chosen) < k:
        chosen = [*chosen, max((i for i in n if i not in chosen), key=lambda i: min(apart[i][j] for j in chosen))]
    return sorted(chosen)


class BeforeModel(Rule):
    """Chooses before layer 0, from unit vectors of the patches and of the words."""

    def before(self, layer):
        if layer.number:
            return layer.patches
        inputs = layer.inputs
        text = [t for t in range(inputs.prompt) if t not in inputs.places]
        words = inputs.question if getattr(self.pruner, "prompt", "") == "question" else torch.tensor(text)
        n = len(layer.at)
        return self.choose(layer.states[layer.at], layer.states[words], max(1, round(self.pruner.budget * n)))


class SlowDivPrune(BeforeModel):
    def choose(self, patches, words, k):
        return add_farthest(directions(patches), [], k)


class SlowZSPAPrune(BeforeModel):
    def choose(self, patches, words, k):
        prompt = directions(words.double().mean(0)[None])[0]
        units = directions(patches)
        core = best(
            torch.stack([unit @ prompt for unit in units]), list(range(len(units))), round(self.pruner.core * k)
        )
        while self.pruner.similarity == "sum" and len(core) < k:
            rest = [i for i in range(len(units)) if i not in core]
            core = [*core, min(rest, key=lambda i: float(sum(units[i] @ units[j] for j in core)))]
        return add_farthest(units, core, k)


class SlowCDPruner(BeforeModel):
    """The greedy choice by determinants themselves."""

    def choose(self, patches, words, k):
        units, spoken = torch.stack(directions(patches)), directions(words)
        like = torch.stack([sum(unit @ word for word in spoken) / len(spoken) for unit in units])
        like = -like if self.pruner.flip else like
        like = (like - like.min() + 1e-6) / (like.max() - like.min() + 1e-6)
        kernel = like[:, None] * (units @ units.T) * like[None]
        chosen = []
        while len(chosen) < k:
            rest = [i for i in range(len(units)) if i not in chosen]
            chosen.append(max(rest, key=lambda i: float(torch.logdet(kernel[[*chosen, i]][:, [*chosen, i]]))))
        return sorted(chosen)


class SlowShortV(Rule):
    def run(self, layer):
        after = layer.run()
        if layer.number in (range(3, 8) if self.pruner.layers is None else self.pruner.layers):
            after[layer.at] = layer.states[layer.at]
        return after


class SlowVisiPruner(Rule):
    def __init__(self, pruner, seed):
        super().__init__(pruner, seed)
        self.shallow = 2 if pruner.shallow_layers is None else pruner.shallow_layers
        self.left = self.filter_layer = self.exit_layer = None
        self.rests = 0

    def before(self, layer):
        return layer.patches if self.left is None else self.left

    def run(self, layer):
        if "middle" in self.pruner.stages and layer.number > self.shallow and layer.is_prefill:
            self.judge(layer)
        return layer.run(lambda weights: self.shallow_weights(layer, weights))

    def shallow_weights(self, layer, weights):
        if "shallow" not in self.pruner.stages or layer.number >= self.shallow:
            return weights
        weights, columns, n = weights.clone(), torch.tensor(layer.at), len(layer.at)
        for query in range(weights.shape[1]):
            if query in layer.at:
                if layer.number == 0 or not self.pruner.patches_see:
                    weights[:, query, columns] = 0
            elif layer.tokens[query] < layer.inputs.prompt:
                seen = weights[:, query, columns].sum(-1)
                half = layer.number == 0 and self.pruner.first_layer == "half"
                weights[:, query, columns[: n // 2] if half else columns] = 0
                if layer.number == 0 and not half:
                    weights[:, query, columns[self.place_of_all(n)]] = seen
        return weights

    def place_of_all(self, n):
        if self.pruner.first_layer == "merge":
            return 0
        return int(np.argmin(np.random.default_rng([self.seed, 0]).random(n)))

    def judge(self, layer):
        row, values = layer.weights()[:, -1], layer.values()
        output = (row[..., None] * values).sum(1).flatten()
        cosines, strong = [], []
        for patch, at in zip(layer.patches, layer.at, strict=True):
            part = (row[:, at, None] * values[:, at]).flatten()
            without = output - part
            cosines.append(float(without @ output / (without.norm() * output.norm())))
            relative = self.pruner.relative_threshold
            if (
                part.norm() > self.pruner.token_threshold
                if relative is None
                else part.norm() / output.norm() > relative
            ):
                strong.append(patch)
        if not cosines:
            return
        if self.filter_layer is None:
            if min(cosines) < self.pruner.layer_threshold:
                self.filter_layer, self.left = layer.number, strong
        elif "deep" in self.pruner.stages and self.exit_layer is None:
            if min(cosines) >= self.pruner.exit_threshold:
                self.rests += 1
            elif self.pruner.exit_rule == "consecutive":
                self.rests = 0
            if self.rests == self.pruner.exit_after:
                self.exit_layer, self.left = layer.number, []


class SlowSparseVLM(Rule):
    def __init__(self, pruner, seed):
        super().__init__(pruner, seed)
        self.layers, self.left = pruner.layers or (1, 2, 4), None
        self.merged: dict[int, dict[int, torch.Tensor]] = {}  # after each layer, the states of the centres

    def before(self, layer):
        if layer.number == 0:
            inputs = layer.inputs
            words = list(range(max(inputs.places.tolist()) + 1, inputs.prompt))
            patches = layer.states[layer.at]
            like = torch.stack([(layer.states[words] @ patch).softmax(0) for patch in patches]).mean(0)
            self.raters = [word for word, share in zip(words, like, strict=True) if share > like.mean()]
        return layer.patches if self.left is None else self.left

    def run(self, layer):
        after = layer.run()
        if layer.number in self.layers and layer.is_prefill:
            self.prune(layer, after)
        for centre, state in self.merged.get(layer.number, {}).items():
            after[layer.among(layer.inputs.places[[centre]])] = state
        return after

    def prune(self, layer, after):
        pruner, alive, n = self.pruner, layer.patches, len(layer.inputs.places)
        weights = layer.weights().mean(0)[layer.among(torch.tensor(self.raters))][:, layer.at]
        scores = weights.mean(0)
        if pruner.amount == "shares":
            k = min(len(alive), round(pruner.shares[self.layers.index(layer.number)] * n))
        else:
            rank = int(
                (torch.linalg.svdvals(weights) > weights.shape[1] * 1.2e-7 * torch.linalg.svdvals(weights)[0]).sum()
            )
            k = (
                int(pruner.scale * rank)
                if pruner.amount == "rank"
                else len(alive) - int(pruner.scale * (len(alive) - rank))
            )
            k = len(alive) if rank == len(alive) else max(0, min(len(alive) - 1, k))
        kept = best(scores, alive, k)
        dropped = [patch for patch in alive if patch not in kept]
        self.left = kept
        if not dropped or pruner.recycled == 0:
            return
        count = min(len(dropped), int(pruner.recycled * len(dropped)) + 1)
        recycled = best(scores[[alive.index(patch) for patch in dropped]], dropped, count)
        ordered = sorted(recycled, key=lambda patch: (-float(scores[alive.index(patch)]), patch))
        points = after[layer.among(layer.inputs.places[ordered])].double()
        clusters = slow_clusters(points.numpy(), count // 10 + 1)
        means = {ordered[centre]: points[members].mean(0).float() for centre, members in clusters.items()}
        self.merged[layer.number] = means
        self.left = sorted([*kept, *means])


def slow_clusters(points: np.ndarray, count: int) -> dict[int, list[int]]:
    """Centre -> members, by density peaks."""
    n, width = points.shape
    far = [[float(np.sqrt(((points[i] - points[j]) ** 2).sum() / width)) for j in range(n)] for i in range(n)]
    density = [float(np.exp(-np.mean(np.square(sorted(far[i])[:count])))) for i in range(n)]
    worth = []
    for i in range(n):
        denser = [far[i][j] for j in range(n) if density[j] > density[i]]
        worth.append(density[i] * (min(denser) if denser else max(map(max, far))))
    centres = sorted(range(n), key=lambda i: -worth[i])[:count]
    members = {centre: [centre] for centre in centres}
    for i in range(n):
        if i not in centres:
            members[min(centres, key=lambda centre: far[i][centre])].append(i)
    return members


class SlowST3(Rule):
    """The part of prefill; the steps are in slow_pruners.py."""

    def before(self, layer):
        pruner, n = self.pruner, len(layer.inputs.places)
        start = 2 if pruner.start_layer is None else pruner.start_layer
        times = max(0, 1 + (layer.number - start) // pruner.stride) if layer.number >= start else 0
        k = max(1, math.ceil(n * (1 - pruner.rate) ** times - 1e-9))
        return layer.patches if k >= len(layer.patches) else best(self.scores, layer.patches, k)

    def run(self, layer):
        self.scores = layer.weights()[:, -1][:, layer.at].mean(0)
        return layer.run()
