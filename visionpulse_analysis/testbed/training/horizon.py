"""Where a model reads the image, by layer: the control without which no pruning result means anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from visionpulse_analysis._util.progress import over
from visionpulse_analysis.decoding.interventions.kinds import Acting, HidePatches, Tokens, UnderSelection
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Selection
from visionpulse_analysis.pruners.pattern import ORDINARY, Pattern
from visionpulse_analysis.pruners.view import Layout
from visionpulse_analysis.testbed.training.packing import Batch, Language
from visionpulse_analysis.testbed.training.scoring import hidden_states


def reading_anchor(horizon: dict[str, list[float]]) -> int:
    """The last layer before most of the reading.

    The highest layer ``a`` for which at most half of the accuracy of the words read off the image (the mean over their
    kinds, from blind to uncut) is reached when the layers from ``a`` on do not see the image.

    Parameters
    ----------
    horizon : the result of :func:`reading_horizon`
    """
    read = np.mean(list(horizon.values()), axis=0)
    half = (read[0] + read[-1]) / 2
    return int(np.flatnonzero(read[:-1] <= half).max())


def reading_horizon(read: dict[str, list[np.ndarray]]) -> dict[str, list[float]]:
    """Accuracy of words when the image is cut off from a layer on, of all tokens that :func:`read_words` found.

    Returns
    -------
    dict
        kind of token -> list of n_layers + 1 accuracies in 0..1; kinds without a token are left out.
    """
    found = {kind: np.concatenate(pictures, axis=1) for kind, pictures in read.items()}
    return {kind: right.mean(axis=1).round(4).tolist() for kind, right in found.items() if right.size}


@torch.inference_mode()
def read_words(
    vlm: VLM, batches: Iterable[Batch], language: Language, kinds: Sequence[str]
) -> dict[str, list[np.ndarray]]:
    """Which words of true traces are predicted right when the image is cut off from a layer on.

    At entry ``a`` text may not attend to patches in layers ``a`` and above. The last entry, at ``n_layers``, is uncut.

    Parameters
    ----------
    kinds : of token, of the language

    Returns
    -------
    dict
        kind of token -> one array per row of the batches: bool [n_layers + 1, token].
    """
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}

    def read(packed: Batch) -> None:
        batch = packed.to(vlm.model.device)
        chosen, tokens = batch.target != -100, tokens_of(vlm, batch)
        right = []
        for cut in range(vlm.n_layers + 1):
            hidden = HidePatches(layers=range(cut, vlm.n_layers), steps=[0])
            own = [] if vlm.pattern == ORDINARY else [UnderSelection(Selection(tokens.layout))]
            with Acting(vlm, [*own, hidden]).on(tokens):
                logits = vlm.model.lm_head(hidden_states(vlm.model, batch)[chosen])
            right.append(logits.argmax(-1) == batch.target[chosen])
        by_layer, owners = torch.stack(right).cpu().numpy(), chosen.nonzero()[:, 0].cpu().numpy()
        for kind, pictures in found.items():
            of_kind = (batch.kind[chosen] == language.kinds.index(kind)).cpu().numpy()
            pictures += [by_layer[:, of_kind & (owners == row)] for row in range(len(chosen))]

    over(read, batches, "reading horizon", "batch")
    return found


def tokens_of(vlm: VLM, batch: Batch, pattern: Pattern | None = None) -> Tokens:
    """The tokens of packed rows, of which all after the shared prefix count as step 0.

    pattern : under which pictures are computed, that of the model if left out.
    """
    rows, width = batch.ids.shape
    column = torch.arange(width, device=batch.ids.device)
    places = (batch.ids == vlm.model.config.image_token_id).nonzero()[:, 1].view(rows, -1)
    if batch.grid_thw is None:
        raise ValueError("expected a batch with pictures; drills have none")
    patch, cols = torch.arange(places.shape[1], device=places.device).expand(rows, -1), int(batch.grid_thw[0, 2])
    layout = Layout(
        torch.ones_like(places, dtype=torch.bool), places, torch.zeros_like(places[:, 0]), vlm.n_layers,
        vlm.default_anchor, [0] * rows, torch.zeros_like(batch.ids, dtype=torch.bool),
        cells=torch.stack([patch // cols, patch % cols], dim=2), pattern=vlm.pattern if pattern is None else pattern,
    )  # fmt: skip
    step = torch.where(column < batch.prefix, -1, 0)
    return Tokens(layout, column.expand(rows, -1), step.expand(rows, -1), column, width)
