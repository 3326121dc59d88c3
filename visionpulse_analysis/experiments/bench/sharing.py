"""What pruners and seeds that share a prefill save, in CPU seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from visionpulse_analysis._util.progress import advance, bar
from visionpulse_analysis.decoding import decode
from visionpulse_analysis.experiments.bench.machine import about_machine, as_table
from visionpulse_analysis.models.loading import VLM, load
from visionpulse_analysis.pruners import make_pruner
from visionpulse_analysis.testbed.scenes.scene import generate

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


def format_rows(result: dict[str, Any]) -> str:
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
