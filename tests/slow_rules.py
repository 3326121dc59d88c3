"""The rules of the pruners that act in prefill, a second time and slowly; two long ones have files of their own."""

from __future__ import annotations

import math

import torch
from slow_prefill import Rule, best


class SlowFastV(Rule):
    """The strongest in the layer before, at the last token, stay."""

    def before(self, layer):
        if layer.number == self.pruner.layer - 1:
            self.scores = layer.weights(self.pruner.rope)[:, -1][:, layer.at].mean(0)
        if layer.number != self.pruner.layer:
            return layer.patches
        return best(self.scores, layer.patches, round(self.pruner.budget * len(layer.patches)))


class SlowVTW(Rule):
    """None stays from one layer on."""

    def before(self, layer):
        return [] if layer.number == (4 if self.pruner.layer is None else self.pruner.layer) else layer.patches


class SlowPyramid(Rule):
    """At some layers the same share of what is left stays: the strongest at the last token of that layer."""

    def before(self, layer):
        layers = self.pruner.layers or (2, 4, 6)
        if layer.number not in layers:
            return layer.patches
        boundary = layers.index(layer.number)
        share = self.pruner.ratios[boundary] if self.pruner.ratios else self.pruner.ratio ** (boundary + 1)
        k = max(1, int(len(layer.inputs.places) * share))
        return best(layer.weights()[:, -1][:, layer.at].mean(0), layer.patches, k)


class SlowShortV(Rule):
    """Patches pass through some layers unchanged."""

    def run(self, layer):
        after = layer.run()
        if layer.number in (range(3, 8) if self.pruner.layers is None else self.pruner.layers):
            after[layer.at] = layer.states[layer.at]
        return after


class SlowArchitecture(Rule):
    """ViCA or YOPO stated over token pairs, with weights after the softmax, and with an MLP of fewer neurons."""

    def is_blind(self, number):
        if self.pruner.name == "vica":
            return number not in (self.pruner.layers or (0, 1, 2, 3))
        return number >= (4 if self.pruner.cut is None else self.pruner.cut)

    def run(self, layer):
        pruner, number, inputs = self.pruner, layer.number, layer.inputs
        blind, frozen = self.is_blind(number), pruner.name == "vica" and pruner.frozen
        if pruner.name == "vica":
            window, lost, share = None, [], 1.0
        else:
            window, share = pruner.window, pruner.mlp_share
            lost = [head for head, active in enumerate(pruner.heads[number]) if not active] if pruner.heads else []
        patch_at = dict(zip(layer.at, layer.patches, strict=True))
        n = len(layer.tokens)
        seen = torch.zeros(n, n, dtype=torch.bool)
        for query in range(n):
            for key in range(n):
                a, b = patch_at.get(query), patch_at.get(key)
                if a is None:
                    seen[query, key] = key <= query and not (blind and b is not None)
                elif b is None or window is None:
                    seen[query, key] = key <= query
                else:
                    assert inputs.cells is not None, "a window needs to know where patches lie"
                    apart = [abs(int(inputs.cells[a][axis] - inputs.cells[b][axis])) for axis in (0, 1)]
                    seen[query, key] = max(apart) <= window // 2 and inputs.pictures[a] == inputs.pictures[b]
        weights = layer.weights(seen=seen)
        for head in lost:
            weights[head, :, layer.at] = 0
            weights[head, layer.at] = 0
        layer.row = torch.zeros(len(inputs.places))
        layer.row[layer.patches] = weights[:, -1].mean(0)[layer.at]
        mixed = (weights @ layer.values()).transpose(0, 1).flatten(1)
        states = layer.states + layer.block.self_attn.o_proj(mixed)
        entering, mlp = layer.block.post_attention_layernorm(states), layer.block.mlp
        after = states + mlp(entering)
        few = round(share * mlp.gate_proj.out_features)
        neurons = mlp.act_fn(entering @ mlp.gate_proj.weight[:few].T) * (entering @ mlp.up_proj.weight[:few].T)
        after[layer.at] = (states + neurons @ mlp.down_proj.weight[:, :few].T)[layer.at]
        if frozen:
            after[layer.at] = layer.states[layer.at]
        return after


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


class BeforeModel(Rule):
    """Chooses before layer 0, from unit vectors of the patches and of the words."""

    def before(self, layer):
        if layer.number:
            return layer.patches
        inputs = layer.inputs
        patches = set(inputs.places.tolist())
        text = [t for t in range(inputs.prompt) if t not in patches]
        words = inputs.question if getattr(self.pruner, "prompt", "") == "question" else torch.tensor(text)
        n, self.pictures = len(layer.at), inputs.pictures.tolist()
        return self.choose(layer.states[layer.at], layer.states[words], max(1, round(self.pruner.budget * n)))


class SlowDivPrune(BeforeModel):
    """Those far from each other stay."""

    def choose(self, patches, words, k):
        return add_farthest(directions(patches), [], k)


class SlowZSPAPrune(BeforeModel):
    """A core like the prompt, and what is far from it."""

    def choose(self, patches, words, k):
        prompt = directions(words.double().mean(0)[None])[0]
        units = directions(patches)
        like = torch.stack([unit @ prompt for unit in units])
        core = best(like, list(range(len(units))), round(self.pruner.core * k))
        while self.pruner.similarity == "sum" and len(core) < k:
            rest = [i for i in range(len(units)) if i not in core]
            core = [*core, min(rest, key=lambda i: float(sum(units[i] @ units[j] for j in core)))]
        return add_farthest(units, core, k)


class SlowCDPruner(BeforeModel):
    """The greedy choice by determinants themselves, picture by picture."""

    def choose(self, patches, words, k):
        units, spoken = torch.stack(directions(patches)), directions(words)
        like = (units @ torch.stack(spoken).T).mean(1)
        like = -like if self.pruner.flip else like
        like = (like - like.min() + 1e-6) / (like.max() - like.min() + 1e-6)
        kernel = like[:, None] * (units @ units.T) * like[None]
        return sorted(i for picture in set(self.pictures) for i in self.of_one(picture, kernel))

    def of_one(self, picture, kernel):
        own, chosen = [i for i, one in enumerate(self.pictures) if one == picture], []
        while len(chosen) < max(1, round(self.pruner.budget * len(own))):
            rest = [i for i in own if i not in chosen]
            chosen.append(max(rest, key=lambda i: float(torch.logdet(kernel[[*chosen, i]][:, [*chosen, i]]))))
        return chosen


def directions(states: torch.Tensor) -> list[torch.Tensor]:
    """Unit vectors of the rows, float64."""
    return [vector / vector.norm() for vector in states.double()]


def add_farthest(units: list[torch.Tensor], chosen: list[int], k: int) -> list[int]:
    """Add the one whose nearest chosen one is farthest; begin with the one whose nearest other is."""
    apart = (1 - torch.stack(units) @ torch.stack(units).T).tolist()
    n = range(len(units))
    chosen = chosen or [max(n, key=lambda i: min(apart[i][j] for j in n if j != i))]
    while len(chosen) < k:
        chosen = [*chosen, max((i for i in n if i not in chosen), key=lambda i: min(apart[i][j] for j in chosen))]
    return sorted(chosen)
