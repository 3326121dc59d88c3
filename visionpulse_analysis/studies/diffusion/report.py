"""The diffusion reasoner as tables and sentences, each chosen by a test that was adjusted with all others."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from visionpulse_analysis._util.files import data_folder
from visionpulse_analysis.metrics.claims import Claim, from_json
from visionpulse_analysis.studies.diffusion.measure import DENSE, NOISE, NOTHING, Study, withdrawn
from visionpulse_analysis.studies.shared.sentences import RULE, Finding

DECIDED = {"rises": "a rise", "falls": "a fall", "not shown": "cannot be decided with these samples"}


def trained_table() -> pd.DataFrame:
    """How the bundled twin was trained, and what it scores on validation scenes."""
    told = json.loads((data_folder() / "diffusion" / "training.json").read_text())
    scores = told["scores"]
    rows: dict[str, Any] = {
        "steps": f"{told['step']:,}",
        "minutes of the wall": f"{told['seconds'] / 60:.0f}",
        "seed": told["seed"],
    }
    said = {"tasks": "right", "one_step": "right in one step", "whole": "whole canvas right"}
    said |= {"noise_whole": "the same of noise"}
    for name, words in said.items():
        rows[words] = ", ".join(f"{task} {share:.2f}" for task, share in scores[name].items())
    return pd.DataFrame.from_dict({name: str(value) for name, value in rows.items()}, orient="index", columns=["twin"])


def table(study: Study) -> pd.DataFrame:
    """Accuracy of every arm, with its cost beside dense where it was counted."""
    dense = study.flops[DENSE].mean()
    rows = {
        (kind, arm): {
            "accuracy": format(study.accuracy(kind, arm), ".1%"),
            "FLOPs of dense": f"{study.flops[arm].mean() / dense:.2f}" if kind == "long" else "",
        }
        for kind, arms in (("short", study.short), ("long", study.long), ("other", study.other))
        for arm in arms
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _sentences(n: dict[str, Any]) -> dict[str, str]:
    """The five findings and what the truth adds, from the numbers of the study, by name."""
    judged: dict[str, Claim] = n["judged"]
    accuracy, half, middle = n["accuracy"], f"{100 * max(n['budgets']):g} %", f"{100 * n['middle']:g} %"

    def said(name: str, form: str = "+.1p") -> str:
        claim = judged[name]
        return f"{claim.estimate:{form}} ({DECIDED[claim.decision]})"

    cost = {arm: n["flops"][arm] / n["flops"][DENSE] for arm in (withdrawn(4), n["equal"])}
    return {
        "short answers": (
            f"Answered at once, with {half} of the patches from the first step (DivPrune) against dense "
            f"({accuracy['short'][DENSE]:.1%}): {said('short, pruned')}; against {half} at random: "
            f"{said('short, chosen')}. With nothing {accuracy['short'][NOTHING]:.1%} are right, of noise "
            f"{accuracy['short'][NOISE]:.1%}; these are *find*: of *compare* at once {n['compare at once']:.1%} are "
            "right, where a guess gets half."
        ),
        "long answers": (
            f"With thoughts and 25 % of the patches against dense ({accuracy['long'][DENSE]:.1%}): from the first step "
            f"{said('long, from the first step')}, from {middle} of the steps {said('long, from the middle')}; the "
            f"second against the first: {said('long, waiting')}. Where the whole image goes there, against what the "
            f"autoregressive model loses at the same share of its words: {said('long, beside the other model')}."
        ),
        "attention": (
            f"The image's share of the attention of answer rows, against the autoregressive model: "
            f"{said('share of the image')}; against a row that attends to everything equally: "
            f"{said('share of the image, uniform')}. The answer's own share, against the autoregressive model: "
            f"{said('share of the answer')}."
        ),
        "restoration": (
            f"Correlation of a rise of the answer's share in a masked place's row with a rise of the log probability "
            f"of its word one step later, against steps shuffled: {said('answer leads', '+.2f')}; against one step "
            f"before: {said('answer leads more than follows', '+.2f')}."
        ),
        "layers or steps": (
            f"{withdrawn(4)} ({cost[withdrawn(4)]:.2f} of the dense cost) against {n['equal']}, whose cost is nearest "
            f"({cost[n['equal']]:.2f}): {said('layers or steps')}."
        ),
        "truth": (
            f"When the row or column of an object is unmasked, its patches' share of the image's attention against "
            f"their share of the area: {said('looked at when named')}."
        ),
    }


def verdicts(study: Study) -> str:
    """What was found, as Markdown."""
    n = from_json(study.numbers())
    lines = [f"{next(iter(study.judged.values())).family}. {RULE}", *_sentences(n).values()]
    return "\n".join(f"- {line[0].upper()}{line[1:]}" for line in lines)


def paper_table(study: Study) -> pd.DataFrame:
    """What the study reports, beside what was measured here."""
    here = _sentences(from_json(study.numbers()))
    paper = {
        "short answers": "no redundancy: 50 % from the first step leave 74 to 91 % of the accuracy (LLaDA-V), 85 to "
        "87 % (LaViDa)",
        "long answers": "LLaDA-V (from scratch) recovers when pruning starts midway; LaViDa (adapted) collapses",
        "attention": "the answer's attention to the image stays high across layers; near zero in autoregressive models",
        "restoration": "answer-to-answer attention rises one step before the logits (LLaDA-V, steps 7 and 8)",
        "layers or steps": "layer skipping for adapted models, late pruning for those from scratch",
        "truth": "not known of real pictures",
    }
    return pd.DataFrame.from_dict({k: (paper[k], here[k]) for k in paper}, orient="index", columns=["paper", "here"])


def finding(given: dict[str, Any]) -> Finding:
    """What the notebook found, told from the numbers inside its headline figure."""
    n = from_json(given)
    told = _sentences(n)
    pruned, midway = n["judged"]["short, pruned"], n["judged"]["long, from the middle"]
    short = (
        f"With {100 * max(n['budgets']):g} % of the patches from the first step a masked-diffusion twin's short "
        f"answers change by {pruned.estimate:+.1p} ({DECIDED[pruned.decision]}), its long ones with 25 % from "
        f"{100 * n['middle']:g} % of the steps by {midway.estimate:+.1p} ({DECIDED[midway.decision]})."
    )
    return Finding(short, " ".join([short, *told.values()]) + f" {RULE}")
