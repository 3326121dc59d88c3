"""Where a model reads the image, by layer: the control without which no pruning result means anything."""

from __future__ import annotations

import numpy as np
import torch

from visionpulse_analysis.decoding.interventions.kinds import Acting, HidePatches, Tokens
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.view import Layout
from visionpulse_analysis.testbed.scenes.questions import Question, TokenTruth, reason
from visionpulse_analysis.testbed.training.batches import KINDS, pack
from visionpulse_analysis.testbed.training.evaluation_set import Item
from visionpulse_analysis.testbed.training.packing import Batch
from visionpulse_analysis.testbed.training.scoring import hidden_states

PLACES = ("row", "column")


def reading_anchor(horizon: dict[str, list[float]]) -> int:
    """The last layer before most of the reading.

    The highest layer ``a`` for which at most half of the accuracy of rows and columns (their mean, from blind to
    uncut) is reached when the layers from ``a`` on do not see the image.

    Parameters
    ----------
    horizon : the result of :func:`reading_horizon`
    """
    places = np.mean([horizon[kind] for kind in PLACES], axis=0)
    half = (places[0] + places[-1]) / 2
    return int(np.flatnonzero(places[:-1] <= half).max())


def reading_horizon(vlm: VLM, items: list[Item]) -> dict[str, list[float]]:
    """Where the model reads the image: accuracy of visual tokens when the image is cut off from a layer on.

    Returns
    -------
    dict
        kind of token -> list of n_layers + 1 accuracies in 0..1: of all tokens in :func:`read_tokens`.
    """
    read = read_tokens(vlm, items)
    return {kind: np.concatenate(scenes, axis=1).mean(axis=1).round(4).tolist() for kind, scenes in read.items()}


@torch.inference_mode()
def read_tokens(vlm: VLM, items: list[Item]) -> dict[str, list[np.ndarray]]:
    """Which row and column tokens are predicted right when the image is cut off from a layer on.

    The model is fed the true traces of the find and count questions; at entry ``a`` text may not attend to patches in
    layers ``a`` and above. The last entry, at ``n_layers``, is uncut.

    Returns
    -------
    dict
        kind of token -> one array per item: bool [n_layers + 1, token].
    """
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in PLACES}
    for start in range(0, len(items), 8):
        batch = pack([(item.scene, _true_traces(item)) for item in items[start : start + 8]]).to(vlm.model.device)
        chosen, tokens = batch.target != -100, _tokens_of(vlm, batch)
        right = []
        for cut in range(vlm.n_layers + 1):
            with Acting(vlm, [HidePatches(layers=range(cut, vlm.n_layers), steps=[0])]).on(tokens):
                logits = vlm.model.lm_head(hidden_states(vlm.model, batch)[chosen])
            right.append(logits.argmax(-1) == batch.target[chosen])
        by_layer, owners = torch.stack(right).cpu().numpy(), chosen.nonzero()[:, 0].cpu().numpy()
        for kind, scenes in found.items():
            of_kind = (batch.kind[chosen] == KINDS.index(kind)).cpu().numpy()
            scenes += [by_layer[:, of_kind & (owners == row)] for row in range(len(chosen))]
    return found


def _true_traces(item: Item) -> list[tuple[Question, list[TokenTruth]]]:
    rng = np.random.default_rng([item.scene.seed, 4])
    asked = [item.questions["find"], item.questions["count"]]
    return [(question, reason(item.scene, question, rng)) for question in asked]


def _tokens_of(vlm: VLM, batch: Batch) -> Tokens:
    """The tokens of packed rows, of which all after the shared prefix count as step 0."""
    rows, width = batch.ids.shape
    column = torch.arange(width, device=batch.ids.device)
    places = (batch.ids == vlm.model.config.image_token_id).nonzero()[:, 1].view(rows, -1)
    layout = Layout(
        torch.ones_like(places, dtype=torch.bool), places, torch.zeros_like(places[:, 0]), vlm.n_layers,
        vlm.default_anchor, [0] * rows, torch.zeros_like(batch.ids, dtype=torch.bool),
    )  # fmt: skip
    step = torch.where(column < batch.prefix, -1, 0)
    return Tokens(layout, column.expand(rows, -1), step.expand(rows, -1), column, width)
