"""VisionPulse: select the patches afresh at every decode step, as many as the visual attention mass asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any, ClassVar, Literal

from visionpulse_analysis._util.checks import TEMPERATURES, Interval, check_temperature
from visionpulse_analysis._util.later import torch
from visionpulse_analysis.pruners.base import Count, LayerIndex, Pruner, Selection, Share
from visionpulse_analysis.pruners.top_k import budget_to_k, float64, resolve_anchor, share_of_each, top_k
from visionpulse_analysis.pruners.view import Layout, View


@dataclass(frozen=True)
class VisionPulse(Pruner):
    """Step-wise pruning at an anchor layer (arXiv 2605.31457, section on the method).

    At every decode step the newest query's logits at the anchor layer give the visual attention mass
    ``m = max_h exp(LSE_patches(l / tau) - LSE_all(l / tau))``; the budget is ``clamp(m, budget_min, budget_max)`` of
    the patches, rounded down, at least one; the patches with the highest head-mean logits stay visible at the anchor
    layer and above. Text is never dropped, the cache stays whole, prefill is dense, nothing is carried over.

    Presets: ``visionpulse:5`` and ``visionpulse:10`` are the paper's settings; ``visionpulse:block`` is what the
    authors' GPU variant is called with (tau 0.4, 1 to 5 %).

    Logits are ranked in float32, whatever the model's dtype. The authors' code ranks head means in the model's dtype;
    in bfloat16 these tie (up to 12 patches at the edge), and the sets then share .94 to .99 of their patches with those
    kept here.

    Parameters
    ----------
    anchor_layer : int, optional
        Zero-based; the model's default anchor if left out.
    temperature : float
        tau > 0; lower values push the mass towards 0 or 1.
    budget_min, budget_max : float
        Range of the budget, shares of the patches in (0, 1]; `budget_min` may be 0, and one patch is kept all the same.
    budget : float, optional
        A fixed share instead of the mass-driven one.
    granularity : "token" or "block"
        "block" is the authors' GPU variant, best as its preset, since tau is another there: whole blocks of the
        sequence (counted from the row's first real token; the authors count from the first column of a padded batch)
        are scored by the softmax over blocks, at tau, of the largest logit inside each; the mass sums the blocks that
        consist of image tokens; ``ceil(b n / block_size)`` of these are kept, ranked by head-mean share. Blocks that
        mix text and image are always kept, and the anchor layer itself stays dense.
    reuse_previous : bool
        Not in the paper. The layers below the anchor see the set that the previous step chose (prefill's last query, at
        the first step) instead of everything; the anchor and later layers see the fresh one, which is the one recorded.
    hysteresis : float
        Not in the paper. A patch (or block) chosen at the previous step, or by prefill's last query at the first step,
        is ranked as if its attention were ``exp(hysteresis)`` times as large. 0 changes nothing.
    block_size : int
        Tokens per block; only for ``granularity="block"``.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    name: ClassVar[str] = "visionpulse"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "5": {"temperature": 0.1, "budget_min": 0.01, "budget_max": 0.05},
        "10": {"temperature": 0.4, "budget_min": 0.05, "budget_max": 0.10},
        "block": {"temperature": 0.4, "budget_min": 0.01, "budget_max": 0.05, "granularity": "block", "block_size": 64},
    }

    anchor_layer: LayerIndex | None = None
    temperature: float = 0.1
    budget_min: Annotated[float, Interval(ge=0, le=1, what="a share of the patches")] = 0.01
    budget_max: Share = 0.05
    budget: Share | None = None
    granularity: Literal["token", "block"] = "token"
    reuse_previous: bool = False
    hysteresis: Annotated[float, Interval(ge=0, le=TEMPERATURES[1], what="0 or above,")] = 0.0
    block_size: Count = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        if self.budget_min > self.budget_max:
            raise ValueError(f"budget_min {self.budget_min} is above budget_max {self.budget_max}")

    @classmethod
    def five_percent(cls, anchor_layer: int | None = None) -> VisionPulse:
        """The paper's "5 percent" setting: temperature 0.1, 1 to 5 % of the patches; `anchor_layer` as above."""
        return cls(anchor_layer, **cls.presets["5"])

    @classmethod
    def ten_percent(cls, anchor_layer: int | None = None) -> VisionPulse:
        """The paper's "10 percent" setting: temperature 0.4, 5 to 10 % of the patches; `anchor_layer` as above."""
        return cls(anchor_layer, **cls.presets["10"])

    @classmethod
    def block(cls, anchor_layer: int | None = None) -> VisionPulse:
        """The setting of the authors' GPU variant: blocks of 64, temperature 0.4, 1 to 5 %; `anchor_layer` as above."""
        return cls(anchor_layer, **cls.presets["block"])

    def begin(self, run: Selection) -> None:
        layout = run.layout
        run.anchor = resolve_anchor(self.anchor_layer, layout)
        largest = self.budget_max if self.budget is None else self.budget
        if self.granularity == "token":
            run.most = int(budget_to_k(torch.tensor(largest, dtype=torch.float64), layout.counts.cpu()).max())
        else:
            run.most_blocks, run.most = Blocks.most(largest, layout, self.block_size)

    @property
    def _looks_back(self) -> bool:
        return self.reuse_previous or self.hysteresis > 0

    def observe_prefill(self, view: View, run: Selection) -> None:
        if self._looks_back and view.layer == run.anchor:
            self._choose(view, run)

    def visible(self, view: View, run: Selection) -> torch.Tensor | None:
        if view.layer < run.anchor:
            return run.kept if self.reuse_previous else None
        if view.layer == run.anchor:
            self._choose(view, run)
            if self.granularity == "block":
                return None
        return run.kept

    def _choose(self, view: View, run: Selection) -> None:
        """Set the mass that the anchor layer sees, and with it the budget and the patches of this step."""
        layout, previous = run.layout, run.kept if self._looks_back else None
        if self.granularity == "block":
            blocks = Blocks.of(view.logits(), layout, self.block_size, self.temperature)
            run.mass, run.budget = blocks.mass, self._share(blocks.mass)
            run.kept = blocks.keep(run.budget, layout, previous, self.hysteresis, run.most_blocks)
            return
        run.mass = attention_mass(view, self.temperature)
        run.budget = self._share(run.mass)
        scores = view.patch_logits().mean(dim=1)
        if previous is not None:
            scores = scores + self.hysteresis * previous
        run.kept = top_k(scores, budget_to_k(run.budget, layout.counts), run.most)

    def _share(self, mass: torch.Tensor) -> torch.Tensor:
        """Share of the patches to keep: float64 [row]."""
        if self.budget is not None:
            return share_of_each(self.budget, mass)
        return float64(mass).clamp(self.budget_min, self.budget_max)


