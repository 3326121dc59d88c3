"""What came of a run: a line for each trace, as a table and in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from visionpulse_analysis.explorer.pairing import align, identities
from visionpulse_analysis.metrics.flops import costs_of
from visionpulse_analysis.studies.pruner_comparison.figures import kept_share
from visionpulse_analysis.studies.shared.sentences import Finding, listed
from visionpulse_analysis.traces import Trace


def rows(traces: Sequence[Trace]) -> list[dict[str, str]]:
    """One line of the table for each trace: answer, steps, retention, FLOPs, first difference from the first."""
    first, spent = traces[0], [_flops(trace) for trace in traces]
    table = []
    for trace, flops in zip(traces, spent, strict=True):
        cut = "" if trace.meta.get("finished", True) else f" (cut off at {len(trace)} tokens)"
        kept = kept_share(trace)
        share = f" ({100 * flops / spent[0]:.1f} % of dense)" if flops and spent[0] and trace is not first else ""
        table.append(
            {
                "trace": "dense" if trace.meta["pruner"] is None else f"pruned, {trace.meta['pruner']['name']}",
                "answer": (trace.answer.strip() or "none") + cut,
                "steps": str(len(trace)),
                "retention": "no decode step" if kept is None else f"{100 * kept:.1f} %",
                "FLOPs": "not known" if flops is None else f"{flops:.3g}{share}",
                "first difference": "" if trace is first else _difference(first, trace),
            }
        )
    return table


def numbers(traces: Sequence[Trace]) -> dict[str, Any]:
    """What a kept figure says in numbers, JSON-ready."""
    cut_off = [trace.meta["id"] for trace in traces if not trace.meta.get("finished", True)]
    return {"rows": rows(traces), "cut_off": cut_off}


def _flops(trace: Trace) -> float | None:
    try:
        return float(costs_of(trace).flops.sum())
    except ValueError:  # layers of kinds that the formula does not count
        return None


def _difference(first: Trace, other: Trace) -> str:
    step = align(identities(first), identities(other)).divergence
    if step is None:
        return "none: the same tokens"
    at = [repr(trace.tokens[step]) if step < len(trace) else "the end" for trace in (first, other)]
    return f"step {step}: {at[0]}, here {at[1]}"


def table_html(traces: Sequence[Trace]) -> str:
    """The rows as HTML; every text is escaped."""
    table = rows(traces)
    head = "".join(f"<th>{escape(name)}</th>" for name in table[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row.values())}</tr>" for row in table)
    note = (
        "Retention: share of the patches kept, mean over the steps after prefill and the layers that the method "
        "acts on. FLOPs: of the language model, prefill included."
    )
    return f"<table class='vp-table'><tr>{head}</tr>{body}</table><small>{note}</small>"


def finding(n: dict[str, Any]) -> Finding:
    told = [f"{row['trace']}: {row['answer']!r} after {row['steps']} steps" for row in n["rows"]]
    kept = f", with {n['rows'][-1]['retention']} of the patches" if len(told) > 1 else ""
    short = f"A form to ask, change and keep from. Its first question is answered: {listed(told)}{kept}."
    cut = f" Cut off at the limit of tokens: {listed(n['cut_off'])}." if n["cut_off"] else ""
    return Finding(short, f"{short}{cut}")
