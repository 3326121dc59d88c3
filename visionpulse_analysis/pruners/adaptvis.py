"""AdaptVis: attention to the image is sharpened where the model is sure of itself, and smoothed where it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from visionpulse_analysis._util.checks import Interval
from visionpulse_analysis._util.later import torch
from visionpulse_analysis.pruners.base import Fraction, Pruner, Selection
from visionpulse_analysis.pruners.view import View


@dataclass(frozen=True)
class AdaptVis(Pruner):
    """Multiply the attention logits of the patches by ``sharp`` where the model is confident, else by ``smooth``.

    After AdaptVis (Chen et al. 2025, "Why Is Spatial Reasoning Hard for VLMs? An Attention Mechanism Perspective on
    Focus Areas", arXiv 2503.01773): the last token's logits over the image are multiplied by one factor in all heads
    and layers, above 1 where the model is confident and below 1 where it is not. Nothing is hidden and nothing saved:
    every patch stays visible, and what it gets of the attention changes.

    The paper takes the confidence from the probability of the answer in a run of its own, and scales the run after it
    from its first token on. Here every step goes by the step before: its highest probability is the confidence, and
    prefill, which chooses the first token, is left as it is. What the paper leaves open for answers of many tokens is
    set like this; the factors are those of its smaller settings and not verified for other models. Patches only are
    scaled, not the other tokens of a picture (line breaks, marks of tiles).

    Parameters
    ----------
    sharp : float
        Factor of the logits where the confidence is ``threshold`` or above; above 0. 1 changes nothing.
    smooth : float
        Factor of the logits where it is below; above 0. 1 changes nothing.
    threshold : float
        Probability in 0..1 from which on the model counts as confident.
    """

    name: ClassVar[str] = "adaptvis"
    reweights: ClassVar[bool] = True

    sharp: Annotated[float, Interval(gt=0)] = 1.2
    smooth: Annotated[float, Interval(gt=0)] = 0.5
    threshold: Fraction = 0.3

    def visible(self, view: View, run: Selection) -> torch.Tensor | None:
        if self.sharp == self.smooth == 1:
            return None  # dense to the last bit, which a mask of zeros is not under every kernel
        logits = view.patch_logits()
        confident = view.logprobs().exp().amax(dim=1) >= self.threshold
        factor = torch.where(confident, self.sharp, self.smooth)[:, None, None]
        # A product with -inf, where a patch is masked, would be +inf.
        return (factor - 1) * logits.masked_fill(logits == -torch.inf, 0.0)
