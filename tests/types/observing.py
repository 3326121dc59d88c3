"""What is seen of one type: each column of the table is a comparison made here, on a tiny random model.

A column says "yes" where it holds, and otherwise what was seen instead. A type that the package refuses has the reason.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tiny_types import UNMADE, build
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig

import visionpulse_analysis as vpa
from visionpulse_analysis.models.locating import measure
from visionpulse_analysis.pruners.baselines import Random

STEPS = 4
GREEDY = {"max_new_tokens": STEPS, "do_sample": False}
QUESTIONS = ("where ?", "how many of them ?")
COLUMNS = ("rows", "tokens", "batch", "pruned", "map", "layers")
CROSS = re.compile("cross|encdec|encoder_decoder|encoder_attn")
TOUCHED = {"forward", "generate", "generate_batch", "prepare_inputs_for_generation"}
Seen = dict[str, str]


class NotRunError(Exception):
    """The library itself does not run the model."""


def observe(kind: str) -> Seen:
    """All columns of a type, or why it is refused."""
    if kind in UNMADE:
        return {"absent": "no tiny model of it is made here"}
    try:
        model, processor = build(kind)
    except Exception as error:
        if type(error).__name__ != "StrictDataclassFieldValidationError" and "cannot be instantiated" not in str(error):
            raise
        return {"absent": "its default configuration is not valid in this version"}
    inputs = [processor(picture, text) for picture, text in zip(pictures(), QUESTIONS, strict=True)]
    before = state(model)
    try:
        seen = {"rows": "yes", **_recorded(model, processor, inputs[0])}
    except (ValueError, NotImplementedError) as error:
        assert state(model) == before  # refused, and left as it was
        return {"refused": str(error)}
    except NotRunError as error:
        return {"absent": str(error)}
    seen["batch"] = _batched(model, processor, inputs)
    if seen["batch"] != "yes":
        seen["batch"] = _batch_of_the_model(model, processor, inputs) or seen["batch"]
    seen["pruned"] = _pruned(model, processor, inputs[0])
    seen["map"] = _located(model, processor, int(seen.pop("patches")))
    assert state(model) == before
    return {column: seen[column] for column in COLUMNS}


def state(model: Any) -> Any:
    """Everything that watching touches; the library itself leaves hooks where attentions were asked for."""
    return [(sorted(TOUCHED & set(part.__dict__)), len(part._forward_pre_hooks)) for part in model.modules()]


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (32, 48, 3), dtype=np.uint8) for _ in range(2)]


def _rounding(rows: np.ndarray) -> float:
    """Half a unit in the last place of the stored float16, and the kernels' own rounding."""
    return float(np.spacing(np.float16(rows.max())) / 2 + 1e-5)


@contextmanager
def _eager(model: Any):
    """The library's own eager attention, everywhere."""
    found = (getattr(part, "config", None) for part in model.modules())
    configs = {id(config): config for config in found if isinstance(config, PretrainedConfig)}
    before = {key: config._attn_implementation for key, config in configs.items()}
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _eager_rows(model: Any, inputs: Any, trace: Any) -> tuple[torch.Tensor, np.ndarray]:
    """Sequences of an eager run, and its mean rows over the image tokens, float [step, layer, patch]."""
    positions, layers, meta = trace.grid.position, trace.layers, trace.meta
    crossed, kept = "cross_attention" in meta, []
    with _eager(model), _crossed_rows(model, kept):
        out = model.generate(**inputs, **GREEDY, output_attentions=True, return_dict_in_generate=True)
    rows, made_by_step = [], getattr(out, "cross_attentions", None) or out.attentions
    if crossed and not getattr(out, "cross_attentions", None):  # cross-attention in a decoder without an encoder
        made_by_step = [kept[step : step + len(layers)] for step in range(0, len(kept), len(layers))]
    for step, made in enumerate(made_by_step):
        total = 0 if crossed else inputs["input_ids"].shape[1] + step
        given = [one for one in made if one is not None]
        chosen = given if len(given) == len(layers) else [given[layer] for layer in layers]
        for weights in chosen:
            row = weights[0, :, -1].mean(dim=0)
            places = torch.from_numpy(positions) - max(0, total - len(row))  # a window holds the newest alone
            rows.append(torch.where(places >= 0, row[places.clamp(min=0)], 0))
    return out.sequences, torch.stack(rows).reshape(STEPS, len(layers), -1).float().numpy()


def _recorded(model: Any, processor: Any, inputs: Any) -> Seen:
    with vpa.watch(model, processor):
        pass  # what is refused is refused here, if it can be known
    try:
        plain = model.generate(**inputs, **GREEDY)
    except (AttributeError, IndexError) as error:
        raise NotRunError(f"the library's own generate fails on it: {error}") from error
    with vpa.watch(model, processor) as w:
        watched = model.generate(**inputs, **GREEDY)
    (trace,) = w.traces
    sequences, rows = _eager_rows(model, inputs, trace)
    gap = float(np.abs(trace.attention.values - rows).max())
    same = torch.equal(sequences, plain) and gap <= _rounding(rows)
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    return {
        "rows": "yes" if same and rows.any() else f"differ by {gap:.1g}",
        "tokens": "yes" if torch.equal(watched, plain) else "changed",
        "patches": str(len(trace.grid)),
        "layers": f"{len(trace.layers)} of {layers}",
    }


