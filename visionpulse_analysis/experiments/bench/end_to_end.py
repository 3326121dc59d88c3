"""What a whole answer costs, prefill and all its steps, as the authors of VisionPulse measure it."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from visionpulse_analysis._util.checks import whole_number
from visionpulse_analysis.attention.routing import intercept
from visionpulse_analysis.decoding import Batch, Options
from visionpulse_analysis.experiments.bench.decode import (
    at_contexts,
    bytes_at_once,
    seconds,
    told_left_out,
    told_machine,
)
from visionpulse_analysis.experiments.bench.machine import (
    about_machine,
    as_table,
    check_counts,
    check_names,
    ends,
    pruner_of,
    speedup,
)
from visionpulse_analysis.experiments.bench.synthetic import random_language_model, synthetic_record
from visionpulse_analysis.models.loading import VLM, usable_device
from visionpulse_analysis.pruners import Pruner, make_pruner

VISUAL_TOKENS = (8192, 16384, 32768)
VARIANTS = ("stock", "dense", "block")


@dataclass(frozen=True)
class Lengths:
    """Tokens of the image, which comes first, of the text after it, and of the answer; of prefill, read at once."""

    visual: int
    text: int
    steps: int
    chunk: int


def bench_end_to_end(
    visual_tokens: Sequence[int] = VISUAL_TOKENS,
    batches: Sequence[int] = (8,),
    *,
    text_tokens: int = 256,
    steps: int = 1024,
    block_size: int = 64,
    prefill_chunk: int = 1024,
    size: str = "qwen3-vl-4b",
    rounds: int = 2,
    device: str | None = None,
    variants: Sequence[str] = VARIANTS,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Time prefill and a fixed number of decode steps of a random language model, with a fresh cache each time.

    The defaults are the settings of the authors' benchmark (their ``analysis/efficiency``), by which arXiv 2605.31457
    reports 1.20 to 1.30 times dense decoding on A800 GPUs. Prefill, which no variant prunes, is the same for all and is
    part of the time, so the ratio is smaller than that of single steps (`bench_decode`). Theirs is dense by a Triton
    flash kernel; here "dense" are our own dense steps, and prefill is the library's. The vision tower is not run.
    Raises ValueError: an unknown variant or size, a number out of range, or nothing fits into memory;
    FloatingPointError: the logits of a variant are not finite.

    Parameters
    ----------
    visual_tokens : multiples of 32
    batches : rows. What does not fit into memory is left out and named in ``left_out``.
    text_tokens, steps : tokens of text after the image; decode steps
    block_size : of the variant "block", which is ``visionpulse:block`` gathered
    prefill_chunk : tokens that prefill reads at once; 0 for all
    size : "tiny", "small" or "qwen3-vl-4b"
        float32 on a CPU, bfloat16 on a GPU.
    rounds : after one that warms up and is not timed; the variants take turns
    device : "cpu" or "cuda", optional
        CUDA where there is one.
    variants : list of str
        "dense", with which the others are compared, "block", and others as in `pruner_of` but "eager" and "flash".
    report : is told what is measured

    Returns
    -------
    dict
        ``rows``: visual_tokens, batch, variant, prefill_s, decode_s, total_s (medians), speedup_over_dense and
        decode_speedup_over_dense {min, median, max} over rounds, kept (mean share of the patches that the last layer
        saw in the round that warms up). And the settings, the machine, the model.
    """
    device = str(usable_device(device))
    check_counts(visual_tokens=visual_tokens, batches=batches, text_tokens=text_tokens, steps=steps)
    check_counts(block_size=block_size, rounds=rounds)
    whole_number(prefill_chunk, "prefill_chunk", least=0)
    wrong = [one for one in variants if one in ("eager", "flash")]
    if "dense" not in variants or wrong:
        raise ValueError(f"variants must include dense, and neither eager nor flash; got {', '.join(variants)}")
    check_names(size)
    block = make_pruner("visionpulse:block", block_size=block_size)
    ways = {name: (block, "gathered") if name == "block" else pruner_of(name) for name in variants}
    vlm = random_language_model(size, device, torch.bfloat16 if device == "cuda" else torch.float32)

    def measure(visual: int, batch: int) -> list[dict[str, Any]]:
        lengths = Lengths(visual, text_tokens, steps, prefill_chunk or visual + text_tokens)
        return _measure(vlm, lengths, batch, ways, rounds)

    found = at_contexts(
        vlm, visual_tokens, batches, lambda visual, batch: bytes_at_once(vlm, visual + text_tokens + steps, batch),
        measure, report,
    )  # fmt: skip
    settings = {"text_tokens": text_tokens, "steps": steps, "block_size": block_size, "prefill_chunk": prefill_chunk}
    return {
        **found,
        **settings,
        "rounds": rounds,
        "model": {"size": size, "dtype": str(vlm.model.dtype)},
        "machine": about_machine(device),
    }


