"""The modules of `DyVTE` and `DyVTESteps`: a gate after each layer."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import gelu

from visionpulse_analysis.pruners.networks import Head


class Gates(Head):
    """Two linear maps without bias for each layer but the last, from the text's states to "stay" and "leave".

    Parameters
    ----------
    width : int
        Of the hidden states.
    gates, hidden : int
        How many there are, and the width between the two maps.
    """

    states: ClassVar[int] = 2  # side by side

    def __init__(self, width: int, gates: int, hidden: int = 64):
        super().__init__(width=width, gates=gates, hidden=hidden)
        entering = self.states * width
        self.up = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(hidden, entering)) for _ in range(gates))
        self.down = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(2, hidden)) for _ in range(gates))

    def forward(self, text: torch.Tensor, gate: int) -> torch.Tensor:
        """Logits of staying and of leaving after the layer ``gate``: float32 [row, 2].

        text : float32 [row, states * width]: of `text_states`, or of the newest token.
        """
        return gelu(text @ self.up[gate].T) @ self.down[gate].T


class StepGates(Gates):
    """The same from the state of the newest token alone."""

    states: ClassVar[int] = 1
