"""The module of `DyVTE`: a gate after each layer."""

from __future__ import annotations

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

    def __init__(self, width: int, gates: int, hidden: int = 64):
        super().__init__(width=width, gates=gates, hidden=hidden)
        self.up = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(hidden, 2 * width)) for _ in range(gates))
        self.down = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(2, hidden)) for _ in range(gates))

    def forward(self, text: torch.Tensor, gate: int) -> torch.Tensor:
        """Logits of staying and of leaving after the layer ``gate``: float32 [row, 2].

        text : float32 [row, 2 * width], of `text_states`.
        """
        return gelu(text @ self.up[gate].T) @ self.down[gate].T
