"""Learned choices of patches beside untrained ones, on scenes in which it is known what a question needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from visionpulse_analysis._util.progress import over
from visionpulse_analysis.experiments.conditions import first_choices
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Claim, Estimate, cluster_bootstrap
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import make_pruner
from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.heads import read_training
from visionpulse_analysis.pruners.networks import load_head
from visionpulse_analysis.pruners.networks.compressor import Compressor
from visionpulse_analysis.pruners.networks.scorer import Scorer
from visionpulse_analysis.pruners.top_k import top_k
from visionpulse_analysis.pruners.view import View
from visionpulse_analysis.studies.shared.arms import Arms, measure_arms
from visionpulse_analysis.studies.step_dependence.fixed_sets import NamedObjects
from visionpulse_analysis.testbed.heads.pairs import Pairs, joined, make_pairs, questions_of, see
from visionpulse_analysis.testbed.heads.selection import scored
from visionpulse_analysis.testbed.scenes.questions import TASKS, Question
from visionpulse_analysis.testbed.scenes.scene import Scene

COVIPAL, GUIDE, TRUTH, ORACLE = "CoViPAL", "question's attention, guidance layer", "truth", "oracle"
ANYWHERE = {COVIPAL: "covipal", "FastV": "fastv", "DivPrune": "divprune", "random": "fastv(layer=0)"}
STAGES = {
    "stage 1 only": "covipal(head='covipal-stage1')",
    "stage 2 only": "covipal(head='covipal-stage2')",
    "trained on shuffled labels": "covipal(head='covipal-shuffled')",
    "untrained scorer": "covipal(head='untrained')",
    "scored and pruned at layer 2": "covipal(head='covipal-layer2', layer=2)",
}
NO_QUESTION, OTHER_QUESTION = "without the question", "with another sample's question"
CNN = {
    "CNN, layer 0": "relevance_cnn",
    "CNN, layer 4": "relevance_cnn(head='relevance-layer4', layer=4)",
    "CNN, shuffled labels": "relevance_cnn(head='relevance-shuffled')",
    "CNN, untrained": "relevance_cnn(head='untrained')",
    "raw attention, layer 0": "relevance_cnn(head='raw')",
    "raw attention, layer 4": "relevance_cnn(head='raw', layer=4)",
}
ORACLE_TOKENS = 8  # of the dense answer, whose relevance the oracle follows
FIRST_SIZE_SEED = 20_000_000  # scenes of other sizes: no other study's, and none that anything was trained on
EVERYWHERE = (*ANYWHERE, GUIDE, ORACLE, TRUTH)  # what is decoded at every budget


@dataclass(frozen=True)
class Chosen(NamedObjects):
    """Keep given patches, and never show any layer the others; of no list, as it belongs to certain samples.

    Parameters
    ----------
    sets : tuple of tuples of int
        As in `NamedObjects`.
    anchor_layer : int, optional
        Not asked for.
    """

    def visible(self, view: View, run: Selection) -> torch.Tensor | None:
        return None

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        return run.kept if view.layer == 0 else None


def at_budget(label: str, budget: float) -> str:
    """The arm of a label at a budget."""
    return f"{label}, {100 * budget:g} %"


@dataclass(frozen=True, eq=False)
class Learned:
    """What was measured, greedy, on the same samples."""

    budgets: list[float]  # rising
    compared: float  # the budget at which parts are taken away
    guidance: int  # the layer
    arms: Arms  # of decoding
    kept: dict[str, np.ndarray]  # arm -> bool [sample, patch]
    relevance: np.ndarray  # float32 [sample, patch], how much the dense answer depends on each patch
    pairs: Pairs  # what the frozen model makes of the samples

    def accuracy(self, arm: str) -> Estimate:
        """Share of right answers."""
        truth = self.arms.changes[arm].truth
        return Estimate.missing("right answers are not known") if truth is None else truth.accuracy

    def held(self, arm: str) -> Estimate:
        """Share of the patches asked about that an arm keeps, over the samples that ask about any."""
        return _mean(recall(torch.from_numpy(self.kept[arm]), self.pairs))

    def at_compared(self, labels: Sequence[str]) -> list[str]:
        """The arms of some labels at the budget at which parts are compared."""
        return [at_budget(label, self.compared) for label in labels]

    @property
    def judged(self) -> dict[tuple[str, str], Claim]:
        """Differences in accuracy that sentences speak of, all adjusted as one family: (arm, over)."""
        here = [at_budget(COVIPAL, self.compared)]
        others = ["random", "FastV", "DivPrune", GUIDE, ORACLE, TRUTH, *STAGES, NO_QUESTION, OTHER_QUESTION]
        pairs = [(here[0], other) for other in self.at_compared(others)]
        first, fourth = self.at_compared(["CNN, layer 0", "CNN, layer 4"])
        raw, raw_fourth = self.at_compared(["raw attention, layer 0", "raw attention, layer 4"])
        against = self.at_compared(["random", "CNN, untrained", "CNN, shuffled labels", ORACLE])
        networks = [(first, other) for other in (raw, *against)] + [(fourth, raw_fourth), (fourth, first)]
        return self.arms.judge_accuracy(pairs + networks)

    def numbers(self) -> dict[str, Any]:
        """Every arm, with what it holds, and what is judged, JSON-ready."""
        found = self.arms.numbers()
        for arm in self.kept:
            found[arm]["held"] = as_json(self.held(arm))
        judged = [(*names, claim.to_json()) for names, claim in self.judged.items()]
        return {"arms": found, "compared": self.compared, "judged": judged}


def learned_selection(
    vlm: VLM, samples: Sequence[Sample], budgets: Sequence[float], compared: float, **options: Any
) -> Learned:
    """Choose in every way, and decode; outcomes are kept and read again.

    Parameters
    ----------
    vlm : the model that the bundled heads belong to
    samples : scenes of one size
    budgets, compared
        Shares of the patches kept, and that of them at which parts are taken away.
    **options
        Of :func:`decode_arms`.
    """
    pairs = pairs_of_samples(vlm, samples)
    scores = given_scores(vlm, pairs)
    pruners: dict[str, Pruner] = {}
    for budget in budgets:
        for label, text in ANYWHERE.items():
            pruners[at_budget(label, budget)] = _at(text, budget)
        pruners[at_budget(ORACLE, budget)] = make_pruner("oracle", budget=budget, tokens=ORACLE_TOKENS)
        for label in (GUIDE, TRUTH):
            pruners[at_budget(label, budget)] = chosen(scores[label], budget)
    for label, text in (STAGES | CNN).items():
        pruners[at_budget(label, compared)] = _at(text, compared)
    for label in (NO_QUESTION, OTHER_QUESTION):
        pruners[at_budget(label, compared)] = chosen(scores[label], compared)
    arms = measure_arms(vlm, samples, pruners, **options)
    kept, relevance = first_choices(vlm, samples, pruners, tokens=ORACLE_TOKENS, **options)
    sets = {arm: np.stack(found) for arm, found in kept.items()}
    return Learned(list(budgets), compared, guidance_layer(), arms, sets, np.stack(relevance), pairs)


def guidance_layer() -> int:
    """The layer whose attention the bundled scorer was trained to foresee."""
    return read_training("covipal")["recipe"]["guidance"]


def _at(text: str, budget: float) -> Pruner:
    return replace(make_pruner(text), budget=budget)  # pyright: ignore[reportCallIssue]


def pairs_of_samples(vlm: VLM, samples: Sequence[Sample], at_once: int = 8) -> Pairs:
    """What the frozen model makes of samples, all scenes of one size, and of their straight answers.

    Raises ValueError where a sample has no scene with a known answer, or sizes differ.
    """
    known = [
        (one.scene, [one.truth]) for one in samples if isinstance(one.scene, Scene) and isinstance(one.truth, Question)
    ]
    if len(known) < len(samples) or len({scene.cells for scene, _ in known}) > 1:
        raise ValueError("expected samples that are scenes of one size with known answers; take those of scene_samples")
    starts = range(0, len(known), at_once)
    return joined(over(lambda start: see(vlm, known[start : start + at_once], 0), starts, "scores", "batch"))


def given_scores(vlm: VLM, pairs: Pairs) -> dict[str, torch.Tensor]:
    """Scores that no pruner gives by itself: float32 [pair, patch] by label.

    The guidance layer's own attention is known only after the model has read everything: as a choice before the model
    it looks ahead, and costs a second prefill. The truth marks the objects asked about; what else is kept is random.
    """
    scorer, every = load_head(Scorer, "covipal", vlm.weights_hash), torch.arange(len(pairs))
    # Tasks take turns among samples, so that this is a question of the same task.
    other = every.roll(len(TASKS))
    deaf = replace(pairs, asked=torch.zeros_like(pairs.asked))
    moved = replace(pairs, words=pairs.words[other], asked=pairs.asked[other])
    noise = torch.from_numpy(np.random.default_rng(0).random(pairs.named.shape, dtype=np.float32))
    with torch.no_grad():
        return {
            GUIDE: pairs.words_seen[:, guidance_layer()],
            TRUTH: pairs.named + noise,
            NO_QUESTION: scored(scorer, deaf, every),
            OTHER_QUESTION: scored(scorer, moved, every),
        }


def chosen(scores: torch.Tensor, budget: float) -> Chosen:
    """The highest ``round(budget * n)`` of some scores, float32 [sample, patch], as greedy arms decode them."""
    kept = top_k(scores, torch.full((len(scores),), max(1, round(budget * scores.shape[1]))))
    return Chosen(tuple((row, *np.flatnonzero(one).tolist()) for row, one in enumerate(kept.numpy())))


def recall(kept: torch.Tensor, pairs: Pairs) -> np.ndarray:
    """Share of the patches asked about that are ``kept``, bool [pair, patch]: float [pair], NaN for none."""
    return ((kept & pairs.named).sum(dim=1) / pairs.named.sum(dim=1)).numpy()


@dataclass(frozen=True, eq=False)
class Layers:
    """What attention to the patches holds of those asked about, by layer, at a share of the patches."""

    # words, prompt, answer: an Estimate for each layer, of attention from the question's words, from question and
    # template, and from the straight answer
    words: list[Estimate]
    prompt: list[Estimate]
    answer: list[Estimate]
    chance: float  # the share
    # Rank correlation of the words' attention with what the dense answer depends on, an Estimate for each layer
    rank: list[Estimate]
    cnn: dict[int, Estimate]  # the same of the bundled networks, by layer


def by_layer(vlm: VLM, study: Learned) -> Layers:
    """Measure every layer on the samples of a study."""
    pairs = study.pairs

    def held(seen: torch.Tensor) -> list[Estimate]:
        k = torch.full((len(pairs),), round(study.compared * seen.shape[2]))
        return [_mean(recall(top_k(seen[:, layer], k), pairs)) for layer in range(seen.shape[1])]

    rank = [_mean(correlation(pairs.words_seen[:, layer], study.relevance)) for layer in range(vlm.n_layers)]
    cnn = {}
    for name in ("relevance", "relevance-layer4"):
        layer = read_training(name)["layer"]
        cnn[layer] = _mean(correlation(cnn_scores(vlm, name, pairs), study.relevance))
    return Layers(
        held(pairs.words_seen), held(pairs.prompt_seen), held(pairs.answer_seen), study.compared, rank, cnn
    )  # fmt: skip


def correlation(scores: torch.Tensor, relevance: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of two values of each patch: float [pair], NaN where one is constant."""
    return np.array([spearmanr(a, b)[0] for a, b in zip(scores.numpy(), relevance, strict=True)])


