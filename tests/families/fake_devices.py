"""Devices that are not there: tensors that compute on the CPU, say that they are elsewhere, and refuse to mix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

FAKE = "lazy"  # a kind of device that torch knows and this machine lacks
FLOAT64 = False  # whether it has float64
ATEN = torch.ops.aten
# The host needs numbers of the device to go on. In inference mode the first is not taken apart into the second.
ASKING = {ATEN.item, ATEN._local_scalar_dense, ATEN.is_nonzero, ATEN.nonzero, ATEN.argwhere, ATEN.masked_select}
ASKING |= {ATEN.equal, ATEN.allclose, ATEN._unique2, ATEN.unique_consecutive, ATEN.bincount}
_watched = [False]


class Elsewhere(torch.Tensor):
    """A tensor of the CPU that says it is on another device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device):
        if held.dtype == torch.float64 and not FLOAT64:
            raise TypeError("this device has no float64, as those of Apple have none")
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, **shape, dtype=held.dtype, device=device)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})

    def _read(self) -> torch.Tensor:
        """What the host asks for; it would have to wait for a real device."""
        _refuse_to_wait(_watched[-1], "a number is asked for")
        return self.held

    def tolist(self):
        return self._read().tolist()

    def item(self):
        return self._read().item()

    def __bool__(self):
        return bool(self._read())

    def __int__(self):
        return int(self._read())

    def __index__(self):
        return int(self._read())

    def __float__(self):
        return float(self._read())

    def data_ptr(self):
        return self.held.data_ptr()


class FakeDevices(TorchDispatchMode):
    """While active, tensors can be made on, and moved to, the devices ``lazy:0``, ``lazy:1`` and so on."""

    def __enter__(self):
        # torch.tensor(..., device=...) makes its tensor on the CPU and moves it, so that it passes by here.
        self.lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self.lifts)
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


@contextmanager
def no_waiting(watched: bool = True) -> Iterator[None]:
    """Inside, whatever makes the host wait for a fake device is a RuntimeError, blocking copies in both directions too.

    ``watched`` False allows it again.
    """
    _watched.append(watched)
    try:
        yield
    finally:
        _watched.pop()


def _refuse_to_wait(waits: bool, what: Any) -> None:
    if waits:
        raise RuntimeError(f"{what}: the host waits for the device")


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Call an operator on the CPU; RuntimeError where its tensors are on different devices."""
    if function.overloadpacket is ATEN._has_compatible_shallow_copy_type:
        return False  # asked when a module moves: its parameters are made anew, as for other devices
    leaves = tree_flatten((args, kwargs))[0]
    tensors = [value for value in leaves if isinstance(value, torch.Tensor)]
    asked = [value for value in leaves if isinstance(value, torch.device)]
    filled = function.overloadpacket is torch.ops.aten.copy_
    if function.overloadpacket is torch.ops.aten.index:  # what chooses may lie on the CPU
        tensors = tensors[:1] + [tensor for tensor in tensors[1:] if tensor.device.type != "cpu"]
    places = list(dict.fromkeys(tensor.device for tensor in sorted(tensors, key=lambda t: t.ndim == 0)))
    if len({tensor.device for tensor in tensors if tensor.ndim}) > 1 and not asked and not filled:
        raise RuntimeError(f"{function}: tensors on different devices: {places}")
    if _watched[-1]:
        kinds = {tensor.device.type for tensor in tensors if tensor.ndim or asked or filled}
        kinds |= {device.type for device in asked}
        by_mask = function.overloadpacket is ATEN.index and any(t.dtype == torch.bool for t in tensors[1:])
        there = any(tensor.device.type == FAKE for tensor in tensors)
        asks = there and (function.overloadpacket in ASKING or function is ATEN.where.default or by_mask)
        _refuse_to_wait(asks or kinds == {FAKE, "cpu"}, function)
    place = args[0].device if filled else (asked or places or [torch.device("cpu")])[0]

    def bare(value: Any) -> Any:
        return torch.device("cpu") if isinstance(value, torch.device) else getattr(value, "held", value)

    given, options = tree_map(bare, (args, kwargs))
    if function.overloadpacket is torch.ops.aten.histc:  # of integers, as on CUDA; a CPU has it of floats only
        given = [given[0].float(), *given[1:]]
    out = function(*given, **options)
    if place.type != FAKE:
        return out
    place = torch.device(FAKE, place.index or 0)
    known = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, Elsewhere)}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        same = known.get(id(value))
        return same if same is not None and same.device == place else Elsewhere(value, place)

    return tree_map(wrapped, out)


@torch.inference_mode()
def move(module: torch.nn.Module, device: str) -> None:
    """Put the parameters and buffers of a module, and of all inside it, on a fake device."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                here = value.held if isinstance(value, Elsewhere) else value.data
                there = Elsewhere(here, torch.device(device))
                part._parameters[name] = torch.nn.Parameter(there, requires_grad=False)
        for name, value in part._buffers.items():
            if value is not None:
                here = value.held if isinstance(value, Elsewhere) else value
                part._buffers[name] = Elsewhere(here, torch.device(device))


def split(model: torch.nn.Module, elsewhere: list[torch.nn.Module]) -> None:
    """Put a model on ``lazy:0`` and some modules of it on ``lazy:1``; what they are given follows, as by accelerate."""
    move(model, f"{FAKE}:0")
    for module in elsewhere:
        move(module, f"{FAKE}:1")
        module.register_forward_pre_hook(_follow, with_kwargs=True)


def _follow(module: Any, args: Any, options: Any) -> Any:
    there = next(module.parameters()).device
    return tree_map(lambda value: value.to(there) if isinstance(value, torch.Tensor) else value, (args, options))
