"""Learned selection as tables and as sentences, each chosen by tests that were adjusted together."""

from __future__ import annotations

from typing import Any

import pandas as pd

from visionpulse_analysis.metrics.claims import from_json
from visionpulse_analysis.pruners.heads import read_training
from visionpulse_analysis.studies.learned_selection.exits import TRAINED, Exits
from visionpulse_analysis.studies.learned_selection.measure import (
    CNN,
    COVIPAL,
    GUIDE,
    NO_QUESTION,
    ORACLE,
    OTHER_QUESTION,
    STAGES,
    TRUTH,
    Layers,
    Learned,
    at_budget,
)
from visionpulse_analysis.studies.shared.arms import DENSE
from visionpulse_analysis.studies.shared.sentences import (
    COMPARED,
    RULE,
    Finding,
    cut_off_column,
    cut_off_sentences,
    ended_length,
    listed,
)

HEADS = (
    "covipal", "covipal-stage1", "covipal-stage2", "covipal-shuffled", "covipal-layer2", "relevance",
    "relevance-layer4", "relevance-shuffled", "exits", "exits-shuffled", "exits-steps", "exits-steps-shuffled",
)  # fmt: skip


def trained_table() -> pd.DataFrame:
    """How the bundled heads were trained: parameters, steps and seconds of wall time of each stage, seed."""
    rows = {}
    for name in HEADS:
        told = read_training(name)
        stages = told["stages"].values()
        rows[name] = {
            "parameters": f"{told['parameters']:,}",
            "steps": " + ".join(f"{stage['step']:,}" for stage in stages),
            "minutes": " + ".join(f"{stage['seconds'] / 60:.1f}" for stage in stages),
            "loss, first to last": "; ".join(f"{stage['loss'][0]:.3g} to {stage['loss'][-1]:.3g}" for stage in stages),
            "layer": "all" if told["layer"] is None else told["layer"],
            "seed": told["seed"],
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def table(study: Learned) -> pd.DataFrame:
    """One row per arm; differences are paired by sample."""
    rows = {}
    for arm in study.kept:
        change, truth = study.arms.changes[arm], study.arms.changes[arm].truth
        rows[arm] = {
            "accuracy": "not known" if truth is None else f"{truth.accuracy:.1%}",
            "against dense": "not known" if truth is None else f"{truth.change:+.1p}",
            "held of what is asked about": f"{study.held(arm):.1%}",
            "tokens, both ended": ended_length(change),
            "cut off": cut_off_column(change),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def paper_table(study: Learned, found: Layers, left: Exits) -> pd.DataFrame:
    """What the papers report, beside what was measured here."""
    judged, share = study.judged, f" at {100 * study.compared:g} %"
    gates = left.questions.balanced(TRAINED)

    def said(label: str, other: str) -> str:
        claim = judged[at_budget(label, study.compared), at_budget(other, study.compared)]
        return f"{claim.estimate:+.1p}, {COMPARED[claim.decision]} it{share}"

    best = max(range(len(found.answer)), key=lambda layer: found.answer[layer].value)
    deepest = found.answer[-1]
    rows = {
        "CoViPAL against pruning without training": (
            "ahead of it at equal numbers of tokens (tables not verified)",
            f"FastV {said(COVIPAL, 'FastV')}; DivPrune {said(COVIPAL, 'DivPrune')}",
        ),
        "CoViPAL against the attention it learns from": ("not reported", said(COVIPAL, GUIDE)),
        "which guidance layer": (
            "deeper is better (16 of 32 given as an example)",
            f"layer {best} holds most of what is asked about ({found.answer[best]:.2f}), the last {deepest:.2f}; "
            f"trained on layer {study.guidance}",
        ),
        "both stages against the first alone": ("the second adds (not verified)", said(COVIPAL, "stage 1 only")),
        "both stages against the second alone": ("not verified", said(COVIPAL, "stage 2 only")),
        "the question": ("read by the module", f"without it {said(COVIPAL, NO_QUESTION)}; "
                         f"with another {said(COVIPAL, OTHER_QUESTION)}"),
        "network against raw attention, first layer": (
            "first-layer attention predicts relevance well enough",
            f"{said('CNN, layer 0', 'raw attention, layer 0')}; rank correlation {found.cnn[0]:.2f}, raw "
            f"{found.rank[0]:.2f}",
        ),
        "network against its oracle": ("close to it", said("CNN, layer 0", ORACLE)),
        "a later layer as input": ("little is gained", said("CNN, layer 4", "CNN, layer 0")),
        "DyVTE's accuracy": (
            "kept within about a point (tables not verified)",
            f"{left.judged[TRAINED, DENSE].estimate:+.1p} against dense, "
            f"{COMPARED[left.judged[TRAINED, DENSE].decision]} it",
        ),
        "how well a gate tells a free exit": (
            "not reported",
            "; ".join(f"layer {n}: {one:.2f}" for n, one in enumerate(gates) if one.n_values),
        ),
        "training": (
            "CoViPAL: visual instruction data, module alone, then end to end; network: 100 epochs; gates: 6,650 "
            "conversations",
            "shorter, see the first table; a model of 8 layers that knows one world",
        ),
    }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index", columns=["papers", "here"])


def verdicts(study: Learned, found: Layers) -> str:
    """What was found, as Markdown; each sentence is chosen by its adjusted test."""
    judged = study.judged
    lines = [f"{next(iter(judged.values())).family}. {RULE}"]
    for label in (COVIPAL, "CNN, layer 0", "CNN, layer 4"):
        arm, groups = at_budget(label, study.compared), dict[str, list[str]]()
        for (first, over), claim in judged.items():
            if first == arm:
                name = over.rpartition(",")[0]
                groups.setdefault(COMPARED[claim.decision], []).append(f"{name} ({claim.estimate:+.1p})")
        lines.append(f"{arm} kept: {'; '.join(f'{how} {listed(names)}' for how, names in groups.items())}.")
    truth, named = at_budget(TRUTH, study.compared), study.pairs.named
    lines.append(
        f"The objects asked about fill {100 * float(named.float().mean()):.1f} % of the patches; {truth} kept, with "
        f"these and random others, {study.accuracy(truth):.1%} of the answers are right."
    )
    lines.append(
        f"Attention of the question's words holds {found.words[0]:.1%} of what is asked about in layer 0 and "
        f"{found.words[study.guidance]:.1%} in layer {study.guidance} ({100 * study.compared:g} % at random); that of "
        f"the answer {found.answer[0]:.1%} and {found.answer[study.guidance]:.1%}. A network that reads one layer's "
        "attention alone cannot know more of the question than that layer shows."
    )
    labels = [COVIPAL, *STAGES, NO_QUESTION, OTHER_QUESTION, *CNN]
    lines += cut_off_sentences({arm: study.arms.changes[arm] for arm in study.at_compared(labels)}, study.arms.limit)
    return "\n".join(f"- {line[0].upper()}{line[1:]}" for line in lines)


def numbers(study: Learned, found: Layers) -> dict[str, Any]:
    """Every arm, every layer, and what is judged, JSON-ready."""
    layers = {name: [one.to_json() for one in getattr(found, name)] for name in ("words", "prompt", "answer", "rank")}
    cnn = {str(layer): one.to_json() for layer, one in found.cnn.items()}
    return {**study.numbers(), "guidance": study.guidance, "layers": {**layers, "cnn": cnn, "chance": found.chance}}


def finding(given: dict[str, Any]) -> Finding:
    """What the notebook found, told from the numbers inside its headline figure."""
    n = from_json(given)
    judged, share = {(arm, over): claim for arm, over, claim in n["judged"]}, f"{100 * n['compared']:g} %"

    def said(arm: str) -> str:
        groups: dict[str, list[str]] = {}
        for (first, over), claim in judged.items():
            if first == f"{arm}, {share}":
                groups.setdefault(COMPARED[claim.decision], []).append(
                    f"{over.rpartition(',')[0]} ({claim.estimate:+.1p})"
                )
        return "; ".join(f"{how} {listed(names)}" for how, names in groups.items())

    random, deaf = (judged[f"{COVIPAL}, {share}", f"{name}, {share}"] for name in ("random", NO_QUESTION))
    words, guidance = n["layers"]["words"], n["guidance"]
    short = (
        f"With {share} of the patches kept before the model, CoViPAL's trained scorer is "
        f"{COMPARED[random.decision]} random patches ({random.estimate:+.1p}) and {COMPARED[deaf.decision]} itself "
        f"without the question ({deaf.estimate:+.1p})."
    )
    long = (
        f"{short} It is {said(COVIPAL)}. The network from attention to relevance in layer 0 is {said('CNN, layer 0')}; "
        f"that of layer 4 {said('CNN, layer 4')}: attention of the question's words holds {words[0]:.1%} of what is "
        f"asked about in layer 0, and {words[guidance]:.1%} in layer {guidance}. Exact tests over samples, adjusted by "
        f"Holm among all {len(judged)}."
    )
    return Finding(short, long)
