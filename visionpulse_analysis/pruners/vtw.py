"""Pruners that let go of every patch at once: from a layer on, or from a step on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from visionpulse_analysis._util.checks import Interval
from visionpulse_analysis._util.later import torch
from visionpulse_analysis._util.progress import over
from visionpulse_analysis.pruners.base import FirstTokens, Pruner, Selection
from visionpulse_analysis.pruners.top_k import check_layer, kl
from visionpulse_analysis.pruners.view import View


@dataclass(frozen=True)
class VTW(Pruner):
    """Withdraw all visual tokens at one layer of prefill; the layers from there on never see the image.

    VTW, arXiv 2405.05803, section 3: the image has moved into the text by then. Text keeps its positions; the code's
    other mode, which numbers them anew, and its control, which drops as many tokens at random, are left out.

    Parameters
    ----------
    layer : int, optional
        K of the paper, zero-based, the first layer without patches; the number of layers withdraws nothing. Half of
        the layers if left out; ``calibrate`` finds the one that the paper's search would. The authors' code has 15 for
        LLaVA-1.5-7B in its evaluation and 16 in its chat (``VTW(15)``, ``VTW(16)``), 20 of 40 for 13B, and 16 for
        Video-LLaVA.
    """

    name: ClassVar[str] = "vtw"

    layer: int | None = None

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "llava-1.5-7b": {"layer": 15},
        "llava-1.5-7b-chat": {"layer": 16},
        "llava-1.5-13b": {"layer": 20},
        "video-llava": {"layer": 16},
    }

    @classmethod
    def calibrated(
        cls, first_tokens: FirstTokens, n_layers: int, *, threshold: float = 0.003, first_layer: int | None = None
    ) -> VTW:
        """The first layer at which withdrawal moves the first token's distribution by at most a threshold.

        The authors' search: mean KL(P_k || P_dense) over the samples.

        Parameters
        ----------
        first_tokens, n_layers
            As in `Pruner.calibrated`.
        threshold : float
            In nats. The authors' is 0.003 for LLaVA-1.5-7B, 0.0005 for 13B, 0.0001 for LLaVA-NeXT-7B.
        first_layer : int, optional
            The first k tried; 5 of 32 layers if left out.

        Returns
        -------
        VTW

        Raises
        ------
        ValueError
            No layer is below the threshold.
        """
        begin = max(1, round(5 / 32 * n_layers)) if first_layer is None else first_layer
        curve = withdrawal_curve(first_tokens, n_layers)
        below = [layer for layer in range(begin, n_layers) if curve[layer] <= threshold]
        if not below:
            lowest = curve[begin:].min() if begin < n_layers else float("nan")
            raise ValueError(f"no layer from {begin} on has KL <= {threshold}; the smallest is {lowest:.3g}")
        return cls(below[0])

    def begin(self, run: Selection) -> None:
        n_layers = run.layout.n_layers
        run.layer = n_layers // 2 if self.layer is None else self.layer
        if run.layer != n_layers:  # after the last one: nothing is withdrawn
            check_layer("layer", run.layer, run.layout)

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        return torch.zeros_like(run.layout.patches) if view.layer == run.layer else None


def withdrawal_curve(first_tokens: FirstTokens, n_layers: int) -> torch.Tensor:
    """KL(P_k || P_dense) of the first token in nats, mean over samples, withdrawal at each layer k: float64 [layer].

    Parameters
    ----------
    first_tokens, n_layers
        As in `Pruner.calibrated`.
    """
    dense = first_tokens(None)
    return torch.stack(over(lambda layer: kl(first_tokens(VTW(layer)), dense), range(n_layers), "calibrate", "layer"))


@dataclass(frozen=True)
class MVW(Pruner):
    """Remove all visual tokens from the cache after some generated tokens.

    "Reasoning with Fewer Eyes" (NeurIPS 2025 workshop on efficient reasoning). Prefill and the first steps are dense;
    the steps that read the ``tokens``-th generated token and later ones see text only.

    Parameters
    ----------
    tokens : int
        M of the paper, at least 1: tokens generated with the image in sight. The paper's default is not verified.
    """

    name: ClassVar[str] = "mvw"

    tokens: Annotated[int, Interval(ge=1, what="a number of tokens (VTW withdraws in prefill)")] = 32

    def begin(self, run: Selection) -> None:
        run.evicts = True

    def visible(self, view: View, run: Selection) -> torch.Tensor | None:
        if view.step < self.tokens:
            return None
        if run.kept is None:
            run.kept = torch.zeros_like(run.layout.patches)
        return run.kept
