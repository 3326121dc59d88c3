"""CoViPAL's scorer a second time: in NumPy's float64, token by token and head by head."""

from __future__ import annotations

import math

import numpy as np


def slow_scores(scorer, patches, words) -> np.ndarray:
    """Scores of the patches of one picture, float64 [patch]; patches and words float [token, width]."""
    weights = {name: value.double().numpy() for name, value in scorer.state_dict().items()}
    heads, blocks = scorer.shape["heads"], scorer.shape["blocks"]

    def linear(name, x):
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def norm(name, x):
        return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(x):
        return np.array([0.5 * one * (1 + math.erf(one / math.sqrt(2))) for one in x])

    def read(name, x):
        return gelu(linear(f"{name}.1", norm(f"{name}.0", x)))

    tokens = [read("read_patches", one) for one in patches.double().numpy()]
    for number, word in enumerate(words.double().numpy()):
        token = read("read_words", word)
        for pair in range(len(token) // 2):
            angle = number / 10_000 ** (2 * pair / len(token))
            token[2 * pair] += math.sin(angle)
            token[2 * pair + 1] += math.cos(angle)
        tokens.append(token)
    for block in (f"blocks.{number}" for number in range(blocks)):
        mixed = [np.split(linear(f"{block}.mix", norm(f"{block}.before", one)), 3) for one in tokens]
        after = []
        for token, (query, _, _) in zip(tokens, mixed, strict=True):
            parts = []
            for q, ks, vs in zip(
                np.split(query, heads),
                *[list(zip(*[np.split(m[i], heads) for m in mixed], strict=True)) for i in (1, 2)],
                strict=True,
            ):
                logits = np.array([q @ k for k in ks]) / math.sqrt(len(q))
                share = np.exp(logits - logits.max())
                parts.append(sum(w * v for w, v in zip(share / share.sum(), vs, strict=True)))
            token = token + linear(f"{block}.out", np.concatenate(parts))
            after.append(token + linear(f"{block}.down", gelu(linear(f"{block}.up", norm(f"{block}.between", token)))))
        tokens = after
    seen = tokens[: len(patches)]
    half = len(seen[0]) // 2
    whole = np.mean([one[half:] for one in seen], axis=0)
    return np.array(
        [
            linear("score.3", gelu(linear("score.1", norm("score.0", np.concatenate([one[:half], whole])))))[0]
            for one in seen
        ]
    )
