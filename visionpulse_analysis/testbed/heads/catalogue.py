"""The heads that can be trained by name, what is told of their training, and their scores on validation scenes."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import make_pruner
from visionpulse_analysis.pruners.heads import UNTRAINED, read_training
from visionpulse_analysis.pruners.networks import load_head, save_head
from visionpulse_analysis.pruners.networks.compressor import Compressor
from visionpulse_analysis.pruners.networks.scorer import Scorer
from visionpulse_analysis.pruners.top_k import top_k
from visionpulse_analysis.testbed.heads import relevance, selection
from visionpulse_analysis.testbed.heads.pairs import FIRST_CHECK_SEED, Pairs, make_pairs
from visionpulse_analysis.testbed.scenes.questions import TASKS
from visionpulse_analysis.testbed.training.evaluation import ask_all, right_answers
from visionpulse_analysis.testbed.training.evaluation_set import build_items

SHARES = (0.05, 0.1)  # of the patches, at which heads are scored
PICTURES, ANSWERED = 16, 24  # validation pictures with a question of each task, and questions that are decoded
COVIPAL = {
    "covipal": selection.Recipe(),
    "covipal-stage1": selection.Recipe(soft_steps=0),
    "covipal-stage2": selection.Recipe(steps=0),
    "covipal-shuffled": selection.Recipe(shuffled=True, steps=300, soft_steps=0),
    "covipal-layer2": selection.Recipe(layer=2, images=((6, 120), (8, 200)), steps=300, soft_steps=0),
}
RELEVANCE = {
    "relevance": relevance.Recipe(),
    "relevance-layer4": relevance.Recipe(layer=4),
    "relevance-shuffled": relevance.Recipe(shuffled=True),
}
HEADS = (*COVIPAL, *RELEVANCE)


def train_head(
    vlm: VLM,
    name: str,
    folder: Path,
    *,
    seed: int = 0,
    threads: int | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Train a head, or go on training it, and write it to ``folder / name`` with its scores.

    Parameters
    ----------
    vlm : VLM
        The bundled model, or another of its architecture and language; the head belongs to its weights as they are.
    name : str
        One of `HEADS`.
    folder : Path
        Also holds checkpoints and the data of the training, which heads of one kind share.
    seed : int
        Fixes weights and what is drawn.
    threads : int, optional
        CPU threads, from here on.
    report : callable
        Gets a line now and then.

    Returns
    -------
    Path, of the written head

    Raises
    ------
    ValueError
        There is no head of that name.
    """
    if name not in HEADS:
        raise ValueError(f"unknown head {name!r}; known: {', '.join(HEADS)}")
    if threads is not None:
        torch.set_num_threads(threads)
    recipe = (COVIPAL | RELEVANCE)[name]
    if isinstance(recipe, selection.Recipe):
        head, stages = selection.train_scorer(vlm, folder / "state", recipe, seed, report)
        score = score_scorer
    else:
        head, stages = relevance.train_compressor(vlm, folder / "state", recipe, seed, report)
        score = score_compressor
    facts = {
        "model": vlm.weights_hash,
        "layer": recipe.layer,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in head.parameters()),
        "stages": stages,
        "recipe": asdict(recipe),
        **machine(),
    }
    save_head(head, folder / name, facts)
    save_head(head, folder / name, {**facts, "scores": score(vlm, str(folder / name))})
    return folder / name


def machine() -> dict[str, Any]:
    """Where and with what a head is trained, JSON-ready."""
    packages = ("torch", "transformers", "visionpulse_analysis")
    return {
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), **{one: version(one) for one in packages}},
    }


def score_scorer(vlm: VLM, name: str) -> dict[str, Any]:
    """Scores of a head of CoViPAL on validation scenes of 256 patches.

    Parameters
    ----------
    vlm : VLM
    name : str
        A bundled head, or the folder of one; "untrained" for random weights before the model.

    Returns
    -------
    dict
        ``recall`` : share kept -> task -> share of the patches of the objects asked about that are kept, mean over
        the questions that name any. ``find`` : share of right answers at the first of `SHARES`.
    """
    untrained = name == UNTRAINED
    layer = 0 if untrained else read_training(name)["layer"]
    width = vlm.model.config.get_text_config().hidden_size
    scorer = Scorer.untrained(width=width) if untrained else load_head(Scorer, name, vlm.weights_hash)
    pairs = make_pairs(vlm, FIRST_CHECK_SEED, PICTURES, 8, layer=layer, each=len(TASKS))
    with torch.no_grad():
        found = selection.scored(scorer, pairs, torch.arange(len(pairs)))
    return {**recalls(found, pairs), **_right(vlm, "covipal", name, layer)}


def score_compressor(vlm: VLM, name: str) -> dict[str, Any]:
    """Scores of a network from attention to relevance on validation scenes of 256 patches, a size it was not shown.

    Parameters
    ----------
    vlm : VLM
    name : str
        A bundled head, or the folder of one; "untrained" for random weights and the first layer's attention.

    Returns
    -------
    dict
        As of `score_scorer`, and ``raw recall``, that of the attention itself.
    """
    untrained = name == UNTRAINED
    layer = 0 if untrained else read_training(name)["layer"]
    network = Compressor.untrained() if untrained else load_head(Compressor, name, vlm.weights_hash)
    pairs = make_pairs(vlm, FIRST_CHECK_SEED, PICTURES, 8, layer=0, each=len(TASKS))
    seen = pairs.words_seen[:, layer]
    with torch.no_grad():
        found = network(seen, torch.ones(seen.shape, dtype=torch.bool))
    raw = recalls(seen, pairs)["recall"]
    return {**recalls(found, pairs), "raw recall": raw, **_right(vlm, "relevance_cnn", name, layer)}


def recalls(scores: torch.Tensor, pairs: Pairs) -> dict[str, Any]:
    """:func:`recall` at each of `SHARES` of the patches; scores float32 [pair, patch]."""
    return {"recall": {f"{share:g}": recall(scores, pairs, share) for share in SHARES}}


def _right(vlm: VLM, pruner: str, head: str, layer: int) -> dict[str, float]:
    """Share of right answers to *find* at the first of `SHARES`."""
    items = build_items({8: ANSWERED}, FIRST_CHECK_SEED + PICTURES)
    made = make_pruner(pruner, budget=SHARES[0], head=head, layer=layer)
    answers = ask_all(vlm, items, "find", pruner=made, max_new_tokens=40)  # a straight one has about twenty
    return {"find": float(right_answers(items, "find", answers).mean())}


def recall(scores: torch.Tensor, pairs: Pairs, share: float) -> dict[str, float]:
    """Share of the patches of objects asked about among a share of all, those with the highest scores, by task.

    Parameters
    ----------
    scores : float32 [pair, patch]
    pairs : Pairs
    share : float, 0 to 1

    Returns
    -------
    dict
        Task -> mean over the questions that name any object.
    """
    k = torch.full((len(pairs),), round(share * scores.shape[1]))
    held = (top_k(scores, k) & pairs.named).sum(dim=1) / pairs.named.sum(dim=1)  # NaN where nothing is named
    return {task: round(float(held[pairs.task == n].nanmean()), 4) for n, task in enumerate(TASKS)}
