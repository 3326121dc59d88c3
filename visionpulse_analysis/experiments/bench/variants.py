"""What is benchmarked, by name: sizes of the language model, and ways to decode; checked without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from visionpulse_analysis.pruners import Pruner, VisionPulse

if TYPE_CHECKING:
    from visionpulse_analysis.attention import Execution

SIZES = {
    "tiny": {"layers": 4, "width": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp": 96},
    "small": {"layers": 12, "width": 512, "heads": 8, "kv_heads": 4, "head_dim": 64, "mlp": 1536},
    "qwen3-vl-4b": {"layers": 36, "width": 2560, "heads": 32, "kv_heads": 8, "head_dim": 128, "mlp": 9728},
}
WORDS = {"qwen3-vl-4b": 151_936}  # of the vocabulary; that of the bundled model for the others
PRUNERS: dict[str, tuple[Pruner, Execution]] = {
    "masked_5": (VisionPulse.five_percent(), "masked"),
    "gathered_5": (VisionPulse.five_percent(), "gathered"),
    "gathered_10": (VisionPulse.ten_percent(), "gathered"),
    "reuse_5": (replace(VisionPulse.five_percent(), reuse_previous=True), "gathered"),
}
VARIANTS = ("stock", "eager", "dense", *PRUNERS)
UNPRUNED = ("stock", "eager", "dense", "flash")  # flash: our dense step, with PyTorch's flash kernel or none


def pruner_of(variant: str) -> tuple[Pruner | None, Execution]:
    """The pruner and execution of a variant; ``gathered_25`` keeps 25 % at every step, whatever the number.

    Raises ValueError for a name that is no variant.
    """
    if variant in UNPRUNED:
        return None, "masked"
    if variant in PRUNERS:
        return PRUNERS[variant]
    execution, _, percent = variant.partition("_")
    if execution not in ("masked", "gathered") or not percent.isdecimal() or not 1 <= int(percent) <= 100:
        raise ValueError(
            f"no variant {variant!r}: expected {', '.join(VARIANTS)}, flash, or masked_ or gathered_ with a percentage"
        )
    return VisionPulse(budget=int(percent) / 100), "masked" if execution == "masked" else "gathered"


def check_names(size: str, variants: Sequence[str] = ()) -> None:
    """Raise ValueError for a size that is not known, or a name that is no variant."""
    if size not in SIZES:
        raise ValueError(f"no size {size!r}; known: {', '.join(SIZES)}")
    for name in variants:
        pruner_of(name)
