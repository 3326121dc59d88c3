"""Other architectures as tables and as sentences, each chosen by tests that were adjusted together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from visionpulse_analysis._util.files import data_folder
from visionpulse_analysis.metrics.claims import from_json
from visionpulse_analysis.studies.other_architectures.measure import (
    RANDOM_HEADS,
    RANDOM_PAIR,
    VICA_PLAIN,
    VICA_TUNED,
    YOPO_PLAIN,
    YOPO_TUNED,
    YOPO_WITHOUT,
    Answers,
    Prefill,
    Words,
    gain,
    share_right,
)
from visionpulse_analysis.studies.shared.arms import DENSE
from visionpulse_analysis.studies.shared.sentences import (
    COMPARED,
    RULE,
    Finding,
    cut_off_column,
    cut_off_sentences,
    listed,
)

Parts = Mapping[str, Mapping[str, Mapping[float, Words]]]


def trained_table() -> pd.DataFrame:
    """How the bundled twins were tuned, and how they scored on scenes for validation, with and without the pattern."""
    rows = {}
    for name in ("yopo", "vica"):
        told = json.loads((data_folder() / name / "training.json").read_text())
        scores = {
            label: ", ".join(f"{task} {share:.2f}" for task, share in tasks.items())
            for label, tasks in told["scores"].items()
        }
        rows[name] = {"steps": told["step"], "minutes": f"{told['seconds'] / 60:.1f}", "seed": told["seed"], **scores}
    return pd.DataFrame.from_dict(rows, orient="index")


def table(study: Answers) -> pd.DataFrame:
    """One row per arm; differences are paired by sample."""
    rows = {}
    for arm, share in study.visual.items():
        change = study.arms.changes[arm]
        truth = change.truth
        rows[arm] = {
            "visual FLOPs of prefill": f"{100 * share:.1f} %",
            "accuracy": f"{study.accuracy(arm):.1%}",
            "against dense": "" if arm == DENSE or truth is None else f"{truth.change:+.1p}",
            "cut off": cut_off_column(change),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def parts_table(parts: Parts) -> pd.DataFrame:
    """What each part of YOPO by itself keeps of the words read off the image, and its control where it has one."""
    rows = {}
    for part, labels in parts.items():
        (label, found), *control = labels.items()
        for value, words in found.items():
            row = {label: f"{share_right(words):.1%}"}
            for name, other in control:
                row = {"words right": row[label], "control": f"{name} {share_right(other[value]):.1%}"}
                row["difference"] = f"{gain(words, other[value]):+.1p}"
            rows[f"{part} {value:g} ({label})"] = row if control else {"words right": row[label]}
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def numbers(study: Answers, pairs: np.ndarray, horizons: Mapping[str, Any], prefill: Prefill) -> dict[str, Any]:
    """Every arm, what is judged, ViCA's layers and horizons, and what prefill takes, JSON-ready."""
    judged = [(*names, claim.to_json()) for names, claim in study.judged.items()]
    sizes = {str(n): [prefill.ratio(n), prefill.ratio(n, counted=True)] for n in prefill.seconds}
    return {
        "arms": study.arms.numbers(),
        "visual": study.visual,
        "judged": judged,
        "reading": {arm: list(layers) for arm, layers in study.reading.items()},
        "pairs": [[None if np.isnan(one) else float(one) for one in row] for row in pairs],
        "horizons": {model: dict(kinds) for model, kinds in horizons.items()},
        "prefill": sizes,
        "apart": prefill.apart,
    }


def steps_at(curve: list[float], layers: tuple[int, ...]) -> float:
    """Share of the rise of a horizon that falls on some layers, where the image is cut off behind them or not."""
    rises = np.diff(np.maximum.accumulate(np.array(curve)))
    return float(rises[list(layers)].sum() / rises.sum()) if rises.sum() > 0 else float("nan")


