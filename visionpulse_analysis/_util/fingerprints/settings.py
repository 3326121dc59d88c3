"""Process-wide settings that change digits: torch's switches, threads, the processor, versions of libraries."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "Pillow", "safetensors", "triton")
# What the compiled parts of torch read; variables that Python code reads are found in that code.
READ_BY_LIBRARIES = ("TORCH", "PYTORCH", "ATEN", "OMP", "MKL", "KMP", "DNNL", "ONEDNN", "CUDA", "CUBLAS", "CUDNN",
                     "NVIDIA", "TRITON", "OPENBLAS")  # fmt: skip
PLACES = ("DIR", "PATH", "HOME", "NUM_THREADS")  # where things lie; threads are asked of torch


def settings() -> dict[str, Any]:
    """The settings in force, plain values and, where a mode of torch is active, the mode itself.

    Returns
    -------
    dict
        By what is set, in a fixed order.
    """
    backends = torch.backends
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "flush denormals": bool(np.float32(1e-40) * np.float32(1.0) == 0),  # a switch of the processor, set by torch
        "autocast": [(d, torch.is_autocast_enabled(d), str(torch.get_autocast_dtype(d))) for d in ("cpu", "cuda")],
        "backends": {name: _switches(getattr(backends, name)) for name in ("cuda", "cudnn", "mkldnn", "mkl", "mps")},
        "matmul": _matmul(),
        "modes": _modes(),
        "environment": {key: text for key, text in sorted(os.environ.items()) if _counts(key)},
    }


def _counts(name: str) -> bool:
    return name.startswith(READ_BY_LIBRARIES) and not name.endswith(PLACES)


def machine() -> dict[str, Any]:
    """The processor, and the accelerators where there are some: their arithmetic differs in the last digits."""
    cards = []
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": platform.machine(), "instructions": torch.backends.cpu.get_cpu_capability(), "accelerators": cards}


def _version(name: str) -> str | None:
    module = sys.modules.get(name)
    stated = None if module is None else getattr(module, "__version__", None)
    try:
        return str(stated or version(name))
    except PackageNotFoundError:
        return None


def _switches(backend: Any) -> dict[str, Any]:
    """Every plain switch that this version of torch has for a backend, by name; those to be asked end in enabled."""
    found: dict[str, Any] = {}
    for name in sorted({*dir(backend), *dir(type(backend))}):
        if name.startswith("_") or name.isupper():
            continue
        try:
            value = getattr(backend, name)
            value = value() if name.endswith("_enabled") and callable(value) else value
        except Exception:  # a switch of a device that is not here, and so sets nothing
            continue
        if isinstance(value, bool | int | float | str | type(None)):
            found[name] = value
    return found


def _matmul() -> dict[str, Any]:
    """Switches of CUDA's matrix products, which answer to no `dir`."""
    names = ("allow_tf32", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction",
             "allow_fp16_accumulation", "fp32_precision")  # fmt: skip
    found = {}
    for name in names:
        try:
            found[name] = getattr(torch.backends.cuda.matmul, name)
        except (AttributeError, RuntimeError):
            continue
    return found


def _modes() -> list[Any]:
    """Modes that see every call of torch: those of `torch.overrides`, and those of its dispatcher."""
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    return [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
