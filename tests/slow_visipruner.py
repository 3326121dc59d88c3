"""The rule of VisiPruner, a second time and slowly, patch by patch."""

from __future__ import annotations

import numpy as np
import torch
from slow_prefill import Rule


class SlowVisiPruner(Rule):
    """``left``: the patches that stay, once filtered; ``rests``: layers since then that no patch changes."""

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
        """The prompt looks past the patches; in layer 0 its text gives all to one patch, or sees half of them."""
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
        """The patch that stands for all."""
        if self.pruner.first_layer == "merge":
            return 0
        return int(np.argmin(np.random.default_rng([self.seed, 0]).random(n)))

    def judge(self, layer):
        """Filter in the first layer that some patch changes, leave in one of the next that no patch changes."""
        row, values = layer.weights()[:, -1], layer.values()
        output = (row[..., None] * values).sum(1).flatten()
        cosines, strong = [], []
        for patch, at in zip(layer.patches, layer.at, strict=True):
            part = (row[:, at, None] * values[:, at]).flatten()
            without = output - part
            cosines.append(float(without @ output / (without.norm() * output.norm())))
            size, threshold = part.norm(), self.pruner.token_threshold
            if self.pruner.relative_threshold is not None:
                size, threshold = size / output.norm(), self.pruner.relative_threshold
            if size > threshold:
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
