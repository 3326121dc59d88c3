"""The rule of SparseVLM, a second time and slowly: its merging by density peaks, too."""

from __future__ import annotations

import numpy as np
import torch
from slow_prefill import Rule, best


class SlowSparseVLM(Rule):
    """``raters``: the words that judge; ``left``: the patches that stay, centres of merged ones among them."""

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
        """Choose what stays, and merge a part of the rest into centres."""
        pruner, alive, n = self.pruner, layer.patches, len(layer.inputs.places)
        weights = layer.weights().mean(0)[layer.among(torch.tensor(self.raters))][:, layer.at]
        scores = weights.mean(0)
        if pruner.amount == "shares":
            k = min(len(alive), round(pruner.shares[self.layers.index(layer.number)] * n))
        else:
            sizes = torch.linalg.svdvals(weights)
            rank = int((sizes > weights.shape[1] * 1.2e-7 * sizes[0]).sum())
            lost = int(pruner.scale * (len(alive) - rank))
            k = int(pruner.scale * rank + pruner.bias) if pruner.amount == "rank" else len(alive) - lost
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
