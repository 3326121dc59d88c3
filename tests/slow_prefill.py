"""Prefill and decode with patches really taken out: every layer runs, by hand, on the tokens that are left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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

    def run(self, mix: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.matmul) -> torch.Tensor:
        """States [token, width] after the layer; ``mix`` makes [head, query, dim] of weights and values."""
        mixed = mix(self.weights(), self.values())
        states = self.states + self.block.self_attn.o_proj(mixed.transpose(0, 1).flatten(1))
        return states + self.block.mlp(self.block.post_attention_layernorm(states))


class Rule:
    """A method stated slowly, for one prompt: ``before`` says which patches of a layer stay, ``run`` runs the layer."""

    def before(self, layer: Layer) -> list[int]:
        """Numbers of the patches, among those alive, that exist from this layer on."""
        return layer.patches

    def run(self, layer: Layer) -> torch.Tensor:
        """States [token, width] after the layer."""
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
def slow_forward(vlm, inputs: Inputs, rule: Rule) -> tuple[torch.Tensor, list[list[int]]]:
    """Logprobs [word] after the last token, and the patches that each layer ran with."""
    language = vlm.model.model.language_model
    tokens, states, ran = torch.arange(len(inputs.states)), inputs.states, []
    for number, block in enumerate(language.layers):
        ran.append(rule.before(Layer(number, block, inputs, tokens, states)))
        gone = set(inputs.places.tolist()) - set(inputs.places[ran[-1]].tolist())
        stay = [at for at, token in enumerate(tokens.tolist()) if token not in gone]
        tokens, states = tokens[stay], states[stay]
        layer = Layer(number, block, inputs, tokens, states)
        states = rule.run(layer).clone()
        if number < len(inputs.deepstack):
            states[layer.at] += inputs.deepstack[number][layer.patches]
    return torch.log_softmax(vlm.model.lm_head(language.norm(states[-1])), -1), ran


class Replay(Rule):
    """Patches per layer given beforehand."""

    def __init__(self, ran: list[list[int]]):
        self.ran = ran

    def before(self, layer: Layer) -> list[int]:
        return self.ran[layer.number]


def best(scores: torch.Tensor, among: list[int], k: int) -> list[int]:
    """The ``k`` of ``among`` with the highest scores, in order."""
    order = sorted(range(len(among)), key=lambda at: (-float(scores[at]), at))
    return sorted(among[at] for at in order[:k])


class SlowFastV(Rule):
    def __init__(self, pruner, seed):
        self.pruner, self.seed = pruner, seed

    def before(self, layer):
        if layer.number == self.pruner.layer - 1:
            self.scores = layer.weights(self.pruner.rope)[:, -1][:, layer.at].mean(0)
        if layer.number != self.pruner.layer:
            return layer.patches
        return best(self.scores, layer.patches, round(self.pruner.budget * len(layer.patches)))


class SlowVTW(Rule):
    def __init__(self, pruner, seed):
        self.layer = 4 if pruner.layer is None else pruner.layer

    def before(self, layer):
        return [] if layer.number == self.layer else layer.patches


class SlowPyramid(Rule):
    def __init__(self, pruner, seed):
        self.layers, self.ratio = pruner.layers or (2, 4, 6), pruner.ratio

    def before(self, layer):
        if layer.number not in self.layers:
            return layer.patches
        k = max(1, int(len(layer.inputs.places) * self.ratio ** (self.layers.index(layer.number) + 1)))
        return best(layer.weights()[:, -1][:, layer.at].mean(0), layer.patches, k)


class SlowDivPrune(Rule):
    def __init__(self, pruner, seed):
        self.budget = pruner.budget

    def before(self, layer):
        if layer.number:
            return layer.patches
        vectors = [vector / vector.norm() for vector in layer.states[layer.at]]
        apart = [[1 - float(a @ b) for b in vectors] for a in vectors]
        n = len(vectors)
        chosen = [max(range(n), key=lambda i: min(apart[i][j] for j in range(n) if j != i))]
        while len(chosen) < max(1, round(self.budget * n)):
            rest = [i for i in range(n) if i not in chosen]
            chosen.append(max(rest, key=lambda i: min(apart[i][j] for j in chosen)))
        return sorted(chosen)
