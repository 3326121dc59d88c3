"""Prefill and decode with patches really taken out: every layer runs, by hand, on the tokens that are left.

`slow_forward` asks a `Rule` before each layer; the rules of the methods are in slow_rules.py, slow_visipruner.py and
slow_sparsevlm.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb


@dataclass
class Inputs:
    """What enters layer 0 for one unpadded prompt and the answer so far, and what the layers need beside it.

    states [token, width]; cos, sin [token, dim]; deepstack: each [patch, width], added after the first layers; places:
    int64 [patch]; prompt: number of prompt tokens; pictures: int64 [patch], which one each is of; question: int64,
    places of the question's words; cells: int64 [patch, 2], row and column.
    """

    states: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    deepstack: list[torch.Tensor]
    places: torch.Tensor
    prompt: int
    pictures: torch.Tensor
    question: torch.Tensor
    cells: torch.Tensor | None = None


class Layer:
    """One layer just before it runs, on the tokens alive: ``tokens`` int64, their places in the whole sequence."""

    def __init__(self, number: int, block, inputs: Inputs, tokens: torch.Tensor, states: torch.Tensor):
        self.number, self.block, self.inputs, self.tokens, self.states = number, block, inputs, tokens, states
        self.place = {token: at for at, token in enumerate(tokens.tolist())}  # of the whole, among those alive
        attention, entering = block.self_attn, block.input_layernorm(states)[None]
        shape = (1, len(states), -1, attention.head_dim)
        self.query = attention.q_norm(attention.q_proj(entering).view(shape)).transpose(1, 2)
        self.key = attention.k_norm(attention.k_proj(entering).view(shape)).transpose(1, 2)
        self.value = attention.v_proj(entering).view(shape).transpose(1, 2)
        self.group = self.query.shape[1] // self.key.shape[1]

    @cached_property
    def patches(self) -> list[int]:
        """Numbers of the patches alive."""
        return [patch for patch, place in enumerate(self.inputs.places.tolist()) if place in self.place]

    def among(self, places: torch.Tensor) -> list[int]:
        """Where some places of the whole sequence are among the tokens alive."""
        return [self.place[place] for place in places.tolist()]

    @cached_property
    def at(self) -> list[int]:
        """Where the patches alive are among the tokens alive."""
        return self.among(self.inputs.places[self.patches])

    def values(self) -> torch.Tensor:
        """[head, token, dim]."""
        return self.value[0].repeat_interleave(self.group, 0)

    def weights(self, rope: bool = True, seen: torch.Tensor | None = None) -> torch.Tensor:
        """Softmax attention [head, query, key] among the tokens alive; ``seen`` bool [query, key], or causal."""
        query, key = self.query, self.key
        if rope:
            at = self.tokens
            query, key = apply_rotary_pos_emb(query, key, self.inputs.cos[None, at], self.inputs.sin[None, at])
        logits = query[0] @ key[0].repeat_interleave(self.group, 0).transpose(1, 2) * self.block.self_attn.scaling
        hidden = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1) if seen is None else ~seen
        return logits.masked_fill(hidden, -torch.inf).softmax(-1)

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
        patches = set(self.inputs.places.tolist())
        return torch.tensor([t < self.inputs.prompt and t not in patches for t in self.tokens.tolist()])


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
    pictures = torch.tensor(prompt.grid.image)
    deepstack, grid = list(vision.deepstack_features), prompt.grid
    cells = torch.tensor([[int(row), int(col)] for row, col in zip(grid.row, grid.col, strict=True)])
    return Inputs(states, cos[0], sin[0], deepstack, places, len(listed), pictures, spoken, cells)


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
