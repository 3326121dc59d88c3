"""What the heads show, as a table and as sentences that the judged claims choose."""

from __future__ import annotations

from typing import Any

import pandas as pd

from visionpulse_analysis.metrics.claims import from_json
from visionpulse_analysis.studies.heads.measure import ARMS, CRITERIA, Head, Heads, rows_of
from visionpulse_analysis.studies.shared.sentences import Finding, listed

BEYOND = {
    "own step": ("holds more of what the step itself depends on than of what other steps do",
                 "holds less of what the step itself depends on than of what other steps do"),
    "random": ("keeps more steps as they were than random patches",
               "keeps fewer steps as they were than random patches"),
    "layer's mean": ("keeps more steps as they were than the mean over its layer's heads",
                     "keeps fewer steps as they were than the mean over its layer's heads"),
}  # fmt: skip
OPEN = {
    "own step": "is not shown to follow the step",
    "random": "is not shown to differ from random patches",
    "layer's mean": "is not told apart from the mean over its layer's heads",
}


def named(head: Head) -> str:
    return f"head {head[1]} of layer {head[0]}"


def heads_table(study: Heads, most: int = 8) -> pd.DataFrame:
    """The heads that follow their step most, on the half that chooses."""
    rows = {}
    for head, found in list(rows_of(study))[:most]:
        claim = study.found[head]
        rows[named(head)] = {
            "image mass": f"{found['mass']:.1%}",
            "reading minus other steps": f"{found['when']:+.1p}",
            "entropy": f"{found['entropy']:.2f nats}",
            "relevant patches held": f"{found['agreement']:.1%}",
            "at other steps": f"{found['other']:.1%}",
            "held, by norm": f"{found['by_norm']:.1%}",
            "own step minus others": f"{claim.estimate:+.1p}, {claim.decision}",
            "chosen": "yes" if head in study.chosen else "",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def pruning_table(study: Heads) -> pd.DataFrame:
    """Share of the reading steps that stay within the level, on the half that did not choose."""
    rows = {named(head): {arm: f"{study.pruned[head][arm]:.1%}" for arm in ARMS} for head in study.chosen}
    return pd.DataFrame.from_dict(rows, orient="index")


def criteria_table(study: Heads) -> pd.DataFrame:
    """The best head by each criterion on the one half, and what it holds on the other."""
    rows = {by: (named(study.best[by][0]), f"{study.best[by][1]:.1%}") for by in CRITERIA}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["best head", "relevant patches held, other half"])


def verdict(study: Heads) -> str:
    """What the heads chosen do on the samples that did not choose them, as Markdown."""
    followed = [head for head, claim in study.found.items() if claim.above]
    lines = [
        f"{100 * study.reading.value:.1f} % of the steps after prefill read the image. {study.n_choosing} samples with "
        f"such a step choose, {study.n_judging} judge.",
        f"{len(followed)} of {len(study.found)} heads are shown to follow their step on the half that chooses (Holm).",
    ]
    for head in study.chosen:
        said, none = [], study.pruned[head]["none"]
        for against in BEYOND:
            claim = study.judged[head, against]
            more, less = BEYOND[against]
            ends = {"rises": more, "falls": less}.get(claim.decision, OPEN[against])
            said.append(f"{ends} ({claim.estimate:+.1p})")
        lines.append(
            f"**{named(head).capitalize()}** {listed(said)}; with no patch at all from its layer on, {none:.1%} of "
            "these steps stay as they were."
        )
    would = [named(head) for head in suitable(study)]
    lines.append(f"Shown to do for pruning here: {listed(would) if would else 'none of those chosen'}.")
    return "\n".join(f"- {line}" for line in lines)


def suitable(study: Heads) -> list[Head]:
    """The chosen heads that are shown to follow their step and to beat random patches, and not to lose to the mean."""
    return [
        head
        for head in study.chosen
        if study.judged[head, "own step"].above
        and study.judged[head, "random"].above
        and not study.judged[head, "layer's mean"].below
    ]


def numbers(study: Heads) -> dict:
    """Everything, JSON-ready."""
    return {**study.numbers(), "suitable": [f"{layer}.{head}" for layer, head in suitable(study)]}


def finding(numbers: dict[str, Any]) -> Finding:
    n = from_json(numbers)

    def of_head(key: str) -> str:
        layer, head = key.split(".")
        return named((int(layer), int(head)))

    followed = sum(claim.decision == "rises" for claim in n["found"].values())
    told = []
    for head in n["chosen"]:
        own, random, mean = (n["judged"][f"{head}, {name}"] for name in ("own step", "random", "layer's mean"))
        told.append(
            f"{of_head(head)} ({own.estimate:.1p}, {own.decision}; against random {random.estimate:.1p}, "
            f"{random.decision}; against its layer's mean {mean.estimate:.1p}, {mean.decision})"
        )
    by = "; ".join(f"{criterion} {best['agreement']:.1%}" for criterion, best in n["best"].items())
    size = next(iter(n["judged"].values())).size
    heads = f"{followed} of {len(n['found'])} heads"
    follow = f"{heads} hold more of the patches that their step depends on than of those of other steps"
    suitable = listed([of_head(head) for head in n["suitable"]]) if n["suitable"] else "none of these"
    best = n["best"]["agreement"]["agreement"]
    return Finding(
        f"{follow}; the best holds {best:.1%} of them (random sets {100 * n['chance']:.1f} %). Shown to do for "
        f"pruning: {suitable}.",
        f"{follow} (Holm, on the half of the samples that chooses). The {len(n['chosen'])} best, judged on the other "
        f"half by that and by the steps that stay within {n['level']:g} nats with {100 * n['fraction']:g} % of the "
        f"patches: {'; '.join(told)} (exact tests, Holm among {size}). Shown to do for pruning: {suitable}. Of the "
        f"relevant patches, the best head by each criterion holds: {by} (random sets {100 * n['chance']:.1f} %).",
    )
