"""One question about one image, dense and under several pruners: what each answers, keeps and costs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from visionpulse_analysis.decoding import Batch, Options, asking_each, decode
from visionpulse_analysis.decoding.trace_builder import Record
from visionpulse_analysis.experiments.judging import RIGHT_FROM, Reference
from visionpulse_analysis.explorer.pairing import align
from visionpulse_analysis.metrics.flops import costs_of
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import make_pruner, parse, parts_of
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.studies.pruner_comparison.figures import kept_page, kept_share, shown_steps
from visionpulse_analysis.studies.pruner_comparison.measure import OWN, all_rivals, arm_name, matched_pruner
from visionpulse_analysis.studies.pruner_comparison.settings import Basis
from visionpulse_analysis.studies.shared.arms import COSTS, DENSE
from visionpulse_analysis.traces import Trace
from visionpulse_analysis.traces.store import TraceStore

LONGEST_ANSWER = 40  # characters of it in the table
MEANING = """\
kept: share of the patches, mean over the steps after prefill and over the layers from the first that a method can drop
any from; one that prefill freezes counts as dropped. own setting: no parameter sets that share, so the pruner runs with
its defaults. parts at: first step whose token is not that of dense decoding. Costs: of the whole answer, and beside
them the change against dense."""


def named_pruners(text: str, basis: Basis, budget: float | None = None) -> dict[str, Pruner]:
    """The pruners that a text names, each under its part of the text.

    Where a budget is asked for and no setting keeps it, the name says that the pruner runs at its own one. Raises
    ValueError: no pruner is named, one is unknown or named twice, or a parameter is wrong.

    Parameters
    ----------
    text : As for :func:`make_pruner`, separated by commas: ``fastv(budget=0.2), divprune | visionpulse``
    basis : of the model; what needs samples to be set to a budget runs at its own setting
    budget : float, optional
        Share of the patches kept, in (0, 1] (see :func:`retention`), for pruners written without parameters. Of a
        combination that the comparison of all pruners does not know, the last one gets it.
    """
    found: dict[str, Pruner] = {}
    for part in parts_of(text):
        pruner, name = _pruner_at(part, basis, budget)
        twice = next((other for other, known in found.items() if known == pruner), None)
        if twice is not None:
            twice = twice.removesuffix(arm_name("", None))
            raise ValueError(f"{twice} and {part} name the same pruner; name each pruner once")
        found[name] = pruner
    return found


def _pruner_at(text: str, basis: Basis, budget: float | None) -> tuple[Pruner, str]:
    """The pruner of one part of the text, and the part, with a word where it is not at the budget."""
    parts = parse(text)
    if budget is None or any(own for _, own in parts):
        return make_pruner(text), text
    names = [name for name, _ in parts]
    alone = [make_pruner(name) for name in names]  # an unknown one is named in the error
    for known in all_rivals().values():
        pruner = matched_pruner(known, budget, basis) if known.name == " | ".join(names) else None
        if pruner is not None:
            return pruner, text
    if len(names) > 1:
        last, said = _pruner_at(names[-1], basis, budget)
        return reduce(or_, [*alone[:-1], last]), arm_name(text, None) if said.endswith(OWN) else text
    return alone[0], arm_name(text, None)


def decode_side_by_side(
    vlm: VLM,
    image: Any,
    question: str,
    pruners: Mapping[str, Pruner],
    *,
    store: str | Path | None = None,
    id: str = "compare",
    **options: Any,
) -> dict[str, Trace]:
    """Decode dense, then under each pruner, with the same seed: "dense" and the names of the pruners -> trace.

    Raises ValueError: a pruner cannot run on this model or an option is wrong. Nothing has been decoded then;
    FileExistsError: the store holds one of the names.

    Parameters
    ----------
    image : image, video, or list of them
    store : trace store that the traces are streamed into; made if there is none
    id : the traces are called ``ID-dense``, ``ID-1``, ``ID-2`` and so on
    **options
        Of :func:`decode`.
    """
    [asked] = asking_each(vlm, options.get("prompt_options"), 1)
    record = Record(vlm, asked.prompt(image, question), 0, {}, layers=[])
    for name, pruner in pruners.items():
        try:
            Batch(vlm, [record], Options([], None, pruner))
        except ValueError as error:
            raise ValueError(f"pruner {name} cannot run on {vlm.name}: {error}") from error
    arms = {DENSE: None, **pruners}
    ids = [f"{id}-{number or DENSE}" for number in range(len(arms))]
    kept = None if store is None else TraceStore(store, mode="a")
    if kept is not None:
        for name in ids:
            if name in kept:
                raise FileExistsError(f"trace {name!r} exists in {store}; choose another id (--id)")
            kept.check_new(name)
    return {
        name: decode(vlm, image, question, pruner=pruner, ids=own, store=kept, **options)
        for own, (name, pruner) in zip(ids, arms.items(), strict=True)
    }


def comparison(traces: Mapping[str, Trace], reference: Reference | None = None) -> list[dict[str, Any]]:
    """What each trace answers, keeps and costs, one row per trace, JSON-ready.

    ``divergence`` is the first step at which a trace parts from the dense one, None where it does not. ``retention``:
    see :func:`retention`; None without a step after prefill. Costs are of the whole trace: operations, and bytes of
    keys and values. With a `reference`, ``right``, ``score`` (0..1) and ``judge`` as in a sweep's table; only the
    judge's name where a language model must tell.
    """
    dense, rows = traces[DENSE], []
    for name, trace in traces.items():
        costs = costs_of(trace)
        row = {
            "name": name,
            "pruner": trace.meta["pruner"],
            "answer": trace.answer.strip(),
            "same_answer": trace.answer.strip() == dense.answer.strip(),
            "steps": len(trace),
            "finished": trace.meta["finished"],
            "divergence": align(dense.token_ids.tolist(), trace.token_ids.tolist()).divergence,
            "retention": kept_share(trace),
            "flops": float(costs.flops.sum()),
            "kv_bytes_read": float(costs.kv_bytes_read.sum()),
            "peak_kv_bytes": costs.peak_kv_bytes,
        }
        rows.append(row if reference is None else row | _judged(trace.answer, reference))
    return rows


def _judged(answer: str, reference: Reference) -> dict[str, Any]:
    score = reference.score(answer)
    return {"right": None if score is None else score >= RIGHT_FROM, "score": score, "judge": reference.judge}


def format_comparison(rows: list[dict[str, Any]]) -> str:
    """The rows as a table for a terminal, and what its columns mean; costs with their change against dense."""
    table = []
    for row in rows:
        shown = {"": row["name"], "answer": row["answer"][:LONGEST_ANSWER] or "none"}
        if "judge" in row:
            part = "" if row["score"] in (None, 0, 1) else f" ({row['score']:.2f})"
            shown[f"right ({row['judge']})"] = {None: "not known", True: "yes", False: "no"}[row["right"]] + part
        shown["same"] = "yes" if row["same_answer"] else "no"
        shown["steps"] = f"{row['steps']}" + ("" if row["finished"] else ", cut off")
        shown["parts at"] = "never" if row["divergence"] is None else f"step {row['divergence']}"
        shown["kept"] = "" if row["retention"] is None else f"{100 * row['retention']:.1f} %"
        table.append(shown | {cost.replace("_", " "): _beside(row[cost], rows[0][cost]) for cost in COSTS})
    return f"{pd.DataFrame(table).to_string(index=False)}\n\n{MEANING}"


def _beside(value: float, dense: float) -> str:
    scale = next((n for n in (4, 3, 2, 1) if value >= 1000**n), 0)
    change = "" if value == dense or not dense else f" ({100 * (value / dense - 1):+.0f} %)"
    return f"{value / 1000**scale:.3g} {' kMGT'[scale].strip()}".strip() + change


def kept_figure(traces: Mapping[str, Trace]) -> Figure:
    """Draw what the last layer sees under each pruner, at steps evenly spaced over those that all traces reach.

    Of several images or frames, the one with the most dense attention over all steps and recorded layers.

    Raises ValueError where no trace has a step after prefill.
    """
    dense, pruned = traces[DENSE], {name: trace for name, trace in traces.items() if name != DENSE}
    grid, attention = dense.grid, dense.attention
    seen = attention.sum([dim for dim in attention.dims if dim != "patch"], dtype=np.float64).values
    panels = np.asarray(grid.frames)[:, :2].tolist()
    shares = [seen[(grid.image == image) & (grid.frame == frame)].sum() for image, frame in panels]
    return kept_page(pruned, shown_steps(pruned), panel=int(np.argmax(shares)))
