"""Record, prune, measure and draw what a vision-language model looks at while it reasons.

Importing this package changes nothing and loads nothing: every public name is fetched from its module
on first use, so a stored trace can be read and drawn on a machine without torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULE_OF = {
    "AblateHeads": "decoding.interventions",
    "HidePatches": "decoding.interventions",
    "PatchActivations": "decoding.interventions",
    "PatchGrid": "media.patch_grid",
    "PromptOptions": "models.asking",
    "Sample": "models.sample",
    "StoreVersionError": "traces.store",
    "Sweep": "experiments.sweeps.results",
    "Trace": "traces",
    "TraceStore": "traces.store",
    "VLM": "models.loading",
    "Video": "media.videos",
    "VisionPulse": "pruners",
    "calibrate": "decoding.calibration",
    "check": "decoding.exactness",
    "costs_of": "metrics.flops",
    "create_trace": "traces",
    "decode": "decoding",
    "denoise": "decoding.denoising",
    "explore": "explorer",
    "intervene": "decoding.interventions",
    "list_pruners": "pruners",
    "list_quantities": "traces.computed",
    "load": "models.loading",
    "locate": "models.locate",
    "make_pruner": "pruners",
    "playground": "studies.playground",
    "quantity": "traces.quantities",
    "watch": "decoding.watching",
    "watch_lmms_eval": "decoding.watching.lmms_eval",
}

__all__ = [*_MODULE_OF, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(sorted(_MODULE_OF))}"
        )
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