def cnn_scores(vlm: VLM, name: str, pairs: Pairs) -> torch.Tensor:
    """What a bundled network makes of the attention of its layer: float32 [pair, patch]."""
    network = load_head(Compressor, name, vlm.weights_hash)
    seen = pairs.words_seen[:, read_training(name)["layer"]]
    with torch.no_grad():
        return network(seen, torch.ones(seen.shape, dtype=torch.bool))


def by_size(
    vlm: VLM, sizes: Sequence[int], images: int, share: float, *, seed: int = 0
) -> dict[str, dict[int, Estimate]]:
    """Share of the patches asked about that is held on scenes of other sizes: label -> patches -> Estimate.

    Parameters
    ----------
    vlm : VLM
    sizes : cells per side
    images : scenes of each size, with a question of each task
    share : of the patches, that is kept
    seed : fixes the scenes
    """
    found: dict[str, dict[int, Estimate]] = {}
    scorer = load_head(Scorer, "covipal", vlm.weights_hash)
    for cells in sizes:
        pairs = make_pairs(vlm, FIRST_SIZE_SEED + 10_000 * seed, images, cells, layer=0, each=len(TASKS))
        scores = {
            "CNN, layer 0": cnn_scores(vlm, "relevance", pairs),
            "raw attention, layer 0": pairs.words_seen[:, 0],
            "CNN, layer 4": cnn_scores(vlm, "relevance-layer4", pairs),
            "raw attention, layer 4": pairs.words_seen[:, 4],
        }
        with torch.no_grad():
            scores[COVIPAL] = scored(scorer, pairs, torch.arange(len(pairs)))
        k = torch.full((len(pairs),), max(1, round(share * pairs.named.shape[1])))
        for label, one in scores.items():
            held = cluster_bootstrap(*_known(recall(top_k(one, k), pairs), pairs.image.numpy()))
            found.setdefault(label, {})[pairs.named.shape[1]] = held
    return found


def kept_by_question(vlm: VLM, sample: Sample, share: float) -> dict[str, np.ndarray]:
    """What CoViPAL keeps of a sample's scene for a question of each task: text -> bool [patch]."""
    if not isinstance(sample.scene, Scene):
        raise ValueError(f"sample {sample.id!r} is no scene")
    asked = questions_of(sample.scene, len(TASKS))
    pairs = see(vlm, [(sample.scene, asked)], 0)
    with torch.no_grad():
        found = scored(load_head(Scorer, "covipal", vlm.weights_hash), pairs, torch.arange(len(pairs)))
    kept = top_k(found, torch.full((len(pairs),), max(1, round(share * found.shape[1]))))
    return {question.text: one for question, one in zip(asked, kept.numpy(), strict=True)}


def _known(values: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that are numbers, with their owners."""
    there = np.isfinite(values)
    return values[there], owners[there]


def _mean(values: np.ndarray) -> Estimate:
    return cluster_bootstrap(*_known(values, np.arange(len(values))))
