"""Bringing what a device computed to the host, without making either wait for the other."""

from __future__ import annotations

from typing import Any

import torch


class Arriving:
    """Named tensors on their way to the host; None stays None.

    On a CUDA device they are copied while it goes on computing, and :meth:`get` waits for the copy, not for later work.
    """

    def __init__(self, tensors: dict[str, torch.Tensor | None]):
        devices = {tensor.device for tensor in tensors.values() if tensor is not None}
        self._copied: list[Any] = []
        self._tensors = {name: None if tensor is None else _on_its_way(tensor) for name, tensor in tensors.items()}
        for device in devices:
            if device.type == "cuda":
                self._copied.append(torch.cuda.Event())
                self._copied[-1].record(torch.cuda.current_stream(device))

    def get(self) -> dict[str, Any]:
        """The values as numpy arrays."""
        for event in self._copied:
            event.synchronize()
        return {name: None if tensor is None else tensor.numpy() for name, tensor in self._tensors.items()}


def _on_its_way(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
