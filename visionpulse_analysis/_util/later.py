"""Libraries that take seconds to import, imported when something of them is first used.

``from visionpulse_analysis._util.later import torch`` stands for ``import torch`` where names, parameters and mistakes
are to be told without it, as in `pruners`: the command line answers a typing error at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["functional", "torch", "xr", "zarr"]


OURS = __name__.partition(".")[0]


class _Later(ModuleType):
    """Stands for the module of its name, until something is asked of it."""

    def __getattr__(self, name: str) -> Any:
        module = import_module(self.__name__)
        # Whoever holds this one holds the module from now on: nothing is slower, or another object, once it is there.
        for user in [user for name, user in [*sys.modules.items()] if name.startswith(OURS) and name != __name__]:
            vars(user).update({key: module for key, value in [*vars(user).items()] if value is self})
        return getattr(module, name)


if TYPE_CHECKING:
    import torch
    import xarray as xr
    import zarr
    from torch.nn import functional
else:
    torch, functional, xr, zarr = map(_Later, ("torch", "torch.nn.functional", "xarray", "zarr"))