def _batched(model: Any, processor: Any, inputs: list[Any]) -> str:
    """Both prompts padded on the left to one length, against each alone."""
    with vpa.watch(model, processor) as w:
        for one in inputs:
            model.generate(**one, **GREEDY)
        model.generate(**processor.together(inputs), **GREEDY)
    alone, batch = w.traces[:2], w.traces[2:]
    for one, other in zip(alone, batch, strict=True):
        if one.tokens != other.tokens:
            return "other tokens"
        gap = float(np.abs(one.attention.values.astype(np.float32) - other.attention.values).max())
        if gap > 4 * _rounding(one.attention.values.astype(np.float32)):
            return f"differs by {gap:.1g}"
    return "yes"


def _batch_of_the_model(model: Any, processor: Any, inputs: list[Any]) -> str:
    """The control of `_batched`: whether the library's own logits are those of each prompt alone."""
    more = {"output_logits": True, "return_dict_in_generate": True}
    batch = model.generate(**processor.together(inputs), **GREEDY, **more).logits
    for row, one in enumerate(inputs):
        alone = model.generate(**one, **GREEDY, **more).logits
        gap = max(float((one[0] - other[row]).abs().max()) for one, other in zip(alone, batch, strict=True))
        if gap > 1e-4 * float(alone[0].abs().max()):
            return f"as the model itself, whose logits differ by {gap:.1g}"
    return ""


@contextmanager
def _crossed_rows(model: Any, kept: list[torch.Tensor]):
    """Keep the weights of each module of cross-attention, as it returns them."""
    hooks = [
        part.register_forward_hook(lambda module, given, out: kept.append(out[-1]))
        for name, part in model.named_modules()
        if name.endswith("cross_attn") and "Attention" in type(part).__name__
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Hiding(TorchFunctionMode):
    """Hides columns from the softmax of eager attention in the steps after prefill, knowing nothing of the package.

    hidden bool [step, patch]; positions int64 [patch]; layers : those that hide, of each step; length : of the prompt.
    """

    def __init__(self, hidden: np.ndarray, positions: np.ndarray, layers: list[set[int]], length: int):
        super().__init__()
        self.hidden, self.positions = torch.from_numpy(hidden), torch.from_numpy(positions)
        self.layers, self.length = layers, length
        self.step, self.layer, self.sink = -1, -1, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = args[0] if args else None
        row = torch.is_tensor(given) and given.ndim == 4 and given.shape[2] == 1 and func.__name__ == "softmax"
        if row and self.step > 0 and self.layer in self.layers[self.step]:
            total = self.length + self.step if self.length else 0  # 0 for keys of another sequence
            first = max(0, total - given.shape[3] + self.sink)  # a window holds the newest alone
            columns = self.positions[self.hidden[self.step]] - first
            given = given.index_fill(3, columns[columns >= 0], torch.finfo(given.dtype).min)
            args = (given, *args[1:])
        return func(*args, **(kwargs or {}))

    @contextmanager
    def around(self, model: Any):
        """While the model generates: which step it is at, and which layer."""
        parts = [
            (name.lower(), part)
            for name, part in model.get_decoder().named_modules()
            if "Attention" in type(part).__name__ and hasattr(part, "layer_idx")
        ]
        if not self.length:  # of a decoder with cross-attention only that
            parts = [(name, part) for name, part in parts if CROSS.search(name)]
        number = {part: place for place, (_, part) in enumerate(parts)}

        def enter(module: Any, *_: Any) -> None:
            self.step += number[module] == 0
            self.layer = number[module] if module.layer_idx is None else module.layer_idx
            self.sink = any("sink" in name for name, _ in module.named_parameters())

        def leave(*_: Any) -> None:
            self.layer = -1

        hooks = [part.register_forward_pre_hook(enter) for part in number]
        hooks += [part.register_forward_hook(leave) for part in number]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()


def _pruned(model: Any, processor: Any, inputs: Any) -> str:
    """Half of the patches hidden at each step by a mask, against eager attention without them."""
    try:
        with vpa.watch(model, processor, pruner=Random(budget=0.5)) as w:
            model.generate(**inputs, **GREEDY)
    except ValueError as error:
        return str(error)
    (trace,) = w.traces
    kept, counts = trace.kept.values, trace.k_per_layer.values
    acting = [{layer for layer, count in enumerate(row) if count < kept.shape[1]} for row in counts]
    if not any(acting):
        return "hid nothing"
    length = 0 if "cross_attention" in trace.meta else inputs["input_ids"].shape[1]
    hiding = Hiding(~kept, trace.grid.position, acting, length)
    with hiding.around(model):
        sequences, rows = _eager_rows(model, inputs, trace)
    if sequences[0, -STEPS:].tolist() != trace.token_ids.tolist():
        return "other tokens"
    gap = float(np.abs(trace.attention.values - rows).max())
    return "yes" if gap <= _rounding(rows) else f"differs by {gap:.1g}"


def _located(model: Any, processor: Any, patches: int) -> str:
    """A lattice in which every image token that shows something has its own place, or why there is none."""
    try:
        found = measure(model, lambda shown: processor(list(shown)), [pictures()[0].shape[:2]])
    except ValueError as error:
        return str(error)
    grid, count = found.grid, len(found.grid) + len(found.others)
    rows, cols = grid.shape()
    places = np.stack([grid.frame, grid.row, grid.col], axis=1)
    own = len(np.unique(places, axis=0)) == len(grid) and count == patches
    finest = int((grid.frame == 0).sum())
    if not own or min(rows, cols) < 2 or finest != rows * cols or 2 * finest < count:
        return f"no lattice: {rows} x {cols} of {count} tokens"
    return f"{rows} x {cols}"
