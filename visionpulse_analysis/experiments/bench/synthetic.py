"""A language model with random weights and a cache full of random keys: decode steps without a prefill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Cache, DynamicCache, Qwen3VLForConditionalGeneration

from visionpulse_analysis.attention.routing import intercept
from visionpulse_analysis.decoding import Batch, Options
from visionpulse_analysis.decoding.trace_builder import Record
from visionpulse_analysis.experiments.bench.variants import SIZES, WORDS, pruner_of
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.models.families import Prompt
from visionpulse_analysis.models.loading import VLM
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
    """Ways to take the same decode step at the same context, over and over.

    Parameters
    ----------
    vlm : VLM
        From :func:`random_language_model`.
    visual_tokens, rows : int
    """

    vlm: VLM
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
