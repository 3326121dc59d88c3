"""What methods are compared with: baselines that do not look, that look too early, and references that look ahead.

`KeepAll`, `Random`, `StaticRandom` and `Uniform` never look at the attention. `PrefillOnce` and `LastStepOnly` rank as
VisionPulse does but once, at prefill, or always one step behind: against ``VisionPulse(budget=...)`` at the same anchor
and budget they differ in *when* they look and in nothing else. `Hindsight` and `Oracle` know the dense answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from visionpulse_analysis._util.later import torch
from visionpulse_analysis.pruners.base import BeforeModel, Count, FixedShare, Pruner, Selection
from visionpulse_analysis.pruners.top_k import drawn, most_kept, nearest_k, top_k
from visionpulse_analysis.pruners.view import Layout, View


@dataclass(frozen=True)
class KeepAll(Pruner):
    """Keep every patch: decoding must equal dense decoding bit for bit."""

    name: ClassVar[str] = "keep_all"

    def visible(self, view: View, run: Selection) -> torch.Tensor | None:
        run.kept = run.layout.patches
        run.budget = torch.ones(len(run.kept), device=run.kept.device)
        return run.kept


@dataclass(frozen=True)
class Random(FixedShare):
    """Keep a random share of the patches from the anchor layer on, drawn afresh at every decode step.

    A row's draws depend on its seed and the step only, not on the rest of the batch.

    Parameters
    ----------
    budget, anchor_layer
        As in `FixedShare`.
    """

    name: ClassVar[str] = "random"

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        patches = layout.patches
        return top_k(drawn(layout, view.step).masked_fill(~patches, -torch.inf), k, most_kept(self.budget, layout))


@dataclass(frozen=True)
class StaticRandom(FixedShare):
    """Keep one random share of the patches from the anchor layer on, the same at every decode step.

    A control, of no paper: beside `Random`, what drawing afresh at every step is worth; beside a fixed set that was
    chosen, what the choice is worth. A row's set depends on its seed only.

    Parameters
    ----------
    budget, anchor_layer
        As in `FixedShare`.
    """

    name: ClassVar[str] = "static_random"

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        # Step 0 is prefill, of which `Random` never draws: the two are independent.
        order = drawn(layout, 0).masked_fill(~layout.patches, -torch.inf)
        return top_k(order, k, most_kept(self.budget, layout))


@dataclass(frozen=True)
class Uniform(FixedShare):
    """Keep evenly spaced patches from the anchor layer on, the same ones at every step.

    Of ``n`` patches in reading order, image after image, number ``floor((i + 1/2) n / k)`` for i = 0 .. k - 1: the
    middle of each of ``k`` equal stretches.

    Parameters
    ----------
    budget, anchor_layer
        As in `FixedShare`.
    """

    name: ClassVar[str] = "uniform"

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        n, k = layout.counts[:, None], k[:, None]
        i = torch.arange(layout.patches.shape[1], device=k.device)[None]
        middles = (2 * i + 1) * n // (2 * k)
        middles = torch.where(i < k, middles, middles[:, :1])
        return torch.zeros_like(layout.patches).scatter_(1, middles, True)


@dataclass(frozen=True)
class PrefillOnce(FixedShare):
    """Choose once, by prefill's last query, and keep that set for the whole run.

    At the anchor layer of prefill the patches are ranked by the head-mean logits of the last prompt token, as a static
    pruner such as FastV (arXiv 2403.06764) ranks them; the set holds at the anchor and all later layers of every decode
    step. Prefill itself stays dense, so that the first token equals that of the dense run; FastV hides the
    patches in prefill's later layers as well.

    Parameters
    ----------
    budget, anchor_layer
        As in `FixedShare`.
    """

    name: ClassVar[str] = "prefill_once"

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        return top_k(view.patch_logits().mean(dim=1), k, most_kept(self.budget, layout))

    def observe_prefill(self, view: View, run: Selection) -> None:
        if view.layer == run.anchor:
            run.kept = self.keep(view, run.layout, run.k)

    def choose(self, view: View, run: Selection) -> torch.Tensor | None:
        return run.kept


@dataclass(frozen=True)
class LastStepOnly(FixedShare):
    """At every step, keep what the query of the *step before* ranked highest.

    The first decode step uses prefill's last query. The rank is the head-mean logit at the anchor layer, and the set
    holds at the anchor and all later layers: the choice of ``VisionPulse(budget=...)``, one step late.

    Parameters
    ----------
    budget, anchor_layer
        As in `FixedShare`.
    """

    name: ClassVar[str] = "last_step_only"

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        return top_k(view.patch_logits().mean(dim=1), k, most_kept(self.budget, layout))

    def begin(self, run: Selection) -> None:
        super().begin(run)
        run.coming = None  # what the step just seen leaves to the next one

    def observe_prefill(self, view: View, run: Selection) -> None:
        if view.layer == run.anchor:
            run.coming = self.keep(view, run.layout, run.k)

    def choose(self, view: View, run: Selection) -> torch.Tensor | None:
        now, run.coming = run.coming, self.keep(view, run.layout, run.k)
        return now


@dataclass(frozen=True)
class Hindsight(FixedShare):
    """Keep one set at every step: the patches that the dense trace attends to most, mean over its steps.

    A control for the claim that evidence depends on the step, of no paper. Each prompt is first decoded densely with
    the same seed and sampling; the patches are ranked by the head-mean attention at the anchor layer, mean over the
    steps after prefill, and the same ``floor(budget * n)`` of them stay at the anchor and all later layers of every
    decode step. Against ``VisionPulse(budget=...)`` it differs in one thing: the set does not change from step to
    step. Where it loses nothing, what makes prefill's set fail is the moment, not that it is one set. It costs a dense
    trace and saves nothing.

    Parameters
    ----------
    budget, anchor_layer
        As in `FixedShare`.
    """

    name: ClassVar[str] = "hindsight"

    def begin(self, run: Selection) -> None:
        super().begin(run)
        layout = run.layout
        if layout.hindsight is None:
            raise ValueError("hindsight needs the model: use it through decode")
        attended = layout.hindsight(run.anchor).masked_fill(~layout.patches, -torch.inf)
        run.kept = top_k(attended, run.k, most_kept(self.budget, layout))

    def choose(self, view: View, run: Selection) -> torch.Tensor | None:
        return run.kept


@dataclass(frozen=True)
class Oracle(BeforeModel):
    """Keep the patches that the model's own dense answer is most relevant to, before the language model.

    The oracle of arXiv 2506.01097 (section 3; gradient-weighted attention relevance, see `relevance.relevance`): it
    decodes each prompt densely and greedily, then follows every answered token back to the image. A reference for
    comparisons, many times as costly as dense decoding, and not a way to save anything; no upper bound either: it is
    chosen once before the model, from the dense answer, and a pruner that chooses at each step can beat it.

    Parameters
    ----------
    budget : float
        Share kept in (0, 1], ``round(budget * n)`` patches.
    tokens : int
        The relevance is the mean over so many tokens from the beginning of the answer, or all it has.
    """

    name: ClassVar[str] = "oracle"

    tokens: Count = 64

    def begin(self, run: Selection) -> None:
        layout = run.layout
        if layout.relevance is None:
            raise ValueError("the oracle needs the model: use it through decode")
        run.relevance = layout.relevance(self.tokens).masked_fill(~layout.patches, -torch.inf)

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        if view.layer > 0:
            return None
        run.kept = top_k(run.relevance, nearest_k(self.budget, run.layout.counts))
        return run.kept
