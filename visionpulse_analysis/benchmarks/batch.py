"""How many samples a second are decoded, one by one and together, recorded and not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from visionpulse_analysis.benchmarks.machine import about_machine, spread
from visionpulse_analysis.collecting import Record
from visionpulse_analysis.decoding import Batch, Run, decode
from visionpulse_analysis.models import VLM, load
from visionpulse_analysis.testbed.questions import TASKS, ask
from visionpulse_analysis.testbed.scenes import generate

FIRST_SEED = 20_000_000  # scenes that nothing else uses
# What is timed for itself: reading picture and question, the prompt's forward pass, all steps, making the trace.
PARTS = {"prompt": (VLM, "prompt"), "prefill": (Run, "prefill"), "steps": (Batch, "step"), "trace": (Record, "end")}


def questions(n: int, cells: int) -> list[tuple[np.ndarray, str]]:
    """Pictures of ``n`` scenes, each with one question, the tasks in turn."""
    asked = []
    for number in range(n):
        scene = generate(FIRST_SEED + number, cells)
        rng = np.random.default_rng([FIRST_SEED + number, 7])
        asked.append((scene.render(), ask(scene, TASKS[number % len(TASKS)], rng).text))
    return asked


def bench_batch(
    batches: Sequence[int] = (1, 8, 32),
    *,
    samples: int = 96,
    alone: int = 12,
    cells: int = 8,
    rounds: int = 3,
    max_new_tokens: int = 160,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Decode scenes with the bundled model at several batch sizes, from picture to trace.

    Every round takes all batch sizes in turn, recorded and not; a ratio compares with one row at a time in the same
    round. One row at a time decodes the first ``alone`` samples only, to save time.

    Parameters
    ----------
    batches : list of int
        The first is what the others are compared with.
    samples, alone : int
    cells : int
        Size of the scenes; 8 gives 256 visual tokens.
    rounds : int

    Returns
    -------
    dict
        ``rows``: batch, recorded, samples_per_second (median), speedup_over_first {min, median, max}, bound (median),
        ms_per_sample {prompt, prefill, steps, trace, rest} (medians), and differing_traces (of the first ``alone``, how
        many have other tokens than with the first batch size); and ``mean_steps``, the machine.

    Raises
    ------
    ValueError
        Without batch sizes, samples or rounds.
    """
    if not batches or min(*batches, samples, alone, rounds) < 1:
        raise ValueError(f"expected batch sizes, samples and rounds of at least 1, got {batches}, {samples}, {rounds}")
    vlm, asked = load("scenes"), questions(samples, cells)
    vlm.weights_hash  # noqa: B018  hashed once, outside any timed run
    ways = [(batch, recorded) for recorded in (False, True) for batch in batches]
    rates: dict[tuple[int, bool], list[float]] = {way: [] for way in ways}
    parts: dict[tuple[int, bool], list[dict[str, float]]] = {way: [] for way in ways}
    tokens: dict[tuple[int, bool], list[list[str]]] = {}
    steps = 0.0
    for turn in range(rounds):
        for batch, recorded in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            part = asked[: min(alone, samples) if batch == batches[0] else samples]
            with _timed_parts() as seconds:
                started = time.perf_counter()
                traces = decode(
                    vlm,
                    [picture for picture, _ in part],
                    [question for _, question in part],
                    layers="all" if recorded else "none",
                    batch_size=batch,
                    max_new_tokens=max_new_tokens,
                )
                taken = time.perf_counter() - started
            rates[batch, recorded].append(len(part) / taken)
            seconds["rest"] = taken - sum(seconds.values())
            parts[batch, recorded].append({name: 1e3 * value / len(part) for name, value in seconds.items()})
            tokens[batch, recorded] = [trace.tokens for trace in traces[:alone]]
            steps = max(steps, statistics.mean(len(trace) for trace in traces))
            report(f"round {turn + 1} of {rounds}: batch {batch}, {rates[batch, recorded][-1]:.1f} samples a second")
    rows = []
    for batch, recorded in ways:
        first = rates[batches[0], recorded]
        own, expected = rates[batch, recorded], tokens[batches[0], recorded]
        pairs = zip(parts[batches[0], recorded], parts[batch, recorded], strict=True)
        rows.append(
            {
                "batch": batch,
                "recorded": recorded,
                "samples_per_second": statistics.median(own),
                "speedup_over_first": spread([b / a for a, b in zip(first, own, strict=True)]),
                "bound": statistics.median(_bound(alone_ms, ms, batch / batches[0]) for alone_ms, ms in pairs),
                "ms_per_sample": _medians(parts[batch, recorded]),
                "differing_traces": sum(a != b for a, b in zip(expected, tokens[batch, recorded], strict=True)),
            }
        )
    settings = {"samples": samples, "alone": alone, "visual_tokens": (2 * cells) ** 2, "rounds": rounds}
    return {"rows": rows, **settings, "mean_steps": steps, "machine": about_machine()}


@contextmanager
def _timed_parts() -> Iterator[dict[str, float]]:
    """Seconds that each of `PARTS` takes inside the block."""
    seconds = dict.fromkeys(PARTS, 0.0)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*given, **options)
            finally:
                seconds[name] += time.perf_counter() - started

        return call

    with ExitStack() as patches:
        for name, (owner, method) in PARTS.items():
            patches.enter_context(patch.object(owner, method, timed(name, getattr(owner, method))))
        yield seconds


def _bound(first: dict[str, float], own: dict[str, float], rows: float) -> float:
    """How many times as fast as ``first``, if a step of so many times its rows took as long as one of its own."""
    return sum(first.values()) / (sum(own.values()) - own["steps"] + first["steps"] / rows)


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def format_rows(result: dict[str, Any]) -> str:
    """The result as a table for a terminal."""
    lines = [
        f"{'batch':>5}  {'':12}  {'samples/s':>9}  {'x one by one: min median max':28}  {'bound':>6}  "
        "ms a sample: prompt prefill steps trace rest  other traces"
    ]
    for row in result["rows"]:
        speed = row["speedup_over_first"]
        shown = f"{speed['min']:6.2f} {speed['median']:6.2f} {speed['max']:6.2f}"
        kind = "recorded" if row["recorded"] else "not recorded"
        parts = " ".join(f"{ms:6.1f}" for ms in row["ms_per_sample"].values())
        lines.append(
            f"{row['batch']:>5}  {kind:12}  {row['samples_per_second']:>9.2f}  {shown:28}  {row['bound']:>6.2f}  "
            f"{parts:44}  {row['differing_traces']}"
        )
    lines.append(
        f"{result['visual_tokens']} visual tokens, {result['mean_steps']:.1f} steps a trace; "
        f"{result['machine']['processor']}, {result['machine']['threads']} threads"
    )
    return "\n".join(lines)
