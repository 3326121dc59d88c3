"""DyVTE: a small gate after every layer says whether text has read enough for the image to leave, or leave a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from visionpulse_analysis._util.checks import Interval
from visionpulse_analysis._util.later import torch
from visionpulse_analysis.pruners.base import Selection
from visionpulse_analysis.pruners.heads import Learned
from visionpulse_analysis.pruners.view import Layout, View

if TYPE_CHECKING:
    from visionpulse_analysis.pruners.networks import Head


def text_states(states: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Mean of the text after the image without the last token, and the last token: float32 [row, 2 * width].

    states : [row, token, width].
    """
    last_patch = layout.places.masked_fill(~layout.patches, -1).amax(dim=1, keepdim=True)
    width = layout.question.shape[1]
    after = layout.text & (torch.arange(width, device=last_patch.device) > last_patch)
    after[:, -1] = False
    mean = (states * after[..., None]).sum(dim=1) / after.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.cat([mean, states[:, -1]], dim=1).float()


@dataclass(frozen=True)
class DyVTE(Learned):
    """Withdraw the image of a prompt after the first layer whose gate says that its text has read enough.

    DyVTE, arXiv 2411.19628, and the authors' code. A gate reads the states that leave a layer: the mean of the text
    after the image without its last token, and that token. It was trained to say whether the answer stays the same when
    text does not see the image from the next layer on (all tokens agree, cross-entropy below 1.03 times that of the
    dense model; here plus 0.01 nat, without which tasks whose cross-entropy is near 0 have no exits). Rows of a batch
    leave separately; a prompt of which no gate says so keeps its image.

    Unverified: nothing of the rule. The hidden width (64 of 128, the authors' 2,048 of 4,096) and the length of the
    training are the head's, and stand in its ``training.json``. Heads belong to one model; the bundled ones to
    "scenes".

    Parameters
    ----------
    head : str
        A bundled head ("exits"; "exits-shuffled" is a control), a folder with one, or "untrained".
    first_layer : int
        The first layer that may be without the image, 1 or above; the number of layers withdraws nothing.

    Raises
    ------
    ValueError
        When decoding begins: the head belongs to another model, or there is none.
    """

    name: ClassVar[str] = "dyvte"

    head: str = "exits"
    first_layer: Annotated[int, Interval(ge=1)] = 1

    @staticmethod
    def network() -> type[Head]:
        from visionpulse_analysis.pruners.networks.gates import Gates

        return Gates

    def begin(self, run: Selection) -> None:
        run.head = self.loaded(run.layout)

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        layout = run.layout
        if view.layer < self.first_layer:
            return None
        states = view.states()
        if run.head is None:
            gates = self.network().untrained(width=states.shape[2], gates=layout.n_layers - 1)
            run.head = gates.to(layout.device).requires_grad_(False)
        leaves = run.head(text_states(states, layout), view.layer - 1).argmax(dim=1) == 1
        left = layout.patches if run.kept is None else run.kept
        run.kept = left & ~leaves[:, None]
        return run.kept


@dataclass(frozen=True)
class DyVTESteps(Learned):
    """Hide the image from each token after the first layer whose gate says that the token has read enough.

    DyVTE, arXiv 2411.19628, carried from prefill to the decode steps. All of it is ours: gates of the same form read
    the state of the newest token that leaves a layer. They were trained to say whether the next token stays the same
    when the tokens of the answer do not see the image from the next layer on, its cross-entropy below 1.03 times the
    dense one plus 0.01 nat. Prefill is dense, rows decide separately, and the image is back at the next step. Heads
    belong to one model; the bundled ones to "scenes".

    Parameters
    ----------
    head : str
        A bundled head ("exits-steps"; "exits-steps-shuffled" is a control), a folder with one, or "untrained".
    first_layer : int
        The first layer that may be without the image, 1 or above; the number of layers hides nothing.

    Raises
    ------
    ValueError
        When decoding begins: the head belongs to another model or reads prompts, or there is none.
    RuntimeError
        At a step: the model does not show what enters its layers.
    """

    name: ClassVar[str] = "dyvte_steps"

    head: str = "exits-steps"
    first_layer: Annotated[int, Interval(ge=1)] = 1

    @staticmethod
    def network() -> type[Head]:
        from visionpulse_analysis.pruners.networks.gates import StepGates

        return StepGates

    def begin(self, run: Selection) -> None:
        run.head, run.gone, run.step = self.loaded(run.layout), None, None

    def visible(self, view: View, run: Selection) -> torch.Tensor | None:
        layout = run.layout
        if view.step != run.step:  # not by layer 0, which need not be one of attention
            run.step, run.gone = view.step, torch.zeros_like(layout.patches[:, 0])
        if view.layer < self.first_layer:
            return None
        newest = view.newest_state()
        if run.head is None:
            gates = self.network().untrained(width=newest.shape[1], gates=layout.n_layers - 1)
            run.head = gates.to(layout.device).requires_grad_(False)
        run.gone = run.gone | (run.head(newest, view.layer - 1).argmax(dim=1) == 1)
        return layout.patches & ~run.gone[:, None]
