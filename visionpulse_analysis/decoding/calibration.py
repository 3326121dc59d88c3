"""Find a pruner's parameters on a few samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from visionpulse_analysis.attention.routing import intercept
from visionpulse_analysis.decoding import Batch, Options
from visionpulse_analysis.decoding.trace_builder import Record
from visionpulse_analysis.media.images import ImageLike
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import Pruner, list_pruners
from visionpulse_analysis.pruners.top_k import float64


def calibrate(
    vlm: VLM,
    kind: str | type[Pruner],
    samples: Sequence[tuple[ImageLike | Sequence[ImageLike], str]],
    *,
    batch_size: int = 32,
    **options: Any,
) -> Pruner:
    """Make a pruner whose parameters fit this model: VTW by its search for the layer, ShortV by Layer Contribution.

    Parameters
    ----------
    vlm : VLM
    kind : str or type
        A name of `list_pruners`, or the class.
    samples : list of (image, question)
        The papers take 20.
    batch_size : int, above 0
        Samples that go through the model together.
    **options
        Those of the class's ``calibrated``.

    Returns
    -------
    Pruner of that kind

    Raises
    ------
    ValueError
        The kind is unknown or has nothing to calibrate, there are no samples, or an option is out of range.
    """
    known = list_pruners()
    if isinstance(kind, str) and kind not in known:
        raise ValueError(f"no pruner {kind!r}; known: {', '.join(known)}")
    pruner = known[kind] if isinstance(kind, str) else kind
    return pruner.calibrated(FirstTokens(vlm, samples, batch_size), vlm.n_layers, **options)


class FirstTokens:
    """Call with a pruner, or None: natural log probabilities of the first token, float64 [sample, word].

    Parameters
    ----------
    vlm, samples, batch_size
        As in `calibrate`.

    Raises
    ------
    ValueError
        There are no samples.
    """

    def __init__(self, vlm: VLM, samples: Sequence[tuple[Any, str]], batch_size: int = 32):
        if not samples:
            raise ValueError("no samples to calibrate on; give (image, question) pairs")
        self.vlm, self.batch_size = vlm, batch_size
        self.prompts = [vlm.prompt(image, question) for image, question in samples]

    @torch.inference_mode()
    def __call__(self, pruner: Pruner | None) -> torch.Tensor:
        options, parts = Options([], None, pruner, max_new_tokens=1), []
        for start in range(0, len(self.prompts), self.batch_size):
            prompts = self.prompts[start : start + self.batch_size]
            records = [Record(self.vlm, prompt, seed, {}, layers=[]) for seed, prompt in enumerate(prompts, start)]
            batch = Batch(self.vlm, records, options)
            with intercept(self.vlm.model, batch.attend):
                logits = batch.prefill()
            parts.append(torch.log_softmax(float64(logits), dim=1).cpu())
        return torch.cat(parts)
