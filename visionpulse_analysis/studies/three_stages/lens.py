"""The logit lens on one sample: which words the states that enter each layer would say."""

from __future__ import annotations

import numpy as np
import pandas as pd

from visionpulse_analysis.decoding.interventions.kinds import UnderSelection
from visionpulse_analysis.decoding.interventions.passes import TeacherForced
from visionpulse_analysis.experiments.layer_probe import LayerWatch, logit_lens
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.studies.three_stages.measure import PLACES, Asked


def lens_words(vlm: VLM, one: Asked, count: int = 3) -> pd.DataFrame:
    """The ``count`` most probable words, best first: a row for every layer and the output, a column for each query."""
    passages = TeacherForced(vlm, [one.passage], [one.queries])
    watch = LayerWatch(passages.layout, passages.queries)
    dense = passages.read(UnderSelection(watch))
    read = [*(logit_lens(vlm, states)[0] for states in watch.states), dense[0]]
    said = (one.answer[0], one.answer[-1])
    columns = {
        f"{place}, says {word.strip()!r}": [_best(vlm, layer[number], count) for layer in read]
        for number, (place, word) in enumerate(zip(PLACES, said, strict=True))
    }
    return pd.DataFrame(columns, index=[*(f"entering layer {layer}" for layer in range(vlm.n_layers)), "output"])


def _best(vlm: VLM, logprobs: np.ndarray, count: int) -> str:
    best = np.argsort(-logprobs, kind="stable")[:count]
    return ", ".join(vlm.tokenizer.decode([int(word)]).strip() for word in best)
