"""What one decode step costs: the library's, ours dense and pruned, and the least that memory allows."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import product
from typing import Any
from unittest.mock import patch

import torch

from visionpulse_analysis._util.progress import advance, bar
from visionpulse_analysis.attention import Group
from visionpulse_analysis.attention import autotune as fastest
from visionpulse_analysis.decoding import Batch
from visionpulse_analysis.experiments.bench.machine import (
    VARIANTS,
    about_machine,
    as_table,
    check_counts,
    check_names,
    ends,
    free_memory,
    pruner_of,
    speedup,
    spread,
    turned,
)
from visionpulse_analysis.experiments.bench.synthetic import Steps, Way, bytes_read, cache_bytes, random_language_model
from visionpulse_analysis.models.loading import VLM, usable_device
from visionpulse_analysis.pruners.view import View

VISUAL_TOKENS = (1024, 8192, 16384, 32768)
READ = 1 << 30  # bytes, more than any cache holds


def bench_decode(
    visual_tokens: Sequence[int] = VISUAL_TOKENS,
    batches: Sequence[int] = (1, 8),
    *,
    size: str = "small",
    rounds: int = 12,
    device: str | None = None,
    variants: Sequence[str] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Time decode steps of a random language model over a cache of random keys, as arXiv 2605.31457 does.

    Every round takes the variants in turn, so that each ratio compares steps of the same moment. The limit is the time
    to read, once, what a step must read (weights, and the keys and values it uses) at the bandwidth measured in the
    same rounds by reading 1 GiB. Raises ValueError: an unknown variant or size, visual_tokens that is no multiple of
    32, or nothing fits into memory.

    Parameters
    ----------
    visual_tokens : contexts, multiples of 32; 48 tokens of text are added
    batches : rows per step. What does not fit into memory is left out and named in ``left_out``.
    size : "small" or "qwen3-vl-4b"
        float32 on a CPU, bfloat16 on a GPU.
    rounds : int
    device : "cpu" or "cuda", optional
        CUDA where there is one.
    variants : "stock" is what all are compared with; others as in `pruner_of`. `VARIANTS`, on a GPU also "flash".

    Returns
    -------
    dict
        ``rows``: visual_tokens, batch, variant, step_ms (median), speedup_over_stock {min, median, max}, bytes (that
        the step must read), bandwidth_gb_s (best of the same rounds), limit_ms, time_over_limit, kept (mean share of
        the patches seen by the last layer). Where "dense" or "flash" are measured too, speedup_over_dense {min, median,
        max}, bound_over_dense (the bytes of a dense step over those of this one), speedup_over_flash. For pruned
        variants, selection_share: the part of the step that choosing takes, from the logits, which attention needs as
        well, to the set. And ``bandwidth_gb_s`` (best of all), the machine, the model; on a GPU ``kernels`` {ms,
        failed}: by case the milliseconds of each way to read the kept patches, of which decoding takes the fastest.
    """
    device = str(usable_device(device))
    check_counts(visual_tokens=visual_tokens, batches=batches, rounds=rounds)
    variants = variants or (*VARIANTS, *(("flash",) if device == "cuda" else ()))
    if "stock" not in variants:
        raise ValueError(f"variants must include stock, which the others are compared with; got {', '.join(variants)}")
    check_names(size)
    ways = {name: pruner_of(name) for name in variants}
    fastest.measured.clear()
    vlm = random_language_model(size, device, torch.bfloat16 if device == "cuda" else torch.float32)
    buffer = torch.ones(READ // 4, device=device)  # written: memory never written to is not read from memory
    found = at_contexts(
        vlm, visual_tokens, batches, lambda count, batch: bytes_at_once(vlm, count, batch),
        lambda count, batch: _measure(Steps(vlm, count, batch), ways, rounds, buffer), report,
    )  # fmt: skip
    text = vlm.model.config.get_text_config()
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    return {
        **found,
        "bandwidth_gb_s": max(row["bandwidth_gb_s"] for row in found["rows"]),
        "rounds": rounds,
        **({"kernels": fastest.tried()} if device == "cuda" else {}),
        "model": {"size": size, "dtype": str(vlm.model.dtype), **{name: getattr(text, name) for name in names}},
        "machine": about_machine(device),
    }


def at_contexts(
    vlm: VLM,
    visual_tokens: Sequence[int],
    batches: Sequence[int],
    needed: Callable[[int, int], float],
    measure: Callable[[int, int], list[dict[str, Any]]],
    report: Callable[[str], None],
) -> dict[str, list[dict[str, Any]]]:
    """The ``rows`` of all lengths and batch sizes, and what is ``left_out`` since the bytes needed are not free.

    Raises ValueError where nothing fits.
    """
    rows, left_out, device = [], [], vlm.model.device.type
    with bar(len(visual_tokens) * len(batches), "bench", "measurement"):
        for count, batch in product(visual_tokens, batches):
            if needed(count, batch) > free_memory(device):
                left_out.append({"visual_tokens": count, "batch": batch})
            else:
                report(f"{count:,} visual tokens, batch {batch}")
                rows += measure(count, batch)
                gc.collect()  # batches hold one another, and the next context needs their memory
            advance("measurement")
    if not rows:
        raise ValueError(f"nothing fits into the free memory of {free_memory(device) / 1e9:.1f} GB; ask for less")
    return {"rows": rows, "left_out": left_out}


def _measure(
    steps: Steps, ways: Mapping[str, tuple[Any, str]], rounds: int, buffer: torch.Tensor
) -> list[dict[str, Any]]:
    """The rows of one context and batch size."""
    run = {name: steps.variant(name) for name in ways}
    for way in run.values():
        way()  # where layers look back, the first step has nothing to look back to
    needs = {name: _needs(ways[name][1] == "gathered", way()) for name, way in run.items()}
    timed = _rounds({**run, "read": Way(buffer.sum, nullcontext)}, rounds, buffer.device.type)
    bandwidth = buffer.nbytes / min(timed.pop("read"))
    rows = []
    for name, times in timed.items():
        beside: dict[str, Any] = {
            f"speedup_over_{other}": speedup(timed[other], times)
            for other in ("stock", "dense", "flash")
            if other in timed
        }
        if "dense" in timed:
            beside["bound_over_dense"] = needs["dense"]["bytes"] / needs[name]["bytes"]
        if ways[name][0] is not None:
            beside["selection_share"] = _selection_share(run[name], rounds, buffer.device.type)
        step_ms, limit_ms = 1e3 * spread(times)["median"], 1e3 * needs[name]["bytes"] / bandwidth
        rows.append(
            {
                "visual_tokens": steps.visual_tokens,
                "batch": steps.rows,
                "variant": name,
                "step_ms": step_ms,
                **beside,
                **needs[name],
                "bandwidth_gb_s": bandwidth / 1e9,
                "limit_ms": limit_ms,
                "time_over_limit": step_ms / limit_ms,
            }
        )
    return rows


def _selection_share(way: Way, rounds: int, device: str) -> float:
    """Part of a step that the pruner takes to choose, once the logits are there: median over some steps."""
    spent: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            found: list[Any] = []
            spent[name] = spent.get(name, 0.0) + seconds(lambda: found.append(function(*given)), device)
            return found[0]

        return call

    shares = []
    with (
        way.around(),
        patch.object(Group, "decide", timed("decide", Group.decide)),
        patch.object(View, "logits", timed("logits", View.logits)),
    ):
        for _ in range(rounds):
            spent.clear()
            taken = seconds(way.step, device)
            shares.append((spent["decide"] - spent.get("logits", 0.0)) / taken)
    return spread(shares)["median"]


def bytes_at_once(vlm: VLM, count: int, batch: int) -> float:
    """The library's cache, ours with its room to grow, and, of one layer, copies and what eager attention expands."""
    whole, text = cache_bytes(vlm, count, batch), vlm.model.config.get_text_config()
    shared = text.num_attention_heads / text.num_key_value_heads
    return 2.2 * whole + (2 + 2 * shared) * whole / text.num_hidden_layers


def _needs(gathered: bool, batch: Batch) -> dict[str, Any]:
    """What a step of a variant must read, and the mean share of the patches that it keeps."""
    kept = [group.shown[-1] for group in batch.groups]
    share = [float(one.float().mean()) for one in kept if one is not None]
    return {"bytes": bytes_read(batch, gathered), "kept": (share or [1.0])[0]}


def _rounds(run: dict[str, Way], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of a step of each way in every round, one after the other; the order turns from round to round."""
    names, timed = list(run), {name: [] for name in run}
    for turn in range(rounds + 1):
        for name in turned(names, turn):
            with run[name].around():
                taken = seconds(run[name].step, device)
            if turn:  # the first round warms up
                timed[name].append(taken)
    return timed


def seconds(function: Callable[[], Any], device: str) -> float:
    """How long a call takes; a GPU is waited for before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def format_rows(result: dict[str, Any]) -> str:
    """The result as a table for a terminal."""
    columns = {
        "tokens": "{visual_tokens:,}",
        "batch": "{batch}",
        "variant": "{variant}",
        "step": "{step_ms:.1f} ms",
        "limit": "{limit_ms:.1f} ms",
        "x stock: min median max": ends("speedup_over_stock"),
        "x limit": "{time_over_limit:.2f}",
        "x dense": "{speedup_over_dense[median]:.2f}",
        "at most": "{bound_over_dense:.2f}",
        "kept": "{kept:.1%}",
        "selection": "{selection_share:.1%}",
        "x flash": "{speedup_over_flash[median]:.2f}",
    }
    lines = [as_table(result["rows"], columns), *told_left_out(result)]
    for case, ways in result.get("kernels", {}).get("ms", {}).items():
        lines.append(f"{case}: " + ", ".join(f"{way} {ms:.3f} ms" for way, ms in ways.items()))
    lines += [f"{way} does not work: {why}" for way, why in result.get("kernels", {}).get("failed", {}).items()]
    return "\n".join(
        [*lines, f"{told_machine(result)}; limit: {result['bandwidth_gb_s']:.1f} GB/s, read in the same rounds"]
    )


def told_left_out(result: dict[str, Any]) -> list[str]:
    """A line for each length and batch size that was not measured."""
    return [
        f"{one['visual_tokens']:,} tokens, batch {one['batch']}: left out, does not fit into memory"
        for one in result["left_out"]
    ]


def told_machine(result: dict[str, Any]) -> str:
    """What the steps ran on, and in which numbers."""
    there = result["machine"]
    return f"{there['device']} ({there['processor']}, {there['threads']} threads), {result['model']['dtype']}"
