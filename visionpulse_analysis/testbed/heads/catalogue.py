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
from visionpulse_analysis.pruners import Pruner, make_pruner
from visionpulse_analysis.pruners.heads import UNTRAINED, read_training
from visionpulse_analysis.pruners.networks import load_head, save_head
from visionpulse_analysis.pruners.networks.compressor import Compressor
from visionpulse_analysis.pruners.networks.gates import Gates, StepGates
from visionpulse_analysis.pruners.networks.scorer import Scorer
from visionpulse_analysis.pruners.top_k import top_k
from visionpulse_analysis.testbed.heads import check_head, exits, relevance, selection
from visionpulse_analysis.testbed.heads.pairs import FIRST_CHECK_SEED, Pairs, make_pairs, questions_of
from visionpulse_analysis.testbed.scenes.questions import TASKS
from visionpulse_analysis.testbed.scenes.scene import generate
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
PICTURES_OF_TOKENS = ((4, 16), (8, 16))  # each with six answers of about twenty tokens
EXITS = {
    "exits": exits.Recipe(),
    "exits-shuffled": exits.Recipe(shuffled=True),
    "exits-steps": exits.Recipe(PICTURES_OF_TOKENS, per_token=True),
    "exits-steps-shuffled": exits.Recipe(PICTURES_OF_TOKENS, per_token=True, shuffled=True),
}


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
    check_head(name)
    if threads is not None:
        torch.set_num_threads(threads)
    if name in COVIPAL:
        train, score, recipe = selection.train_scorer, score_scorer, COVIPAL[name]
    elif name in RELEVANCE:
        train, score, recipe = relevance.train_compressor, score_compressor, RELEVANCE[name]
    else:
        train, recipe = exits.train_gates, EXITS[name]
        score = score_step_gates if recipe.per_token else score_gates
    head, stages = train(vlm, folder / "state", recipe, seed, report)  # pyright: ignore[reportArgumentType]
    facts = {
        "model": vlm.weights_hash,
        "layer": getattr(recipe, "layer", None),
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
    pruner = make_pruner("covipal", budget=SHARES[0], head=name, layer=layer)
    return {**recalls(found, pairs), **_right(vlm, pruner)}


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
    pruner = make_pruner("relevance_cnn", budget=SHARES[0], head=name, layer=layer)
    return {**recalls(found, pairs), "raw recall": raw, **_right(vlm, pruner)}


def score_gates(vlm: VLM, name: str) -> dict[str, Any]:
    """Scores of DyVTE's gates on validation scenes of 256 patches.

    Parameters
    ----------
    vlm : VLM
    name : str
        A bundled head, the folder of one, or "untrained".

    Returns
    -------
    dict
        ``free`` : for each gate, the share of questions for which the image may leave there. ``balanced accuracy`` :
        of each gate, None where all questions are of one kind. ``left`` : share of the questions in which any gate
        lets the image leave. ``find`` : share of right answers.
    """
    width, count = vlm.model.config.get_text_config().hidden_size, vlm.n_layers - 1
    untrained = name == UNTRAINED
    gates = Gates.untrained(width=width, gates=count) if untrained else load_head(Gates, name, vlm.weights_hash)
    scenes = [generate(FIRST_CHECK_SEED + number, 8) for number in range(PICTURES)]
    rows = [(scene, questions_of(scene, len(TASKS))) for scene in scenes]
    parts = [exits.exits(vlm, rows[start : start + 8], exits.Recipe().floor) for start in range(0, PICTURES, 8)]
    data = exits.Exits(torch.cat([part.text for part in parts]), torch.cat([part.free for part in parts]))
    return {**_told(gates, data), **_right(vlm, make_pruner("dyvte", head=name))}


def _told(gates: Gates, data: exits.Exits) -> dict[str, Any]:
    """How gates tell free exits, as in `score_gates`."""
    with torch.no_grad():
        leaves = exits.leaving(gates, data.text)
    return {
        "free": data.free.float().mean(dim=0).tolist(),
        "balanced accuracy": [balanced(leaves[:, n], data.free[:, n]) for n in range(leaves.shape[1])],
        "left": float(leaves.any(dim=1).float().mean()),
    }


def score_step_gates(vlm: VLM, name: str) -> dict[str, Any]:
    """Scores of the gates of `DyVTESteps` on validation scenes of 256 patches; as of `score_gates`, over tokens.

    Parameters
    ----------
    vlm : VLM
    name : str
        A bundled head, the folder of one, or "untrained".

    Returns
    -------
    dict
        As of `score_gates`, tokens in place of questions.
    """
    shape = {"width": vlm.model.config.get_text_config().hidden_size, "gates": vlm.n_layers - 1}
    gates = StepGates.untrained(**shape) if name == UNTRAINED else load_head(StepGates, name, vlm.weights_hash)
    scenes = [generate(FIRST_CHECK_SEED + number, 8) for number in range(8)]
    rows = [(scene, questions_of(scene, len(TASKS))) for scene in scenes]
    data, _ = exits.step_exits(vlm, rows, exits.Recipe().floor)
    return {**_told(gates, data), **_right(vlm, make_pruner("dyvte_steps", head=name))}


def balanced(said: torch.Tensor, true: torch.Tensor) -> float | None:
    """Mean of the shares of both kinds that are told right; ``said`` and ``true`` bool [pair]; None without both."""
    if true.all() or not true.any():
        return None
    return round(float((said[true].float().mean() + (~said[~true]).float().mean()) / 2), 4)


def recalls(scores: torch.Tensor, pairs: Pairs) -> dict[str, Any]:
    """:func:`recall` at each of `SHARES` of the patches; scores float32 [pair, patch]."""
    return {"recall": {f"{share:g}": recall(scores, pairs, share) for share in SHARES}}


def _right(vlm: VLM, pruner: Pruner) -> dict[str, float]:
    """Share of right answers to *find*."""
    items = build_items({8: ANSWERED}, FIRST_CHECK_SEED + PICTURES)
    answers = ask_all(vlm, items, "find", pruner=pruner, max_new_tokens=40)  # a straight one has about twenty
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
