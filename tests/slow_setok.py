"""The rule of SeTok, a second time and slowly: one patch, one pair and one picture at a time, in float64."""

from __future__ import annotations

import math

import numpy as np
import torch
from slow_prefill import Layer, Rule


class SlowSeTok(Rule):
    """``merged``: of each centre, the state that enters the first layer."""

    def before(self, layer):
        if layer.number:
            return layer.patches
        inputs, self.merged = layer.inputs, {}
        states = inputs.states[inputs.places].double().numpy()
        assert inputs.cells is not None, "density peaks are of places too"
        for picture in inputs.pictures.unique().tolist():
            own = [patch for patch, of in enumerate(inputs.pictures.tolist()) if of == picture]
            members = slow_setok(self.pruner, states[own], inputs.cells[own].tolist())
            for centre, others in members.items():
                among = others if self.pruner.merge else [centre]
                self.merged[own[centre]] = torch.from_numpy(states[[own[one] for one in among]].mean(axis=0)).float()
        return sorted(self.merged)

    def run(self, layer):
        if layer.number:
            return layer.run()
        states = layer.states.clone()
        for centre, state in self.merged.items():
            states[layer.among(layer.inputs.places[[centre]])] = state
        again = Layer(0, layer.block, layer.inputs, layer.tokens, states)
        after = again.run()
        layer.row = again.row
        return after


def slow_setok(pruner, states: np.ndarray, cells: list[tuple[int, int]]) -> dict[int, list[int]]:
    """Centre -> members of one picture: states float64 [patch, width], row and column of each patch."""
    n, width = states.shape
    size = math.sqrt(np.mean(states**2))
    points = [[value / size for value in one] for one in states]
    for point, cell in zip(points, cells, strict=True):
        code = []
        for at in cell:
            angles = [at * 10_000 ** (-i / (width // 4)) for i in range(width // 4)]
            code += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        for i, value in enumerate(code):
            point[i] += pruner.place * value
    points = np.array(points)
    far = np.sqrt(((points[:, None] - points[None]) ** 2).mean(axis=2))
    k = max(1, round(pruner.neighbours * n))
    density = [math.exp(-np.mean(np.sort(far[i])[:k] ** 2)) for i in range(n)]
    worth = []
    for i in range(n):
        denser = [far[i, j] for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        worth.append(density[i] * (min(denser) if denser else far.max()))
    ranked = sorted(range(n), key=lambda i: (-worth[i], i))
    centres = [i for i in range(n) if worth[i] > pruner.threshold] or ranked[:k]
    if pruner.budget is not None:
        centres = ranked[: max(1, round(pruner.budget * n))]
    members = {centre: [centre] for centre in sorted(centres)}
    for i in set(range(n)) - set(centres):
        members[min(sorted(centres), key=lambda centre: far[i, centre])].append(i)
    return members