def attention_mass(view: View, temperature: float) -> torch.Tensor:
    """Visual attention mass at a temperature, maximum over heads: float32 [row] in 0..1."""
    weights = torch.softmax(view.logits() / temperature, dim=-1)
    return view.at_patches(weights, absent=0.0).sum(dim=-1).amax(dim=1).clamp(0.0, 1.0)


@dataclass
class Blocks:
    """The blocks of a batch at one step, as the authors' GPU code cuts a sequence (their ``visionpulse/triton``).

    The sequence of a row, without its padding, is cut into blocks of ``size`` tokens. Only blocks that consist of image
    tokens can be dropped (of which the patches then are); blocks that mix text and image are always kept.

    shares : float32 [row, head, block], softmax over all blocks of the largest logit inside each, at a temperature.
    prunable : bool [row, block], blocks that consist of patches, and perhaps other tokens of pictures.
    owner : int64 [row, patch], the block that each patch is in.
    """

    shares: torch.Tensor
    prunable: torch.Tensor
    owner: torch.Tensor
    size: int

    @classmethod
    def of(cls, logits: torch.Tensor, layout: Layout, size: int, temperature: float) -> Blocks:
        """Cut float32 logits [row, head, key], -inf where masked, into blocks."""
        keys = torch.arange(logits.shape[2], device=logits.device)
        block = ((keys[None] - layout.starts[:, None]) // size).clamp(min=0)
        owner = ((layout.places - layout.starts[:, None]) // size).clamp(min=0)
        n_blocks = -(-logits.shape[2] // size)
        largest = logits.new_full((*logits.shape[:2], n_blocks), -torch.inf)
        largest.scatter_reduce_(2, block[:, None].expand_as(logits), logits, "amax")
        return cls(torch.softmax(largest / temperature, dim=-1), _pure(layout, owner, size, n_blocks), owner, size)

    @property
    def mass(self) -> torch.Tensor:
        """Share of the prunable blocks, maximum over heads: float32 [row] in 0..1."""
        return (self.shares * self.prunable[:, None]).sum(dim=-1).amax(dim=1).clamp(0.0, 1.0)

    @staticmethod
    def most(share: float, layout: Layout, size: int) -> tuple[int, int]:
        """No row keeps more prunable blocks than this, and more patches, with at most such a share as budget."""
        blocks = ceil(share * layout.patches.shape[1] / size)
        owner = ((layout.places - layout.starts[:, None]) // size).clamp(min=0)
        inside = torch.zeros(len(owner), int(owner.max()) + 1, dtype=torch.int64, device=owner.device)
        inside.scatter_add_(1, owner, layout.patches.long())
        mixed = int((inside * ~_pure(layout, owner, size, inside.shape[1])).sum(dim=1).max())
        return blocks, min(layout.patches.shape[1], blocks * size + mixed)

    def keep(
        self,
        budget: torch.Tensor,
        layout: Layout,
        previous: torch.Tensor | None,
        bonus: float,
        most: int | None = None,
    ) -> torch.Tensor:
        """Patches kept, bool [row, patch]: those of the best blocks by head-mean share, and of all mixed blocks.

        ``ceil(budget * n / size)`` of the prunable blocks, at least 1, at most all; ties by lower index. The share of
        a block in ``previous`` (patches kept before, bool [row, patch]) counts ``exp(bonus)`` times. most : no row
        keeps more prunable blocks, where that is known without asking the device.
        """
        wanted = torch.ceil(float64(budget) * float64(layout.counts) / self.size - 1e-9).long().clamp(min=1)
        wanted = wanted.to(layout.device)
        scores = self.shares.mean(dim=1)
        if previous is not None and bonus:
            again = torch.zeros_like(scores).scatter_reduce(1, self.owner, previous.float(), "amax")
            scores = scores * torch.exp(bonus * again)
        wanted = torch.minimum(wanted, self.prunable.sum(dim=1))
        best = top_k(scores.masked_fill(~self.prunable, -torch.inf), wanted, most)
        return (best | ~self.prunable).gather(1, self.owner) & layout.patches


def _pure(layout: Layout, owner: torch.Tensor, size: int, n_blocks: int) -> torch.Tensor:
    """Which blocks consist of tokens of pictures and have patches, given each patch's ``owner``: bool [row, block]."""
    patches, images = (torch.zeros(len(owner), n_blocks, dtype=torch.int64, device=owner.device) for _ in range(2))
    patches.scatter_add_(1, owner, layout.patches.long())
    others = ((layout.other_places - layout.starts[:, None]) // size).clamp(0, n_blocks - 1)
    images.scatter_add_(1, others, layout.others.long())
    return (patches > 0) & (patches + images == size)
