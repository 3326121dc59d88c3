"""A pruner inside the user's `generate`: what it chooses is hidden by the mask of each attention call."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from visionpulse_analysis.attention import Group, StepAttention
from visionpulse_analysis.attention.patterns import sliced_mlps
from visionpulse_analysis.attention.routing import watch_layers
from visionpulse_analysis.decoding.trace_builder import visible_of
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.pruners.pattern import ORDINARY
from visionpulse_analysis.pruners.view import Layout

ELSEWHERE = "use vpa.decode, whose own loop can"


class MaskedPruning:
    """Carries out the choices of a pruner for the rows of one generation.

    Parameters
    ----------
    pruner : Pruner
    layout : Layout
    whole_prefill : bool
        Whether prefill reads the whole prompt at once.
    known_before : bool
        Whether it was known before prefill where the image tokens are.

    Raises
    ------
    ValueError
        The pruner needs what `generate` does not give it.
    """

    def __init__(self, pruner: Pruner, layout: Layout, whole_prefill: bool, known_before: bool):
        self.pruner, self.layout, self.name = pruner, layout, pruner.name or "the pattern of this model"
        if _asks_for_the_question(pruner):
            raise ValueError(
                f"{self.name} reads the words of the question, and which tokens of a prompt these are is not known "
                f"inside generate: {ELSEWHERE} tell, or set prompt='text', where a pruner has it, to take all its text"
            )
        if pruner.renumbers:
            raise ValueError(f"{self.name} counts positions anew, and generate counts its own: set renumber=False")
        self.group = Group(layout, pruner.start(layout))
        selection = self.group.selection
        if selection.recomputes:
            raise ValueError(f"{self.name} runs without a cache, which generate keeps: set per_step=False")
        if selection.edits_cache:
            raise ValueError(f"{self.name} edits the cache after prefill, and inside generate it is not its own; "
                             f"{ELSEWHERE}")  # fmt: skip
        looks = selection.has("observe_prefill")
        self.logprobs: torch.Tensor | None = (
            None  # float32 [row, word] of the step just made, where its logits are shown
        )
        acts = not selection.dense_prefill or selection.pattern != ORDINARY
        self.in_prefill = looks or acts
        if self.in_prefill and not whole_prefill:
            raise ValueError(
                f"{self.name} looks at the whole prompt while it is read, and generate reads this one in parts; "
                "leave out prefill_chunk_size and give no cache that holds a part of it"
            )
        if acts and not known_before:
            raise ValueError(
                f"{self.name} acts in prefill, and the configuration of this model does not say which token ids "
                f"stand for images, so that it is known only in the middle of it; {ELSEWHERE}"
            )

    def begin(self, prefill: bool, read: int) -> None:
        """A forward pass begins; raises ValueError where it reads more than one new token, ``read`` of them."""
        if read > 1:
            raise ValueError(
                f"{self.name} chooses anew for each token, and generate reads {read} at a time here: leave out "
                "assistant_model and prompt_lookup_num_tokens, and keep use_cache=True, or watch without a pruner"
            )
        self.group.step += not prefill

    def reorder(self, rows: torch.Tensor) -> None:
        """Row i continues what was row ``rows[i]``, int64 [row], as beams do."""
        rows = rows.to(self.layout.device)
        self.group.layout = self.group.layout.take(rows)
        self.group.selection.drop_rows(rows)
        self.group.prefill.drop_rows(rows)
        self.logprobs = None if self.logprobs is None else self.logprobs[rows.to(self.logprobs.device)]

    def states_of(self, model: Any, step: StepAttention | None = None) -> AbstractContextManager[Any]:
        """Show the states between the layers to the pruner, of prefill or of a ``step``, inside the ``with`` block."""
        stack = ExitStack()
        stack.enter_context(watch_layers(model, self.group.prefill if step is None else step, needed=step is None))
        if step is None:
            stack.enter_context(sliced_mlps(model, self.group.selection.pattern, self.layout))
        return stack

    def visible(self, last: int) -> dict[str, torch.Tensor | None]:
        """What the step just made left visible, at the layer ``last`` and at each: see `visible_of`."""
        return visible_of(self.group, last)


def _asks_for_the_question(pruner: Any) -> bool:
    if getattr(pruner, "prompt", None) == "question":
        return True
    parts = [getattr(pruner, entry.name) for entry in fields(pruner)] if is_dataclass(pruner) else []
    return any(_asks_for_the_question(part) for part in parts if isinstance(part, Pruner))
