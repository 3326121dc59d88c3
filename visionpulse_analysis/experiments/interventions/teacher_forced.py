"""Prompts and the beginnings of their answers, read in one pass under whatever acts on the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from visionpulse_analysis._util.torch_settings import own_settings
from visionpulse_analysis.attention.hooks import watch_layers
from visionpulse_analysis.attention.prefill import Prefill
from visionpulse_analysis.attention.routing import Call, intercept
from visionpulse_analysis.models.families import Prompt, in_columns
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Redirect, Selection
from visionpulse_analysis.pruners.top_k import float64
from visionpulse_analysis.pruners.view import Layout, View

Start = Callable[[Layout], Selection]


class Passages:
    """A left-padded batch of prompts, each perhaps followed by tokens of its answer.

    The layers read all tokens in one pass, so whatever acts in prefill acts on the tokens of the answer as well.

    Parameters
    ----------
    vlm : VLM
    prompts : sequence of Prompt
        `Prompt.answered` appends tokens of an answer.
    queries : sequence of int arrays [query]
        Positions in each unpadded prompt, of which the next token is asked; as many for every prompt.

    Attributes
    ----------
    queries : int64 [row, query]
        The same in the padded batch.
    """

    @own_settings()
    def __init__(self, vlm: VLM, prompts: Sequence[Prompt], queries: Sequence[Sequence[int] | np.ndarray]):
        self.vlm = vlm
        padding = vlm.tokenizer.pad_token_id
        self.inputs = vlm.to_device(vlm.family.batch(prompts, 0 if padding is None else padding))
        self.position = vlm.family.positions(vlm.model, self.inputs)
        width, device = self.inputs["input_ids"].shape[1], vlm.model.device
        starts = torch.tensor([width - len(prompt.ids) for prompt in prompts], device=device)
        self.queries = torch.as_tensor(np.array(queries), device=device) + starts[:, None]
        where = Layout(
            **in_columns(prompts, starts.tolist()),  # pyright: ignore[reportArgumentType]
            n_layers=vlm.n_layers,
            default_anchor=vlm.default_anchor,
            seeds=list(range(len(prompts))),
            question=torch.zeros(len(prompts), width, dtype=torch.bool),
        )
        self.layout = where.on(device)

    @torch.inference_mode()
    def read(self, start: Start = Selection) -> tuple[np.ndarray, Selection, Prefill]:
        """Log probabilities of the next tokens, float64 [row, query, word], and what acted, with what it left visible.

        ``start`` opens the selection, as `Pruner.start` does; by default nothing acts.
        """
        selection = start(self.layout)
        prefill = Prefill(self.layout, selection)

        def attend(call: Call):
            call.check_plain()
            given = (self.layout, call.query, call.key, call.value, call.mask, call.scaling)
            view = View(0, call.layer, *given, prefill.shown, prefill.states, prefill.block)
            prefill.choose(view)
            shown = prefill.mask(view)
            return prefill.attend(view, lambda values: replace(call, value=values, mask=shown).run())

        position, first = self.position, int(self.queries.min())
        with intercept(self.vlm.model, attend), watch_layers(self.vlm.model, prefill):
            logits = self.vlm.model(
                **self.inputs,
                position_ids=position.expand(3, -1, -1) if self.vlm.family.mrope and position.ndim == 2 else position,
                use_cache=False,
                logits_to_keep=self.inputs["input_ids"].shape[1] - first,
            ).logits
        index = (self.queries - first)[..., None].expand(-1, -1, logits.shape[-1])
        return log_softmax(logits.gather(1, index)), selection, prefill


class SkipImage(Selection):
    """Text gets nothing from the patches in some layers; what it attends to beside them stays as it is.

    The weights are not renormalised, so the part of the attention that went to the image is lost, as in VisiPruner
    (arXiv 2510.17205, section 3, as its released code does it).
    """

    def __init__(self, layout: Layout, layers: range):
        super().__init__(layout)
        self.layers = layers

    def redirect(self, view: View) -> Redirect | None:
        return Redirect(text=torch.full_like(self.layout.places, -1)) if view.layer in self.layers else None


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    """Natural log probabilities over the last axis, as float64."""
    return torch.log_softmax(float64(logits), dim=-1).cpu().numpy()
