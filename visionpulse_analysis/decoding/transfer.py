"""Bringing what a device computed to the host, without making either wait for the other."""

from __future__ import annotations

from typing import Any

import torch


class Arriving:
    """Named tensors on their way to the host; None stays None.

    On a GPU they are copied while it goes on computing, and :meth:`get` waits for the copy, not for later work.
    """

    def __init__(self, tensors: dict[str, torch.Tensor | None]):
        devices = {tensor.device for tensor in tensors.values() if tensor is not None}
        self._copied: Any = None
        if all(device.type == "cpu" for device in devices):
            self._tensors = tensors
            return
        self._tensors = {name: None if tensor is None else _pinned(tensor) for name, tensor in tensors.items()}
        self._copied = torch.cuda.Event()
        self._copied.record()

    def get(self) -> dict[str, Any]:
        """The values as numpy arrays."""
        if self._copied is not None:
            self._copied.synchronize()
        return {name: None if tensor is None else tensor.numpy() for name, tensor in self._tensors.items()}


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
