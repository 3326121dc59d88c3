"""What rows together save: samples a second by batch size, and CPU seconds of pruners that share a prefill."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np

from visionpulse_analysis._util.progress import advance, bar
from visionpulse_analysis.decoding import Batch, Run, decode
from visionpulse_analysis.decoding.trace_builder import Record
from visionpulse_analysis.experiments.bench.machine import about_machine, as_table, ends, speedup, turned
from visionpulse_analysis.models.loading import VLM, load
from visionpulse_analysis.pruners import make_pruner
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


PRUNERS = ("visionpulse(budget=0.05)", "visionpulse(budget=0.1)", "visionpulse(budget=0.2)", "random(budget=0.1)")
QUESTION = "where is the red circle ?"


def bench_sharing(
    steps: Sequence[int] = (8, 32, 128),
    *,
    pruners: Sequence[str] = PRUNERS,
    samples: int = 4,
    cells: int = 16,
    rounds: int = 3,
    vlm: VLM | None = None,
    report: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Decode the same samples dense and under some pruners, from one prefill and from one each, by turns.

    Raises ValueError: a pruner is unknown, or a number too small.

    Parameters
    ----------
    steps : longest traces, at least 1 token each
    pruners : As for :func:`visionpulse_analysis.make_pruner`
    samples : scenes, decoded as one batch, of ``cells`` by ``cells`` cells: 4 * cells ** 2 patches each
    rounds : each way so many times, after one that is not counted; medians are told
    vlm : the bundled model without one

    Returns
    -------
    dict
        ``rows``, one for each entry of ``steps``: steps, arms, patches, ``alone`` and ``together`` (CPU seconds, all
        threads), ``saved`` (the share of ``alone``) and ``equal`` (whether all traces are the same to the last bit);
        and ``machine``.
    """
    vlm = load("scenes") if vlm is None else vlm
    arms = [None, *(make_pruner(name) for name in pruners)]
    pictures, questions = [generate(seed, cells).render() for seed in range(samples)], [QUESTION] * samples
    rows = []
    with bar(len(steps) * (rounds + 1) * 2, "bench", "measurement"):
        for limit in steps:
            options = {"max_new_tokens": limit, "layers": "anchor", "batch_size": samples}
            ways: dict[str, Callable[[], Any]] = {
                "alone": lambda o=options: [decode(vlm, pictures, questions, pruner=arm, **o) for arm in arms],
                "together": lambda o=options: decode(vlm, pictures, questions, pruner=arms, **o),
            }
            found: dict[str, list[float]] = {name: [] for name in ways}
            hashes = set()
            for turn in range(rounds + 1):
                for name, run in ways.items():
                    before = time.process_time()
                    made = run()
                    if turn:
                        found[name].append(time.process_time() - before)
                    hashes.add(tuple(trace.data_hash for traces in made for trace in traces))
                    advance("measurement")
            alone, together = median(found["alone"]), median(found["together"])
            patches = len(vlm.prompt(pictures[0], QUESTION).grid)
            rows.append({
                "steps": limit, "arms": len(arms), "patches": patches, "alone": alone, "together": together,
                "saved": 1 - together / alone, "equal": len(hashes) == 1,
            })  # fmt: skip
            report(f"{limit} steps: {alone:.2f} CPU seconds alone, {together:.2f} together")
    return {"rows": rows, "machine": about_machine(vlm.model.device.type)}


def format_sharing(result: dict[str, Any]) -> str:
    """The rows as a table for a terminal."""
    columns = {
        "steps": "{steps}",
        "arms": "{arms}",
        "patches": "{patches}",
        "CPU s, a prefill each": "{alone:.2f}",
        "CPU s, one prefill": "{together:.2f}",
        "saved": "{saved:.0%}",
        "same traces": "{equal}",
    }
    return as_table(result["rows"], columns)