def _measure(vlm: VLM, lengths: Lengths, rows: int, ways: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """The rows of one length and batch size."""
    kept = {name: answer(vlm, lengths, rows, name == "stock", *way).kept for name, way in ways.items()}
    timed: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            made = answer(vlm, lengths, rows, name == "stock", *way)
            timed[name].append((made.prefill_s, made.decode_s))
            gc.collect()  # a batch holds itself, and the next one needs its memory
    dense = timed["dense"]
    return [
        {
            "visual_tokens": lengths.visual,
            "batch": rows,
            "variant": name,
            "prefill_s": statistics.median(prefill for prefill, _ in times),
            "decode_s": statistics.median(decode for _, decode in times),
            "total_s": statistics.median(map(sum, times)),
            "speedup_over_dense": speedup([*map(sum, dense)], [*map(sum, times)]),
            "decode_speedup_over_dense": speedup([one[1] for one in dense], [one[1] for one in times]),
            "kept": kept[name],
        }
        for name, times in timed.items()
    ]


@dataclass(frozen=True)
class Answer:
    """Seconds of prefill and all steps, mean share of the patches seen by the last layer, last logits [row, word]."""

    prefill_s: float
    decode_s: float
    kept: float
    logits: torch.Tensor


def answer(vlm: VLM, lengths: Lengths, rows: int, stock: bool, pruner: Pruner | None, execution: Any) -> Answer:
    """Prefill and all steps of a fresh batch; FloatingPointError where the logits are not finite."""
    device = vlm.model.device
    record = synthetic_record(vlm, 0, lengths.visual, lengths.text)
    batch = Batch(vlm, [record] * rows, Options([], None, pruner, execution))
    if stock:
        batch.cache = DynamicCache(config=vlm.model.config.get_text_config())
    prompt = lengths.visual + lengths.text
    vocabulary = vlm.model.config.get_text_config().vocab_size
    drawn = torch.randint(10, vocabulary, (rows, prompt + lengths.steps), generator=torch.Generator().manual_seed(0))
    words = drawn.to(device)  # any would do for the time; of equal ones every step would be the same
    last: list[torch.Tensor] = []
    shares: list[torch.Tensor] = []

    def read(begin: int, end: int) -> torch.Tensor:
        """What the library does: its own attention, over a cache that grows."""
        place = torch.arange(begin, end, device=device).expand(rows, -1)
        seen = torch.ones(rows, end, dtype=torch.int64, device=device)
        return batch.forward(words[:, begin:end], seen, place)

    def prefill() -> None:
        for begin in range(0, prompt, lengths.chunk):
            read(begin, min(begin + lengths.chunk, prompt))

    def decode() -> None:
        for place in range(prompt, prompt + lengths.steps):
            if stock:
                last[:] = [read(place, place + 1)]
                continue
            batch.tokens = words[:, place]
            last[:] = [batch.step()]
            shares.extend(group.shown[-1].float().mean() for group in batch.groups if group.shown[-1] is not None)

    with torch.inference_mode():
        taken = seconds(prefill, device.type)
        batch.position = torch.full((rows,), prompt, device=device)
        with nullcontext() if stock else intercept(vlm.model, batch.attend):
            steps = seconds(decode, device.type)
    if not torch.isfinite(last[0]).all():
        raise FloatingPointError("the logits are not finite; the time of broken numbers is no measurement")
    return Answer(taken, steps, float(torch.stack(shares).mean()) if shares else 1.0, last[0])


def format_rows(result: dict[str, Any]) -> str:
    """The result as a table for a terminal."""
    columns = {
        "tokens": "{visual_tokens:,}",
        "batch": "{batch}",
        "variant": "{variant}",
        "prefill": "{prefill_s:.2f} s",
        "steps": "{decode_s:.2f} s",
        "whole": "{total_s:.2f} s",
        "x dense: min median max": ends("speedup_over_dense"),
        "steps alone": "{decode_speedup_over_dense[median]:.2f}",
        "kept": "{kept:.1%}",
    }
    settings = "{text_tokens} tokens of text, {steps} steps, blocks of {block_size}".format(**result)
    return "\n".join([as_table(result["rows"], columns), *told_left_out(result), f"{told_machine(result)}; {settings}"])
