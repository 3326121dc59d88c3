"""How many samples a second are decoded, one by one and together, recorded and not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np

from visionpulse_analysis._util.progress import advance, bar
from visionpulse_analysis.decoding import Batch, Run, decode
from visionpulse_analysis.decoding.trace_builder import Record
from visionpulse_analysis.experiments.bench.machine import about_machine, as_table, ends, speedup, turned
from visionpulse_analysis.models.loading import VLM, load
from visionpulse_analysis.testbed.scenes.questions import TASKS, ask
from visionpulse_analysis.testbed.scenes.scene import generate

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
    cells: Sequence[int] = (4, 8),
    samples: int = 24,
    repeats: int = 8,
    rounds: int = 3,
    max_new_tokens: int = 160,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Decode scenes with the bundled model at several batch sizes, from picture to trace.

    Every round takes all batch sizes in turn, recorded and not; a ratio compares with the first of them in the same
    round. That one decodes each sample once, the others several times: the work of a sample is the same. Raises
    ValueError: without batch sizes, sizes of scenes, samples or rounds.

    Parameters
    ----------
    batches : the first is what the others are compared with
    cells : sizes of the scenes; 4 gives 64 visual tokens, 8 gives 256
    samples : different scenes, each with a question
    repeats : int
        How often each is decoded in batches. With many times the largest batch in all, the last rows, which have no
        successors, count little.
    rounds : int

    Returns
    -------
    dict
        ``rows``: visual_tokens, batch, recorded, samples_per_second (median), speedup_over_first {min, median, max},
        bound (median), ms_per_sample {prompt, prefill, steps, trace, rest} (medians), mean_steps (of a trace) and
        differing_traces (how many have other tokens than with the first batch size); and the machine.
    """
    if not batches or not cells or min(*batches, *cells, samples, repeats, rounds) < 1:
        raise ValueError(
            "expected batch sizes, sizes of scenes, samples, repeats and rounds of at least 1, "
            f"got {batches}, {cells}, {samples}, {repeats}, {rounds}"
        )
    vlm = load("scenes")
    vlm.weights_hash  # noqa: B018  hashed once, outside any timed run
    rows: list[dict[str, Any]] = []
    with bar(len(cells) * rounds * 2 * len(batches), "bench", "measurement"):
        for size in cells:
            asked, tokens = questions(samples, size), (2 * size) ** 2
            ways = [(batch, recorded) for recorded in (False, True) for batch in batches]
            runs: dict[tuple[int, bool], list[Timed]] = {way: [] for way in ways}
            for turn in range(rounds):
                for batch, recorded in turned(ways, turn):
                    part = asked if batch == batches[0] else asked * repeats
                    timed = _timed(vlm, part, batch, recorded, max_new_tokens)
                    runs[batch, recorded].append(timed)
                    advance("measurement")
                    report(
                        f"{tokens} visual tokens, round {turn + 1} of {rounds}: batch {batch}, "
                        f"{timed.rate:.1f} samples a second"
                    )
            rows += [
                {"visual_tokens": tokens, "batch": batch, "recorded": recorded}
                | _row(runs[batches[0], recorded], runs[batch, recorded], batch / batches[0])
                for batch, recorded in ways
            ]
    return {"rows": rows, "samples": samples, "repeats": repeats, "rounds": rounds, "machine": about_machine()}


@dataclass
class Timed:
    """One run: samples a second, milliseconds a sample of each part, and the tokens of every trace."""

    rate: float
    ms: dict[str, float]
    tokens: list[list[str]]


def _timed(vlm: VLM, part: list[tuple[np.ndarray, str]], batch: int, recorded: bool, limit: int) -> Timed:
    pictures, texts = [picture for picture, _ in part], [question for _, question in part]
    layers = "all" if recorded else "none"
    with _timed_parts() as seconds:
        started = time.perf_counter()
        traces = decode(vlm, pictures, texts, layers=layers, batch_size=batch, max_new_tokens=limit)
        taken = time.perf_counter() - started
    seconds["rest"] = taken - sum(seconds.values())
    ms = {name: 1e3 * value / len(part) for name, value in seconds.items()}
    return Timed(len(part) / taken, ms, [trace.tokens for trace in traces])


def _row(first: list[Timed], own: list[Timed], times: float) -> dict[str, Any]:
    """What the rounds of one batch size, ``times`` the first, give beside those of the first."""
    pairs = list(zip(first, own, strict=True))
    expected = first[-1].tokens * (len(own[-1].tokens) // len(first[-1].tokens))
    return {
        "samples_per_second": statistics.median(run.rate for run in own),
        "speedup_over_first": speedup([run.rate for run in own], [alone.rate for alone in first]),
        "bound": statistics.median(_bound(alone.ms, run.ms, times) for alone, run in pairs),
        "ms_per_sample": {name: statistics.median(run.ms[name] for run in own) for name in own[0].ms},
        "mean_steps": statistics.mean(len(tokens) for tokens in own[-1].tokens),
        "differing_traces": sum(a != b for a, b in zip(expected, own[-1].tokens, strict=True)),
    }


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


def format_rows(result: dict[str, Any]) -> str:
    """The result as a table for a terminal."""
    columns = {
        "tokens": "{visual_tokens}",
        "batch": "{batch}",
        "recorded": "{recorded}",
        "samples/s": "{samples_per_second:.2f}",
        "x one by one: min median max": ends("speedup_over_first"),
        "bound": "{bound:.2f}",
        **{f"ms a sample: {part}": f"{{ms_per_sample[{part}]:.1f}}" for part in (*PARTS, "rest")},
        "steps": "{mean_steps:.1f}",
        "other traces": "{differing_traces}",
    }
    machine = result["machine"]
    return f"{as_table(result['rows'], columns)}\n{machine['processor']}, {machine['threads']} threads"