def paper_table(study: Answers, horizons: Mapping[str, Any], prefill: Prefill) -> pd.DataFrame:
    """What the papers report, beside what was measured here."""

    def said(arm: str, over: str) -> str:
        claim = study.judged[arm, over]
        return f"{claim.estimate:+.1p}, {COMPARED[claim.decision]} {over}"

    reading = study.reading[VICA_PLAIN]
    rise = ", ".join(f"{kind} {100 * steps_at(curve, reading):.0f} %" for kind, curve in horizons[VICA_TUNED].items())
    rows = {
        "YOPO, tuned": (
            "LLaVA at 12 % of the visual FLOPs keeps 97.7 % of nine scores",
            f"at {100 * study.visual[YOPO_TUNED]:.0f} %: {said(YOPO_TUNED, DENSE)}",
        ),
        "YOPO without tuning": ("Qwen2-VL and InternVL2: heads and layer cut alone", said(YOPO_TUNED, YOPO_PLAIN)),
        "which heads are inactive": ("those with little attention to pictures", said(YOPO_PLAIN, RANDOM_HEADS)),
        "against pruning patches at about equal FLOPs": (
            "ahead (tables not verified)",
            "; ".join(said(YOPO_TUNED, other) for other in ("FastV", "PyramidDrop", "VTW")),
        ),
        "ViCA, tuned": (
            "LLaVA-1.5-7B at 4.1 % of the visual FLOPs keeps 97.8 %",
            f"at {100 * study.visual[VICA_TUNED]:.1f} %: {said(VICA_TUNED, DENSE)}",
        ),
        "ViCA without tuning": ("not reported", said(VICA_TUNED, VICA_PLAIN)),
        "which layers read": (
            "a first pair and a middle block (how they were found is not verified)",
            f"{listed([str(layer) for layer in reading])}; {said(VICA_PLAIN, RANDOM_PAIR)}",
        ),
        "where the tuned model reads": ("not reported", f"share of the horizon's rise in these layers: {rise}"),
        "prefill": (
            "more than 3.5 times as fast, ten times in batches",
            "; ".join(f"{n:,} patches: {prefill.ratio(n):.1f} times (FLOPs {prefill.ratio(n, True):.1f})"
                      for n in prefill.seconds),
        ),
        "training": (
            "LLaVA's second stage (YOPO) or both (ViCA), from an untuned language model",
            "some minutes, from a model that had learned everything; 8 layers that know one world",
        ),
    }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index", columns=["papers", "here"])


def verdicts(study: Answers, prefill: Prefill) -> str:
    """What was found, as Markdown; each sentence is chosen by its adjusted test."""
    judged = study.judged
    lines = [f"{next(iter(judged.values())).family}. {RULE}"] if judged else ["Right answers are not known."]
    lines += [
        f"{arm} is {COMPARED[claim.decision]} {over} ({claim.estimate:+.1p})." for (arm, over), claim in judged.items()
    ]
    lines.append(
        f"Words alone as hidden states give the logits of masked execution within {prefill.apart:.1g}: what is not "
        "computed was not read."
    )
    lines += cut_off_sentences({arm: study.arms.changes[arm] for arm in study.visual if arm != DENSE}, study.arms.limit)
    return "\n".join(f"- {line[0].upper()}{line[1:]}" for line in lines)


def finding(given: dict[str, Any]) -> Finding:
    """What the notebook found, told from the numbers inside its headline figure."""
    n = from_json(given)
    judged, visual = {(arm, over): claim for arm, over, claim in n["judged"]}, n["visual"]

    def said(arm: str) -> str:
        claim = judged[arm, DENSE]
        return f"{100 * visual[arm]:.0f} % of them {COMPARED[claim.decision]} dense ({claim.estimate:+.1p})"

    both = f"tuned YOPO is with {said(YOPO_TUNED)}, and tuned ViCA with {said(VICA_TUNED)}"
    short = f"Of the visual FLOPs of prefill, {both}."
    pairs = ((YOPO_TUNED, YOPO_PLAIN), (YOPO_TUNED, YOPO_WITHOUT), (VICA_TUNED, VICA_PLAIN), (VICA_TUNED, YOPO_TUNED))
    told = "; ".join(
        f"{arm} is {COMPARED[judged[arm, over].decision]} {over} ({judged[arm, over].estimate:+.1p})"
        for arm, over in pairs
    )
    ratios = "; ".join(
        f"{int(size):,} patches {both[0]:.1f} (FLOPs {both[1]:.1f})" for size, both in n["prefill"].items()
    )
    long = (
        f"{short} {told[0].upper()}{told[1:]}. Exact tests over samples, adjusted by Holm among all {len(judged)}. "
        f"ViCA reads in layers {listed([str(one) for one in n['reading'][VICA_PLAIN]])}; with words alone as hidden "
        f"states stock prefill takes so many times as long: {ratios}."
    )
    return Finding(short, long)
