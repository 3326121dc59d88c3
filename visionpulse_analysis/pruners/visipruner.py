"""VisiPruner: three stages of depth, and one layer that tells the few patches that matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.nn.functional import cosine_similarity

from visionpulse_analysis.pruners.base import Pruner, Redirect, Selection
from visionpulse_analysis.pruners.top_k import drawn
from visionpulse_analysis.pruners.view import Layout, View

STAGES = ("shallow", "middle", "deep")
FIRST_LAYERS = ("merge", "random", "half")


@dataclass(frozen=True)
class VisiPruner(Pruner):
    """Skip the image in shallow layers, find the patches that matter at one middle layer, drop them when they rest.

    VisiPruner, arXiv 2510.17205, section 4, as the released code executes it. Let ``c`` be what a patch adds to the
    last prompt token's attention output ``o`` before the output projection (weight times value, not renormalised).

    - *shallow*, layers below S: in layer 0 the patches do not see one another, and text finds the first patch's value
      at every patch; in the others text gets nothing from the patches, which still see one another. Weights are not
      renormalised. Decode steps see all patches there. Layer S itself is left alone.
    - *middle*, after layer S: the first layer where ``cos(o - c, o) < layer_threshold`` for some patch is the filter
      layer; from the next one on only patches with ``||c|| > token_threshold`` stay. If no layer is, all stay; if no
      patch is above, none does.
    - *deep*, after the filter layer: a layer where ``cos(o - c, o) >= exit_threshold`` for every patch left is at rest;
      at the ``exit_after``-th such layer the rest go as well. Where every patch has passed ``token_threshold``, the
      released code never gets to its exit, since the branch asks for a prompt that has become shorter; here such a row
      exits like any other, which is the idea of the paper.

    Every row of a batch finds its own layers. Survivors keep their positions.

    Parameters
    ----------
    stages : tuple of "shallow", "middle", "deep"
        "deep" needs "middle": without it the released code does nothing.
    shallow_layers : int, optional
        S; the authors' 6 of 32 layers if left out, rounded. 0 leaves the shallow stage out.
    layer_threshold, token_threshold, exit_threshold : float
        0.995, 0.2 and 0.999 in the code. The second is an absolute norm and depends on the model's scale.
    relative_threshold : float, optional
        Ours, for models of another scale: in place of ``token_threshold``, a bound on ``||c|| / ||o||``. 0.1 is about
        the sine of the angle of the layer test.
    exit_after : int
        Layers at rest before the exit.
    exit_rule : "cumulative" or "consecutive"
        Whether those layers are counted in all, as in the code, or in a row, as summaries of the paper say.
    first_layer : "merge", "random" or "half"
        How text reads patches in layer 0: all as the first patch, as the code does for 7B models; all as one drawn at
        random, as the paper says; or the second half only and as they are, as the code does for 13B.
    patches_see : bool
        Whether patches see one another in the other shallow layers, as in the code; False is what the paper counts.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    name: ClassVar[str] = "visipruner"

    stages: tuple[str, ...] = STAGES
    shallow_layers: int | None = None
    layer_threshold: float = 0.995
    token_threshold: float = 0.2
    relative_threshold: float | None = None
    exit_threshold: float = 0.999
    exit_after: int = 2
    exit_rule: Literal["cumulative", "consecutive"] = "cumulative"
    first_layer: Literal["merge", "random", "half"] = "merge"
    patches_see: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "stages", tuple(self.stages))
        if not set(self.stages) <= set(STAGES) or ("deep" in self.stages and "middle" not in self.stages):
            raise ValueError(f"stages are of {', '.join(STAGES)}, 'deep' only with 'middle', got {self.stages}")
        if self.exit_rule not in ("cumulative", "consecutive") or self.first_layer not in FIRST_LAYERS:
            raise ValueError(
                f"exit_rule must be 'cumulative' or 'consecutive' and first_layer one of {', '.join(FIRST_LAYERS)}, "
                f"got {self.exit_rule!r} and {self.first_layer!r}"
            )
        if self.exit_after < 1 or (self.shallow_layers is not None and self.shallow_layers < 0):
            raise ValueError(
                f"expected exit_after >= 1 and shallow_layers >= 0, got {self.exit_after} and {self.shallow_layers}"
            )

    def first_after(self, n_layers: int) -> int:
        """S in a model of ``n_layers``: the first layer after the shallow ones."""
        return round(6 / 32 * n_layers) if self.shallow_layers is None else self.shallow_layers

    def start(self, layout: Layout) -> Selection:
        return _VisiPrunerSelection(self, layout)


class _VisiPrunerSelection(Selection):
    def __init__(self, pruner: VisiPruner, layout: Layout):
        super().__init__(layout)
        self.pruner, self.shallow = pruner, pruner.first_after(layout.n_layers)
        device, none = layout.patches.device, -1
        self.left = layout.patches
        self.filter_layer = torch.full((len(layout.patches),), none, device=device)
        self.exit_layer = torch.full_like(self.filter_layer, none)
        self.rests = torch.zeros_like(self.filter_layer)
        self.smallest: list[torch.Tensor] = []  # per layer, float32 [row]: the least cosine of any patch left

    @property
    def dense_prefill(self) -> bool:
        return not self.pruner.stages

    def redirect(self, view: View) -> Redirect | None:
        if "shallow" not in self.pruner.stages or view.layer >= self.shallow:
            return None
        nothing = torch.full_like(self.layout.places, -1)
        if view.layer > 0:
            return Redirect(nothing, None if self.pruner.patches_see else nothing)
        own = torch.arange(nothing.shape[1], device=nothing.device).expand_as(nothing)
        if self.pruner.first_layer != "half":
            order = drawn(self.layout, 0) if self.pruner.first_layer == "random" else own
            one = order.masked_fill(~self.layout.patches, order.shape[1]).argmin(dim=1, keepdim=True)
            return Redirect(one.expand_as(nothing), nothing)
        middle = self.layout.counts[:, None] // 2
        return Redirect(torch.where(own < middle, nothing, own), nothing, self.layout.patch_before >= middle)

    def visible_prefill(self, view: View) -> torch.Tensor | None:
        now = self.left
        if "middle" in self.pruner.stages and view.layer > self.shallow:
            self._judge(view.only(now), now)
        return now

    def _judge(self, view: View, now: torch.Tensor) -> None:
        """What this layer says about the patches left, bool [row, patch], from the next layer on."""
        pruner, (parts, output) = self.pruner, view.contributions()
        whole = output[:, None]
        cosines = cosine_similarity(whole - parts, whole, dim=-1).masked_fill(~now, torch.inf)
        smallest = cosines.amin(dim=1)
        self.smallest.append(smallest)
        waiting = self.filter_layer < 0
        fires = waiting & (smallest < pruner.layer_threshold)
        strength, bound = parts.norm(dim=-1), pruner.token_threshold
        if pruner.relative_threshold is not None:
            strength, bound = strength / whole.norm(dim=-1), pruner.relative_threshold
        left = torch.where(fires[:, None], now & (strength > bound), now)
        self.filter_layer = torch.where(fires, view.layer, self.filter_layer)
        if "deep" in pruner.stages:
            at_rest = ~waiting & (smallest >= pruner.exit_threshold) & now.any(dim=1)
            stirred = 0 if pruner.exit_rule == "consecutive" else self.rests
            self.rests = torch.where(at_rest, self.rests + 1, stirred)
            leaves = (self.exit_layer < 0) & (self.rests == pruner.exit_after)
            self.exit_layer = torch.where(leaves, view.layer, self.exit_layer)
            left = left & (self.exit_layer < 0)[:, None]
        self.left = left
