"""Slow statements of what acts in one pass through the layers: skipped, frozen or withdrawn, one row at a time."""

import numpy as np
import slow_prefill as slow


class Dense(slow.Rule):
    def __init__(self):
        """Nothing acts."""


class SlowSkip(slow.Rule):
    def __init__(self, layers):
        self.layers = layers

    def run(self, layer):
        def lose(weights):
            for query in range(weights.shape[1]):
                if query not in layer.at:
                    weights[:, query, layer.at] = 0
            return weights

        return layer.run(lose) if layer.number in self.layers else layer.run()


class SlowFrozen(slow.Rule):
    def __init__(self, layer):
        self.layer = layer

    def run(self, layer):
        states = layer.run()
        if layer.number == self.layer:
            states[layer.at] = layer.states[layer.at]
        return states


class SlowGone(slow.Rule):
    def __init__(self, layer):
        self.layer = layer

    def before(self, layer):
        return [] if layer.number >= self.layer else layer.patches


class Seen(slow.Rule):
    """Notes each layer as it was."""

    def __init__(self):
        self.layers = []

    def run(self, layer):
        self.layers.append(layer)
        return layer.run()


def by_hand(vlm, one, place, rule):
    """Log probabilities [word] after the prompt, or after the answer up to the most visual step."""
    answer = one.passage.ids[one.queries[0] + 1 :].tolist() if place else []
    words = vlm.tokenizer(one.sample.question, add_special_tokens=False).input_ids
    inputs = slow.inputs_of(vlm, one.sample.image, one.sample.question, answer, words)
    return slow.slow_forward(vlm, inputs, rule)[0].double().numpy()


def kl(p, q):
    return sum(np.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
