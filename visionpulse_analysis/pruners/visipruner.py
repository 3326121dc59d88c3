"""VisiPruner: three stages of depth, and one layer that tells the few patches that matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from visionpulse_analysis._util.later import functional, torch
from visionpulse_analysis.pruners.base import Count, LayerIndex, Pruner, Redirect, Selection
from visionpulse_analysis.pruners.top_k import drawn
from visionpulse_analysis.pruners.view import View

STAGES = ("shallow", "middle", "deep")


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
    """

    name: ClassVar[str] = "visipruner"

    stages: tuple[str, ...] = STAGES
    shallow_layers: LayerIndex | None = None
    layer_threshold: float = 0.995
    token_threshold: float = 0.2
    relative_threshold: float | None = None
    exit_threshold: float = 0.999
    exit_after: Count = 2
    exit_rule: Literal["cumulative", "consecutive"] = "cumulative"
    first_layer: Literal["merge", "random", "half"] = "merge"
    patches_see: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(self.stages) <= set(STAGES) or ("deep" in self.stages and "middle" not in self.stages):
            raise ValueError(f"stages are of {', '.join(STAGES)}, 'deep' only with 'middle', got {self.stages}")

    def first_after(self, n_layers: int) -> int:
        """S in a model of ``n_layers``: the first layer after the shallow ones."""
        return round(6 / 32 * n_layers) if self.shallow_layers is None else self.shallow_layers

    def begin(self, run: Selection) -> None:
        layout, none = run.layout, -1
        run.shallow, run.dense_prefill = self.first_after(layout.n_layers), not self.stages
        run.left = layout.patches
        run.filter_layer = torch.full((len(layout.patches),), none, device=layout.device)
        run.exit_layer = torch.full_like(run.filter_layer, none)
        run.rests = torch.zeros_like(run.filter_layer)
        run.smallest = []  # per layer, float32 [row]: the least cosine of any patch left

    def redirect(self, view: View, run: Selection) -> Redirect | None:
        if "shallow" not in self.stages or view.layer >= run.shallow:
            return None
        layout = run.layout
        nothing = torch.full_like(layout.places, -1)
        if view.layer > 0:
            return Redirect(nothing, None if self.patches_see else nothing)
        own = torch.arange(nothing.shape[1], device=nothing.device).expand_as(nothing)
        if self.first_layer != "half":
            order = drawn(layout, 0) if self.first_layer == "random" else own
            one = order.masked_fill(~layout.patches, order.shape[1]).argmin(dim=1, keepdim=True)
            return Redirect(one.expand_as(nothing), nothing)
        middle = layout.counts[:, None] // 2
        return Redirect(torch.where(own < middle, nothing, own), nothing, layout.patch_before >= middle)

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        now = run.left
        if "middle" in self.stages and view.layer > run.shallow:
            self._judge(view.only(now), now, run)
        return now

    def _judge(self, view: View, now: torch.Tensor, run: Selection) -> None:
        """What this layer says about the patches left, bool [row, patch], from the next layer on."""
        parts, output = view.contributions()
        whole = output[:, None]
        cosines = functional.cosine_similarity(whole - parts, whole, dim=-1).masked_fill(~now, torch.inf)
        smallest = cosines.amin(dim=1)
        run.smallest.append(smallest)
        waiting = run.filter_layer < 0
        fires = waiting & (smallest < self.layer_threshold)
        strength, bound = parts.norm(dim=-1), self.token_threshold
        if self.relative_threshold is not None:
            strength, bound = strength / whole.norm(dim=-1), self.relative_threshold
        left = torch.where(fires[:, None], now & (strength > bound), now)
        run.filter_layer = torch.where(fires, view.layer, run.filter_layer)
        if "deep" in self.stages:
            at_rest = ~waiting & (smallest >= self.exit_threshold) & now.any(dim=1)
            stirred = 0 if self.exit_rule == "consecutive" else run.rests
            run.rests = torch.where(at_rest, run.rests + 1, stirred)
            leaves = (run.exit_layer < 0) & (run.rests == self.exit_after)
            run.exit_layer = torch.where(leaves, view.layer, run.exit_layer)
            left = left & (run.exit_layer < 0)[:, None]
        run.left = left
