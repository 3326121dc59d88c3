"""What recording costs, in `decode` and inside `generate`, and eager ``output_attentions``, side by side."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionpulse_analysis._util.checks import whole_number
from visionpulse_analysis._util.progress import advance, bar
from visionpulse_analysis.decoding import decode
from visionpulse_analysis.decoding.watching import watch
from visionpulse_analysis.experiments.bench.machine import about_machine, as_table, check_counts, ends, spread, turned
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.testbed.scenes.tokens import build_tokenizer
from visionpulse_analysis.testbed.training.model import Size, build_image_processor, build_model
from visionpulse_analysis.testbed.training.packing import PATCH

MODEL = Size(layers=12, width=512, heads=8, kv_heads=4, head_dim=64, mlp=1536)
QUESTION = "where is the red circle ?"
# What each is compared with: watching with the library's own generate, everything else with our plain decode.
PLAIN_OF = {
    **dict.fromkeys(("plain", "one_layer", "all_layers", "all_heads"), "plain"),
    **dict.fromkeys(("generate", "watch_one_layer", "watch_all_layers"), "generate"),
    "eager": "plain",
}
VARIANTS = tuple(PLAIN_OF)


def random_vlm(size: Size = MODEL, max_patches: int = 65536) -> VLM:
    """A random model that never ends a trace by itself, so that every run takes the same number of steps."""
    model = build_model(0, size).eval()
    model.generation_config.eos_token_id = model.config.get_text_config().vocab_size  # never produced
    return VLM("random", model, build_tokenizer(), build_image_processor(max_patches))


def noise_image(visual_tokens: int) -> np.ndarray:
    """Uniform noise that becomes ``visual_tokens`` patches; raises ValueError unless that is a square number."""
    side = round(whole_number(visual_tokens, "visual_tokens", least=1) ** 0.5)
    if side * side != visual_tokens:
        raise ValueError(f"visual_tokens must be a square number, got {visual_tokens}")
    return np.random.default_rng(0).integers(0, 256, size=(side * PATCH, side * PATCH, 3), dtype=np.uint8)


def runner(variant: str, vlm: VLM, image: np.ndarray, steps: int) -> Callable[[], None]:
    """A function that decodes ``steps`` tokens in one way."""
    recorded: dict[str, dict[str, Any]] = {
        "plain": {"layers": "none"},
        "one_layer": {"layers": "anchor"},
        "all_layers": {"layers": "all"},
        "all_heads": {"layers": "all", "heads": "all"},
    }
    if variant in recorded:
        return lambda: decode(vlm, image, QUESTION, max_new_tokens=steps, **recorded[variant])
    watched: dict[str, Any] = {"generate": None, "watch_one_layer": "anchor", "watch_all_layers": "all"}
    if variant in watched:
        return lambda: _generate(vlm, image, steps, watched[variant])
    return lambda: _eager(vlm, image, steps)


def _generate(vlm: VLM, image: np.ndarray, steps: int, layers: Any) -> None:
    """The library's own loop, watched or not."""
    inputs = vlm.family.batch([vlm.prompt(image, QUESTION)], padding=0)
    with nullcontext() if layers is None else watch(vlm.model, vlm.tokenizer, layers=layers):
        vlm.model.generate(**inputs, max_new_tokens=steps, do_sample=False)


@torch.inference_mode()
def _eager(vlm: VLM, image: np.ndarray, steps: int) -> None:
    """What users do today: switch to eager attention and ask ``generate`` for every attention matrix."""
    inputs = vlm.family.batch([vlm.prompt(image, QUESTION)], padding=0)
    vlm.model.set_attn_implementation({"text_config": "eager"})
    try:
        vlm.model.generate(
            **inputs,
            max_new_tokens=steps,
            do_sample=False,
            output_attentions=True,
            return_dict_in_generate=True,
        )
    finally:
        vlm.model.set_attn_implementation({"text_config": "sdpa"})


def bench_recording(
    visual_tokens: Sequence[int] = (1024, 4096), *, steps: int = 24, rounds: int = 5, memory: bool = True
) -> dict[str, Any]:
    """Time and memory of recording, relative to plain decoding, and to plain ``generate`` where that is watched.

    Every round runs all variants once, in an order that turns from round to round; eager, in the first three rounds
    only, comes last and is followed by an untimed plain run, since its gigabytes slow down whatever comes next. A
    ratio compares a variant with the plain run of its own round. Peak memory is that of a fresh process which runs one
    variant once.

    Returns
    -------
    dict
        ``rows``: visual_tokens, variant, ratio_to_plain {min, median, max}, peak_memory_mb; and ``model``, ``steps``,
        ``rounds``, ``machine``.
    """
    check_counts(rounds=rounds, steps=steps)
    images = {count: noise_image(count) for count in visual_tokens}
    vlm, rows = random_vlm(), []
    decode(vlm, noise_image(64), QUESTION, max_new_tokens=1)  # hashes the weights once, outside any timed run
    with bar(len(images) * rounds, "bench", "measurement"):
        for count, image in images.items():
            runners = {variant: runner(variant, vlm, image, steps) for variant in VARIANTS}
            runners["plain"]()
            ratios: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
            ours = [variant for variant in VARIANTS if variant != "eager"]
            for turn in range(rounds):
                seconds = {}
                last = ["eager"] if turn < 3 else []
                for variant in [*turned(ours, turn), *last]:
                    started = time.perf_counter()
                    runners[variant]()
                    seconds[variant] = time.perf_counter() - started
                advance("measurement")
                if last:
                    runners["plain"]()
                for variant, taken in seconds.items():
                    ratios[variant].append(taken / seconds[PLAIN_OF[variant]])
            for variant, values in ratios.items():
                peak = peak_memory(variant, count, steps) if memory else None
                ratio = spread(values)
                rows.append(
                    {"visual_tokens": count, "variant": variant, "ratio_to_plain": ratio, "peak_memory_mb": peak}
                )
    return {
        "rows": rows,
        "model": asdict(MODEL),
        "steps": steps,
        "rounds": rounds,
        "machine": about_machine(),
    }


def peak_memory(variant: str, visual_tokens: int, steps: int) -> float:
    """Peak resident memory of a fresh process that runs one variant once, in MB."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, variant, visual_tokens, steps).result()


def _peak(variant: str, visual_tokens: int, steps: int) -> float:
    runner(variant, random_vlm(), noise_image(visual_tokens), steps)()
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a fresh process starts at its parent's peak on Linux
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def format_rows(result: dict[str, Any]) -> str:
    """The result as a table for a terminal."""
    columns = {
        "visual tokens": "{visual_tokens:,}",
        "variant": "{variant}",
        "ratio to plain: min, median, max": ends("ratio_to_plain", 3),
        "peak memory": "{peak_memory_mb:,.0f} MB",
    }
    return as_table(result["rows"], columns)
