"""A language model with random weights and a cache full of random keys: decode steps without a prefill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Cache, DynamicCache, Qwen3VLForConditionalGeneration

from visionpulse_analysis.attention.routing import intercept
from visionpulse_analysis.decoding import Batch, Options
from visionpulse_analysis.decoding.trace_builder import Record
from visionpulse_analysis.experiments.bench.machine import SIZES, WORDS, check_counts, check_names, pruner_of
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.models.families import Prompt
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import VisionPulse
from visionpulse_analysis.pruners.top_k import budget_to_k
from visionpulse_analysis.testbed.scenes.tokens import build_tokenizer
from visionpulse_analysis.testbed.training.model import Size, build_config, build_image_processor

BEFORE, AFTER = 16, 32  # tokens of text before and after the image


def random_language_model(size: str, device: str, dtype: torch.dtype) -> VLM:
    """A random model of the given size with the smallest of vision towers, which is never run."""
    config = build_config(Size(**SIZES[size]))
    text = config.get_text_config()
    text.vocab_size = WORDS.get(size, text.vocab_size)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), torch.random.fork_rng(devices=[0] if device == "cuda" else []):
            torch.manual_seed(0)
            model = Qwen3VLForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    model.set_attn_implementation({"text_config": "sdpa"})
    return VLM(f"random {size}", model, build_tokenizer(), build_image_processor())


@dataclass(frozen=True)
class Way:
    """``step()`` takes a decode step and returns our batch, inside ``around()``: what a decode does once, not timed."""

    step: Callable[[], Any]
    around: Callable[[], AbstractContextManager[None]]

    def __call__(self) -> Any:
        with self.around():
            return self.step()


@dataclass
class Steps:
    """Ways to take the same decode step at the same context, over and over."""

    vlm: VLM  # of `random_language_model`
    visual_tokens: int
    rows: int

    def __post_init__(self) -> None:
        if self.visual_tokens % 32:
            raise ValueError(f"visual_tokens must be a multiple of 32, got {self.visual_tokens}")
        self.length = BEFORE + self.visual_tokens + AFTER
        self.device = self.vlm.model.device
        self.tokens = torch.Generator().manual_seed(0)  # every step reads another token, and so looks elsewhere
        self.place = torch.full((3, self.rows, 1), self.length, device=self.device)
        self.grown: Cache | None = None
        self.copied: Cache | None = None

    def variant(self, name: str) -> Way:
        """One way to take a step, which leaves the context as it found it."""
        model, options = self.vlm.model, Options([], None, *pruner_of(name))
        batch = Batch(self.vlm, [self._record() for _ in range(self.rows)], options)
        self.grown = batch.cache = self._filled(batch.cache) if self.grown is None else self.grown
        batch.position = self.place[0, :, 0]
        if name in ("stock", "eager"):
            return Way(lambda: self._library() or batch, lambda: _library_attention(model, name))

        def step() -> Batch:
            batch.tokens = self._token()[:, 0]
            kernel = sdpa_kernel(SDPBackend.FLASH_ATTENTION) if name == "flash" else nullcontext()
            with kernel, torch.inference_mode():
                batch.step()
            batch.width, batch.position = batch.width - 1, self.place[0, :, 0]
            batch.cache.crop(-1)
            return batch

        return Way(step, lambda: intercept(model, batch.attend))

    def _token(self) -> torch.Tensor:
        words = self.vlm.model.config.get_text_config().vocab_size
        return torch.randint(10, words, (self.rows, 1), generator=self.tokens).to(self.device)

    def _library(self) -> None:
        """What ``generate`` does at a step."""
        model, cache = self.vlm.model, self.copied
        if cache is None:
            cache = self.copied = self._filled(DynamicCache(config=model.config.get_text_config()))
        with torch.inference_mode():
            model(
                input_ids=self._token(),
                attention_mask=torch.ones(self.rows, self.length + 1, dtype=torch.int64, device=self.device),
                position_ids=self.place,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        cache.crop(-1)

    def _filled(self, cache: Any) -> Any:
        """Fill a cache with random keys and values: every layer has its own memory."""
        text = self.vlm.model.config.get_text_config()
        shape = (self.rows, text.num_key_value_heads, self.length, text.head_dim)
        generator = torch.Generator(self.device).manual_seed(0)
        keys, values = (
            torch.randn(shape, generator=generator, device=self.device, dtype=self.vlm.model.dtype) for _ in range(2)
        )
        for layer in cache.layers:
            layer.update(keys.roll(1, 2), values.roll(1, 2))
        return cache

    def _record(self) -> Record:
        return synthetic_record(self.vlm, BEFORE, self.visual_tokens, AFTER)


def synthetic_record(vlm: VLM, before: int, visual_tokens: int, after: int) -> Record:
    """The record of a prompt of so many tokens of text, of an image, and of text; nothing is recorded.

    Raises ValueError unless `visual_tokens` is a multiple of 32.
    """
    if visual_tokens % 32:
        raise ValueError(f"visual_tokens must be a multiple of 32, got {visual_tokens}")
    image, text = vlm.model.config.image_token_id, 9
    ids = torch.tensor([text] * before + [image] * visual_tokens + [text] * after)
    positions = range(before, before + visual_tokens)
    grid = PatchGrid.from_grid(positions, rows=32, cols=visual_tokens // 32, image_sizes=[(256, 256)])
    prompt = Prompt("what ?", ids, (ids == image).long(), grid, {}, [])
    return Record(vlm, prompt, 0, {}, layers=[])


@contextmanager
def _library_attention(model: Any, name: str) -> Iterator[None]:
    """The library's attention: its own choice, or for "eager" the one that can return weights."""
    if name != "eager":
        yield
        return
    model.set_attn_implementation({"text_config": "eager"})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": "sdpa"})


