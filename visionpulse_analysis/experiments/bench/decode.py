"""What one decode step costs: the library's, ours dense and pruned, and the least that memory allows."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch

from visionpulse_analysis._util.checks import whole_number
from visionpulse_analysis._util.progress import advance, bar
from visionpulse_analysis.attention import Group
from visionpulse_analysis.attention import autotune as fastest
from visionpulse_analysis.decoding import Batch
from visionpulse_analysis.experiments.bench.bytes import bytes_read, cache_bytes
from visionpulse_analysis.experiments.bench.machine import about_machine, free_memory, spread
from visionpulse_analysis.experiments.bench.synthetic import Steps, Way, random_language_model
from visionpulse_analysis.experiments.bench.variants import VARIANTS, check_names, pruner_of
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
    same rounds by reading 1 GiB.

    Parameters
    ----------
    visual_tokens : list of int
        Contexts, multiples of 32; 48 tokens of text are added.
    batches : list of int
        Rows per step. What does not fit into memory is left out and named in ``left_out``.
    size : "small" or "qwen3-vl-4b"
        float32 on a CPU, bfloat16 on a GPU.
    rounds : int
    device : "cpu" or "cuda", optional
        CUDA where there is one.
    variants : list of str, optional
        "stock" is what all are compared with; others as in `pruner_of`. `VARIANTS`, on a GPU also "flash".

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

    Raises
    ------
    ValueError
        An unknown variant or size, visual_tokens that is no multiple of 32, or nothing fits into memory.
    """
    device = str(usable_device(device))
    for name, values in {"visual_tokens": visual_tokens, "batches": batches, "rounds": [rounds]}.items():
        for value in values:
            whole_number(value, name, least=1)
    variants = variants or (*VARIANTS, *(("flash",) if device == "cuda" else ()))
    if "stock" not in variants:
        raise ValueError(f"variants must include stock, which the others are compared with; got {', '.join(variants)}")
    check_names(size)
    ways = {name: pruner_of(name) for name in variants}
    fastest.measured.clear()
    vlm = random_language_model(size, device, torch.bfloat16 if device == "cuda" else torch.float32)
    buffer = torch.ones(READ // 4, device=device)  # written: memory never written to is not read from memory
    rows: list[dict[str, Any]] = []
    left_out = []
    with bar(len(visual_tokens) * len(batches), "bench", "measurement"):
        for count in visual_tokens:
            for batch in batches:
                if bytes_at_once(vlm, count, batch) > free_memory(device):
                    left_out.append({"visual_tokens": count, "batch": batch})
                else:
                    report(f"{count:,} visual tokens, batch {batch}")
                    rows += _measure(Steps(vlm, count, batch), ways, rounds, buffer)
                    gc.collect()  # batches hold one another, and the next context needs their memory
                advance("measurement")
    if not rows:
        raise ValueError(f"nothing fits into the free memory of {free_memory(device) / 1e9:.1f} GB; ask for less")
    text = vlm.model.config.get_text_config()
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    return {
        "rows": rows,
        "left_out": left_out,
        "bandwidth_gb_s": max(row["bandwidth_gb_s"] for row in rows),
        "rounds": rounds,
        **({"kernels": fastest.tried()} if device == "cuda" else {}),
        "model": {"size": size, "dtype": str(vlm.model.dtype), **{name: getattr(text, name) for name in names}},
        "machine": about_machine(device),
    }


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
            f"speedup_over_{other}": _speedup(timed[other], times)
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


def _speedup(others: list[float], own: list[float]) -> dict[str, float]:
    """How many times as fast in each round: smallest, median and largest."""
    return spread([other / one for other, one in zip(others, own, strict=True)])


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
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
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


def _beside_dense(row: dict[str, Any]) -> str:
    """How many times as fast as our dense step, and how many times at most, by the bytes."""
    if "bound_over_dense" not in row:
        return f"{'':16}"
    return f"{row['speedup_over_dense']['median']:>8.2f} {row['bound_over_dense']:>7.2f}"


def format_rows(result: dict[str, Any]) -> str:
    """The result as a table for a terminal."""
    lines = [
        f"{'tokens':>7} {'batch':>5}  {'variant':12} {'step':>10} {'limit':>10}  {'x stock: min median max':24} "
        f"{'x limit':>7} {'x dense':>8} {'at most':>7}  kept  selection"
    ]
    for row in result["rows"]:
        speed = row["speedup_over_stock"]
        shown = f"{speed['min']:6.2f} {speed['median']:7.2f} {speed['max']:7.2f}"
        lines.append(
            f"{row['visual_tokens']:>7,} {row['batch']:>5}  {row['variant']:12} {row['step_ms']:>7.1f} ms "
            f"{row['limit_ms']:>7.1f} ms  {shown:24} {row['time_over_limit']:>7.2f} {_beside_dense(row)}  "
            f"{row['kept']:.1%}"
            + (f"  {row['selection_share']:.1%}" if "selection_share" in row else "")
            + (f"  {row['speedup_over_flash']['median']:.2f} x flash" if "speedup_over_flash" in row else "")
        )
    for part in result["left_out"]:
        lines.append(f"{part['visual_tokens']:>7,} {part['batch']:>5}  left out: does not fit into memory")
    for case, ways in result.get("kernels", {}).get("ms", {}).items():
        lines.append(f"{case}: " + ", ".join(f"{way} {ms:.3f} ms" for way, ms in ways.items()))
    lines += [f"{way} does not work: {why}" for way, why in result.get("kernels", {}).get("failed", {}).items()]
    there, dtype, bandwidth = result["machine"], result["model"]["dtype"], result["bandwidth_gb_s"]
    where = f"{there['device']} ({there['processor']}, {there['threads']} threads), {dtype}"
    return "\n".join([*lines, f"{where}; limit: {bandwidth:.1f} GB/s, read in the same rounds"])
