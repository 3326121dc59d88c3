"""YOPO: the computation of pictures is pruned, once and for every picture, and no patch is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from visionpulse_analysis._util.checks import Interval
from visionpulse_analysis.pruners.base import Pruner, Selection, Share
from visionpulse_analysis.pruners.pattern import Pattern


@dataclass(frozen=True)
class YOPO(Pruner):
    """Let patches see their neighbours only, with fewer heads and neurons, and withdraw them from deep layers.

    YOPO ("Treat Visual Tokens as Text?"), arXiv 2410.06169, and its code. Defaults are those of its training script for
    LLaVA-1.5-13B, but for the heads, which belong to a model (`decoding.active_heads` finds them as the code does).
    LLaVA is trained under it in place of its second stage; Qwen2-VL and InternVL2 run under heads and layer cut without
    training.

    The layer cut here is that of the code for Qwen2-VL, before the softmax: what is left is renormalised. For LLaVA the
    weights are lost after it.

    Parameters
    ----------
    window : int or None
        Rows and columns of the square of patches that each patch sees, odd; later patches in it as well as earlier
        ones. None for the model's own order.
    heads : tuple of tuples of bool [layer][head], optional
        False for the heads that are inactive for pictures: what they read there is lost, and they put out nothing for
        patches. All are active where left out; the authors' masks keep 20 to 75 % of them, and all of the first two
        layers.
    mlp_share : float, in (0, 1]
        Share of the neurons of each MLP that pictures use, the first ones. 0.5 is the authors' ratio 2.
    cut : int, optional
        Zero-based, the first layer in which text no longer sees pictures; the number of layers for none. Half of the
        layers if left out.
    """

    name: ClassVar[str] = "yopo"

    window: Annotated[int, Interval(ge=1)] | None = 5
    heads: tuple[tuple[bool, ...], ...] | None = None
    mlp_share: Share = 0.5
    cut: Annotated[int, Interval(ge=0)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        pattern = Pattern(window=self.window, heads=self.heads or (), mlp_share=self.mlp_share)
        object.__setattr__(self, "heads", pattern.heads or None)

    def begin(self, run: Selection) -> None:
        n = run.layout.n_layers
        first = n // 2 if self.cut is None else self.cut
        if first > n:
            raise ValueError(f"cut {first} is out of range: the model has layers 0 to {n - 1}, and {n} cuts none")
        run.pattern |= Pattern((), tuple(range(first, n)), self.window, self.heads or (), self.mlp_share)