BOUNDED = ("gathered_5", "gathered_10", "reuse_5")


def cache_bytes(vlm: VLM, tokens: int, rows: int) -> int:
    """Bytes of the keys and values of so many tokens in every layer."""
    text = vlm.model.config.get_text_config()
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    return per_token * tokens * rows * vlm.model.dtype.itemsize


def weight_bytes(vlm: VLM) -> int:
    """Bytes of the weights that a step reads: the layers and the output, not the embeddings."""
    read = [*vlm.model.get_decoder().layers.parameters(), *vlm.model.lm_head.parameters()]
    return sum(weight.numel() * weight.element_size() for weight in read)


def bytes_read(batch: Batch, gathered: bool) -> int:
    """Bytes that the step just taken must read: see `step_bytes`."""
    [group] = batch.groups or [None]
    shown = group.shown if group is not None and gathered else [None] * batch.vlm.n_layers
    kept = [None if layer is None else int(layer.sum()) for layer in shown]
    anchor = None if group is None else getattr(group.selection, "anchor", None)
    rows, columns = len(batch.records), batch.width + 1
    patches = 0 if group is None else group.layout.patches.shape[1]
    return step_bytes(batch.vlm, rows, columns, patches, kept, anchor)


def step_bytes(
    vlm: VLM, rows: int, columns: int, patches: int, kept: Sequence[int | None], anchor: int | None = None
) -> int:
    """Bytes that a decode step must read: weights, and the keys and values that it uses.

    Of ``columns`` keys in each row ``patches`` are patches. ``kept``: how many patches each layer reads, of all rows
    together; None for a layer that reads everything. At the ``anchor`` also all other keys are read, without their
    values, since they are ranked.
    """
    text = vlm.model.config.get_text_config()
    per_key = text.num_key_value_heads * text.head_dim * vlm.model.dtype.itemsize
    total = weight_bytes(vlm)
    for layer, count in enumerate(kept):
        used = rows * columns if count is None else rows * (columns - patches) + count
        keys = rows * columns if layer == anchor else used
        total += (keys + used) * per_key
    return total


def bounds(
    size: str, visual_tokens: Sequence[int], rows: int, variants: Sequence[str] = BOUNDED
) -> list[dict[str, Any]]:
    """How many times as fast as a dense step a pruned one can be, by the bytes that both must read; nothing is run.

    A step that keeps fewer patches than its budget allows can be faster still. Raises ValueError: for a size or a name
    that is not known, a variant that reads everything, or numbers below 1.

    Parameters
    ----------
    size : one of `SIZES`, in bfloat16
    visual_tokens : list of int
    rows : per step
    variants : gathered ones, as in `pruner_of`, at the default anchor; all of the budget is kept

    Returns
    -------
    list of dict
        visual_tokens, batch, variant, bound_over_dense.
    """
    check_names(size)
    check_counts(visual_tokens=visual_tokens, rows=rows)
    vlm = random_language_model(size, "meta", torch.bfloat16)
    found = []
    for tokens in visual_tokens:
        columns = BEFORE + tokens + AFTER + 1
        dense = step_bytes(vlm, rows, columns, tokens, [None] * vlm.n_layers)
        for name in variants:
            pruner, execution = pruner_of(name)
            if not isinstance(pruner, VisionPulse) or execution != "gathered":
                raise ValueError(f"variant {name!r} reads what a dense step reads; expected a gathered one or reuse_5")
            share = pruner.budget_max if pruner.budget is None else pruner.budget
            most = rows * int(budget_to_k(torch.tensor(share, dtype=torch.float64), torch.tensor(tokens)))
            anchor = vlm.default_anchor
            below = most if pruner.reuse_previous else None
            kept = [most if layer >= anchor else below for layer in range(vlm.n_layers)]
            bound = dense / step_bytes(vlm, rows, columns, tokens, kept, anchor)
            found.append({"visual_tokens": tokens, "batch": rows, "variant": name, "bound_over_dense": bound})
    return found
