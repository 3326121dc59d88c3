"""How to decode, checked: which layers and heads are recorded, what hides patches, how tokens are chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from visionpulse_analysis._util.checks import whole_number
from visionpulse_analysis.attention import Execution
from visionpulse_analysis.decoding.sampling import Sample
from visionpulse_analysis.models.families import PromptOptions
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.traces.quantities import Quantity


@dataclass(frozen=True)
class Options:
    """How to decode.

    layers : zero-based, in order; empty records nothing. heads : recorded one by one, or None for their mean. record :
    what is recorded besides attention and mass. The others are those of :func:`decode`.
    """

    layers: list[int]
    heads: list[int] | None
    pruner: Pruner | None = None
    execution: Execution = "masked"
    sample: Sample | None = None
    max_new_tokens: int = 256
    record: tuple[Quantity, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_new_tokens", whole_number(self.max_new_tokens, "max_new_tokens", least=1))
        if self.pruner is not None and not isinstance(self.pruner, Pruner):
            raise ValueError(f"pruner must be a pruner or None, got {self.pruner!r}; {_made(self.pruner)}")
        if self.sample is not None and not isinstance(self.sample, Sample):
            raise ValueError(
                f"sample must be a Sample or None, got {self.sample!r}; say sample=Sample(temperature=1.0), "
                "from visionpulse_analysis.decoding.sampling, or 'model' for the model's own way"
            )
        if self.record and not self.layers:
            names = [row.name for row in self.record]
            raise ValueError(f"record names {names}, but no layer is recorded; choose layers, or leave record out")
        if self.execution not in ("masked", "gathered"):
            raise ValueError(f"execution must be 'masked' or 'gathered', got {self.execution!r}")


def _made(given: Any) -> str:
    """How to make the pruner that was meant."""
    if isinstance(given, type) and issubclass(given, Pruner):
        return f"say {given.__name__}(), an instance of the class"
    return f"say vpa.make_pruner({given if isinstance(given, str) else 'visionpulse'!r})"


def indices(given: Any, name: str, words: str) -> list[int]:
    """A list of whole numbers as such; ValueError, which names the words that may stand in its place, for others."""
    if isinstance(given, bytes | dict) or not isinstance(given, Iterable):
        raise ValueError(f"{name} must be {words} or a list of int, got {given!r}")
    return [whole_number(one, f"every entry of {name}") for one in given]


def seeds_of(seed: Any, count: int) -> list[int]:
    """One seed for each of ``count`` rows: ``seed + i``, or those of a list; ValueError for anything else."""
    if isinstance(seed, Iterable) and not isinstance(seed, str | bytes):
        seeds = list(seed)
    else:
        first = whole_number(seed, "seed")
        seeds = [first + i for i in range(count)]
    if len(seeds) != count:
        raise ValueError(f"{count} questions need as many seeds, got {len(seeds)}")
    return [whole_number(one, "seed", least=-(2**63), most=2**63 - 1) for one in seeds]


def sample_of(vlm: VLM, given: Any) -> Any:
    """How tokens are drawn: what is given, and for "model" what the model's generation configuration says."""
    if not (isinstance(given, str) and given == "model"):
        return given
    drawn = vlm.generation.drawn
    return None if drawn is None else Sample(**drawn)


def asking_each(vlm: VLM, given: Any, count: int) -> list[VLM]:
    """The model as it is asked in each of ``count`` rows: with options for all, or those of a list, over its own."""
    listed = list(given) if isinstance(given, list | tuple) else [given] * count
    if len(listed) != count:
        raise ValueError(f"{count} questions need as many prompt_options, or one for all, got {len(listed)}")
    known: dict[str, VLM] = {}
    asking = []
    for one in listed:
        options = PromptOptions.of(one).over(vlm.prompt_options)
        asking.append(known.setdefault(repr(options), vlm if options == vlm.prompt_options else vlm.asking(options)))
    return asking


def layers_of(vlm: VLM, layers: Any) -> list[int]:
    """The layers that "all", "anchor", "none", an index or a list of indices means; ValueError for anything else."""
    n = vlm.n_layers
    if isinstance(layers, str):
        known = {"all": vlm.attention_layers, "anchor": [vlm.default_anchor], "none": []}
        if layers not in known:
            raise ValueError(f"layers must be 'all', 'anchor', 'none', an int or a list of int, got {layers!r}")
        return known[layers]
    known = "'all', 'anchor', 'none', an int"
    chosen = indices([layers] if isinstance(layers, Integral) else layers, "layers", known)
    wrong = [layer for layer in chosen if not 0 <= layer < n]
    if wrong or len(set(chosen)) != len(chosen):
        raise ValueError(f"layers {chosen}: expected different indices from 0 to {n - 1} ({vlm.name} has {n} layers)")
    without = sorted(set(chosen) - set(vlm.attention_layers))
    if without:
        raise ValueError(
            f"layers {without} of {vlm.name} have no softmax attention (linear attention, convolutions); those that "
            f"have it are {vlm.attention_layers}: choose among them, or layers='all'"
        )
    return sorted(chosen)


def heads_of(vlm: VLM, heads: Any) -> list[int] | None:
    """The heads that "all" or a list of indices means, None for "mean"; ValueError for anything else."""
    if isinstance(heads, str):
        if heads not in ("mean", "all"):
            raise ValueError(f"heads must be 'mean', 'all' or a list of int, got {heads!r}")
        return None if heads == "mean" else list(range(vlm.n_heads))
    n = vlm.n_heads
    chosen = indices(heads, "heads", "'mean', 'all'")
    if not chosen or len(set(chosen)) != len(chosen) or any(not 0 <= head < n for head in chosen):
        raise ValueError(f"heads {chosen}: expected different indices from 0 to {n - 1} ({vlm.name} has {n} heads)")
    return chosen
