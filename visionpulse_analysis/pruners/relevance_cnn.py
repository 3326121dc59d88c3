"""A small convolutional network that turns attention to the question into what the answer will depend on."""

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

RAW = "raw"


def attention_of_words(view: View, layout: Layout, words: Words = "question") -> torch.Tensor:
    """Attention from the question's words to each patch, mean over heads and words: float32 [row, patch].

    Or from all text of the prompt, for the `words` "text". All zeros where a row has no question.
    """
    queries, asked = question_words(layout, words)
    weights = torch.softmax(view.query_logits(queries), dim=-1).mean(dim=1)
    index = layout.places[:, None].expand(-1, queries.shape[1], -1)
    # A row with fewer words fills up with padding, whose attention is NaN.
    seen = weights.gather(2, index).masked_fill(~asked[..., None], 0.0).sum(dim=1)
    return seen / asked.sum(dim=1).clamp(min=1)[:, None] * layout.patches


@dataclass(frozen=True)
class RelevanceCNN(Learned, BeforeModel):
    """Keep the patches that a small network expects the answer to depend on, by the question's attention in one layer.

    arXiv 2506.01097, section 4 ("explainability" compressor): attention from the question's words to the patches in
    the first layer goes through five depthwise-separable convolutions, trained to give what gradient-weighted attention
    says of the whole answer (`Oracle`), its lower half set to 0. ``round(budget * n)`` patches stay.

    Unverified, and parameters of the head: the kernel (3), the number of channels (8 to 128; the paper's are four times
    as many), how heads are put together (mean), that the attention's logarithm is read. Heads belong to one model; the
    bundled ones to "scenes".

    Parameters
    ----------
    budget : float
        Share kept, in (0, 1].
    renumber : bool
        As in `BeforeModel`.
    head : str
        A bundled head ("relevance" for layer 0, "relevance-layer4"), a folder with one, "untrained" for random weights,
        or "raw" for the attention itself, without a network.
    layer : int
        The layer of prefill whose attention is read, and the first that sees what is left. A head is trained for one.
    prompt : "question" or "text"
        Words whose attention is read: those of the question, as in training, or all text of the prompt, its template
        with it: for `generate` under `watch`, which does not say where the question is.

    Raises
    ------
    ValueError
        When decoding begins: the head belongs to another model or layer, or there is none.
    """

    name: ClassVar[str] = "relevance_cnn"

    head: str = "relevance"
    layer: LayerIndex = 0
    prompt: Words = "question"

    @staticmethod
    def network() -> type[Head]:
        from visionpulse_analysis.pruners.networks.compressor import Compressor

        return Compressor

    def begin(self, run: Selection) -> None:
        check_layer("layer", self.layer, run.layout)
        run.head = None if self.head == RAW else self.loaded(run.layout, layer=self.layer)

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        if view.layer != self.layer:
            return None
        layout = run.layout
        scores = attention_of_words(view, layout, self.prompt)
        if self.head != RAW:
            network = self.network().untrained().to(layout.device) if run.head is None else run.head
            scores = network(scores, layout.patches)
        run.kept = top_k(scores.masked_fill(~layout.patches, -torch.inf), nearest_k(self.budget, layout.counts))
        return run.kept
