"""A finished sweep as a table and as sentences, by pruner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from visionpulse_analysis.metrics.claims import from_json
from visionpulse_analysis.metrics.statistics import Claim
from visionpulse_analysis.studies.shared.arms import DENSE
from visionpulse_analysis.studies.shared.sentences import Finding, about_cut_off, adjusted, show_p, written
from visionpulse_analysis.studies.sweep.measure import ArmResult


def results_table(results: Mapping[str, ArmResult]) -> pd.DataFrame:
    """One row per pruner, as text with intervals."""
    rows = {}
    for name, arm in results.items():
        change, truth = arm.change, arm.change and arm.change.truth
        rows[name] = {
            "traces": arm.n,
            "failed": arm.failed,
            "kept": f"{100 * arm.kept:.1f} %",
            "cut off": f"{arm.n_cut_off} of {arm.n}",
            "tokens, ended": f"{arm.length:.1f}",
            "pairs that ended": "" if change is None else f"{change.n_both} of {change.n_pairs}",
            "length against dense": written(change and change.length, "+.1%"),
            "p, length": show_p(arm.judged.get("length")),
            "accuracy": written(arm.accuracy, ".1%"),
            "accuracy against dense": written(truth and truth.change, "+.1p"),
            "p, accuracy": show_p(arm.judged.get("accuracy")),
        }
        if any(one.score is not None for one in results.values()):
            rows[name]["score"] = written(arm.score, ".1%")
        if any(one.judges for one in results.values()):
            rows[name]["judge"] = ", ".join(arm.judges)
    return pd.DataFrame.from_dict(rows, orient="index")


def verdicts(results: Mapping[str, ArmResult], dense: str = DENSE) -> str:
    """What was found, one sentence per pruner, chosen by its tests among all of the sweep; Markdown."""
    lines = []
    for name, arm in results.items():
        if name == dense:
            continue
        said = [_about(arm.judged.get("accuracy"), "accuracy", "+.1p", "loses", "gains")]
        length = _about(arm.judged.get("length"), "length", "+.1%", "shortens traces by", "lengthens traces by")
        cut = ""
        if arm.change and arm.change.n_both < arm.change.n_pairs:
            length += f" over the {arm.change.n_both} of {arm.change.n_pairs} pairs that ended"
            cut = about_cut_off(arm.change, arm.judged)
        lines.append(f"- **{name}** (keeps {100 * arm.kept:.1f} %): {'; '.join([*said, length])}.{cut}")
    sizes = {verdict.size for arm in results.values() for verdict in arm.judged.values()}
    if sizes:
        lines.append(
            f"\nGains and losses are told by exact tests adjusted together (Holm), {sizes.pop()} of them: length, "
            "cut-offs and, where answers are known, accuracy of every pruner. Intervals are those of each alone."
        )
    return "\n".join(lines) or f"There is no pruner beside {dense!r} to compare."


def _about(claim: Claim | None, what: str, form: str, less: str, more: str) -> str:
    if claim is None or np.isnan(claim.estimate.value):
        return f"{what} cannot be compared"
    shown = format(claim.estimate, form)
    if claim.decision == "not shown":
        return f"no change of {what} is shown ({shown})"
    return f"{less if claim.decision == 'falls' else more} {shown.lstrip('+-')}"


def finding(numbers: dict[str, Any]) -> Finding:
    arms = from_json(numbers)
    cut = any(arm["n_cut_off"] for arm in arms.values())

    def decided(arm: dict[str, Any]) -> str:
        return f", {arm['judged']['accuracy'].decision}" if "accuracy" in arm["judged"] else ""

    def length(arm: dict[str, Any]) -> str:
        tokens = "no trace ended" if np.isnan(arm["length"].value) else f"{arm['length'].value:.1f} tokens"
        return f"({tokens}, {arm['n_cut_off']} cut off)" if cut else f"({tokens})"

    samples = f"of {arms[DENSE]['n']} samples per pruner"
    against = next((f" {adjusted(arm['judged'])}" for arm in arms.values() if arm["judged"]), "")
    told = {name: f"{name} {written(arm['accuracy'], '.1%')}" for name, arm in arms.items()}
    every = "; ".join(f"{told[name]}{decided(arm)} {length(arm)}" for name, arm in arms.items())
    return Finding(
        f"Accuracy {samples}: {'; '.join(told.values())}.",
        f"Accuracy, and mean length of the traces that ended, {samples}: {every}.{against}",
    )
