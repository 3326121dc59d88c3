"""CoViPAL: a small trained module reads patches and question, and says which patches the answer will need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from visionpulse_analysis._util.later import torch
from visionpulse_analysis.pruners.base import BeforeModel, LayerIndex, Selection
from visionpulse_analysis.pruners.heads import Learned, Words, question_words
from visionpulse_analysis.pruners.top_k import check_layer, nearest_k, top_k
from visionpulse_analysis.pruners.view import Layout, View

if TYPE_CHECKING:
    from visionpulse_analysis.pruners.networks import Head


def words_of_question(states: torch.Tensor, layout: Layout, words: Words) -> tuple[torch.Tensor, torch.Tensor]:
    """The states of the question's words, float32 [row, word, width], and which are there, bool [row, word]."""
    places, asked = question_words(layout, words)
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[2])).float() * asked[..., None], asked


@dataclass(frozen=True)
class CoViPAL(Learned, BeforeModel):
    """Keep the patches that a trained scorer ranks highest by patches and question, at one layer, for good.

    CoViPAL (EMNLP 2025 findings; "layer-wise contextualised visual token pruning", arXiv 2508.17243): a plug-in pruning
    module scores every patch by the hidden states of patches and text, and the ``round(budget * n)`` best go on; the
    model stays frozen. It is trained in two stages: to predict how much attention each patch will receive at a guidance
    layer, then end to end, the scores as a soft choice (`heads.guidance`, `heads.soft_choice` of the test bed).

    Unverified, since no code could be read: the layers of the module (here those of Dynamic-LLaVA's predictor, with the
    words of the question among the tokens that attend to one another), and how budgets are drawn in the second stage.
    Both are parameters of the head's training, and stand in its ``training.json``. Heads belong to one model; the
    bundled ones to "scenes".

    Parameters
    ----------
    budget : float
        Share kept, in (0, 1], any of them with the same head.
    renumber : bool
        As in `BeforeModel`.
    head : str
        A bundled head ("covipal"; "covipal-stage1" and "covipal-stage2" had one stage only), a folder with one, or
        "untrained": random weights, a control for any model.
    layer : int
        The layer of prefill whose entering states are scored, and the first that sees what is left; 0 is before the
        model. A head is trained for one layer.
    prompt : "question" or "text"
        Words read beside the patches: those of the question, as in training, or all text of the prompt, its template
        with it: for `generate` under `watch`, which does not say where the question is.

    Raises
    ------
    ValueError
        When decoding begins: the head belongs to another model or layer, or there is none.
    """

    name: ClassVar[str] = "covipal"

    head: str = "covipal"
    layer: LayerIndex = 0
    prompt: Words = "question"

    @staticmethod
    def network() -> type[Head]:
        from visionpulse_analysis.pruners.networks.scorer import Scorer

        return Scorer

    def begin(self, run: Selection) -> None:
        check_layer("layer", self.layer, run.layout)
        run.head = self.loaded(run.layout, layer=self.layer)

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        if view.layer != self.layer:
            return None
        layout, patches = run.layout, view.patch_states()
        present = layout.patches if view.shown is None else view.shown
        scorer = self.network().untrained(width=patches.shape[2]).to(patches) if run.head is None else run.head
        words, asked = words_of_question(view.states(), layout, self.prompt)
        scores = scorer(patches, words, present, asked)
        run.kept = top_k(scores.masked_fill(~layout.patches, -torch.inf), nearest_k(self.budget, layout.counts))
        return run.kept
