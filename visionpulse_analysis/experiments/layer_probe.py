"""What some queries show at every layer: where they look, how large the values there are, what one patch changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from visionpulse_analysis.decoding.interventions.passes import log_softmax
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Selection
from visionpulse_analysis.pruners.top_k import float64
from visionpulse_analysis.pruners.view import Layout, View


class LayerWatch(Selection):
    """Looks on at every layer and changes nothing.

    Attributes
    ----------
    states : list, per layer, of tensors [row, query, width]
        Hidden states of the queries that enter the layer.
    weights : list, per layer, of float64 [row, query, patch]
        Attention of the queries to the patches, mean over heads; 0 where there is no patch.
    norms : list, per layer, of float64 [row, patch]
        L1 norm of the patches' values, all key heads together.
    cosines : list, per layer, of float64 [row, query]
        The least ``cos(o - c, o)`` over the patches; see `least_cosine`.
    """

    def __init__(self, layout: Layout, queries: torch.Tensor):
        super().__init__(layout)
        self.queries = queries
        self.states: list[torch.Tensor] = []
        self.weights: list[np.ndarray] = []
        self.norms: list[np.ndarray] = []
        self.cosines: list[np.ndarray] = []

    def observe_prefill(self, view: View) -> None:
        states, queries, layout = view.states(), self.queries, self.layout
        self.states.append(states.gather(1, queries[..., None].expand(-1, -1, states.shape[-1])))
        weights = torch.softmax(view.query_logits(queries), dim=-1)
        weights, value = float64(weights), float64(view.value.to(weights.device))
        layout = layout.on(weights.device)
        self.cosines.append(least_cosine(weights, value, layout).cpu().numpy())
        index = layout.places[:, None].expand(-1, queries.shape[1], -1)
        at_patches = weights.mean(dim=1).gather(2, index) * layout.patches[:, None]
        self.weights.append(at_patches.cpu().numpy())
        norms = value.abs().sum(dim=(1, 3)).gather(1, layout.places)
        self.norms.append((norms * layout.patches).cpu().numpy())


def least_cosine(weights: torch.Tensor, value: torch.Tensor, layout: Layout) -> torch.Tensor:
    """How far the most influential patch turns the attention output: the least ``cos(o - c, o)``, [row, query].

    ``o`` is a query's attention output before the output projection, heads side by side, and ``c`` one patch's part
    of it, weight times value, without renormalisation (VisiPruner, arXiv 2510.17205, section 4).

    Parameters
    ----------
    weights : float64 [row, head, query, key]
    value : float64 [row, kv_head, key, dim]
    """
    value = value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)
    output = weights @ value  # [row, head, query, dim]
    # |o - c|^2 and o . (o - c) from o . c and |c|^2: the parts themselves, of every patch, would fill the memory.
    along = (weights * (output @ value.transpose(2, 3))).sum(dim=1)
    size = (weights**2 * value.square().sum(dim=-1)[:, :, None]).sum(dim=1)
    whole = output.square().sum(dim=(1, 3))[..., None]
    rest = (whole - 2 * along + size).clamp(min=0).sqrt() * whole.sqrt()
    cosine = (whole - along) / rest.clamp(min=torch.finfo(rest.dtype).tiny)
    index = layout.places[:, None].expand(-1, cosine.shape[1], -1)
    return cosine.gather(2, index).masked_fill(~layout.patches[:, None], torch.inf).amin(dim=2).clamp(max=1)


def sink_value_ratio(weights: np.ndarray, norms: np.ndarray, fraction: float) -> float:
    """Mean value norm of the patches with the most attention, over that of all patches; NaN where all norms are 0.

    Parameters
    ----------
    weights, norms : float [patch]
    fraction : share of the patches that counts as most attended, in (0, 1]; at least one patch
    """
    count = max(1, round(fraction * len(weights)))
    sinks = np.argsort(-weights, kind="stable")[:count]
    return float(norms[sinks].mean() / norms.mean()) if norms.mean() > 0 else float("nan")


@torch.inference_mode()
def logit_lens(vlm: VLM, states: torch.Tensor) -> np.ndarray:
    """Read hidden states as if they were the last: log probabilities float64 [..., word].

    The model's final norm and output embedding (logit lens).

    Raises ValueError for a model whose language part has no final ``norm``.
    """
    norm: Any = getattr(vlm.model.get_decoder(), "norm", None)
    if norm is None:
        raise ValueError(f"{type(vlm.model).__name__} does not show its final norm, which the logit lens needs")
    return log_softmax(vlm.model.get_output_embeddings()(norm(states)))
