"""A stand-in for towers of timm, which is not among the packages of the tests: patches by one convolution.

The types with such towers keep their own projector and language part; only the tower is not theirs.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from shrinking import PATCH
from transformers.models.timm_wrapper import modeling_timm_wrapper
from transformers.utils import import_utils

HERE = "transformers.models.timm_wrapper.modeling_timm_wrapper"


class Tower(torch.nn.Module):
    """Features float [picture, channel, row, col], or [picture, 1 + patch, channel] for those that want a sequence."""

    def __init__(self, width: int, sequence: bool):
        super().__init__()
        self.patches, self.sequence = torch.nn.Conv2d(3, width, PATCH, PATCH), sequence

    def forward_features(self, pixels: torch.Tensor, **_: Any) -> torch.Tensor:
        found = self.patches(pixels)
        if not self.sequence:
            return found
        found = found.flatten(2).transpose(1, 2)
        return torch.cat([torch.zeros_like(found[:, :1]), found], dim=1)

    def forward_head(self, found: torch.Tensor) -> torch.Tensor:
        return found.mean(dim=1)


@contextmanager
def stand_in(width: int, sequence: bool):
    """While a model is built: its tower of timm is the stand-in."""
    with ExitStack() as stack:
        if not import_utils.is_timm_available():
            stack.enter_context(patch(f"{HERE}.requires_backends", lambda *_: None))
        stack.enter_context(
            patch(f"{HERE}._create_timm_model_with_error_handling", lambda *_, **__: Tower(width, sequence))
        )
        wrapper = modeling_timm_wrapper.TimmWrapperPreTrainedModel
        stack.enter_context(patch.object(wrapper, "_timm_model_supports_gradient_checkpointing", lambda _: False))
        yield
