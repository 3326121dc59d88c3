"""SeTok's clusters of scenes in which it is known which object each patch is of, and what their tokens are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import rankdata

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.figures.style import GREY, style
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Claim, Estimate, cluster_bootstrap, correlation
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.models.locating.probing import embeddings
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.pruners.setok import SeTok
from visionpulse_analysis.studies.shared.arms import DENSE, Arms, measure_arms
from visionpulse_analysis.studies.shared.sentences import COMPARED, RULE, cut_off_column, listed
from visionpulse_analysis.testbed.scenes.scene import Scene, generate
from visionpulse_analysis.testbed.scenes.truth import object_patches

BLUE, RED = "#0072B2", "#D55E00"
SETOK, NOT_MERGED, KMEANS, BLOCKS, FAR, RANDOM, PUBLISHED = (
    "SeTok", "SeTok, centres alone", "k-means", "blocks (pooling)", "DivPrune", "random", "SeTok, published setting",
)  # fmt: skip
FIRST_CALIBRATION_SEED, FIRST_COUNTED_SEED = 21_000_000, 22_000_000  # scenes of no training, nor samples of a study
OBJECT_PATCHES = 4  # that an object of a scene fills
ANY_QUESTION = "where is the red circle ?"  # no patch depends on it before the language model


@dataclass(frozen=True)
class Pictured:
    """One scene."""

    states: torch.Tensor  # float32 [patch, width]
    cells: torch.Tensor  # int64 [patch, 2]
    of: np.ndarray  # int [patch], its object or -1

    @classmethod
    def of_picture(cls, vlm: VLM, sample: Sample) -> Pictured:
        """What enters the language model of a sample; ValueError where it is no scene."""
        if not isinstance(sample.scene, Scene):
            raise ValueError(f"sample {sample.id!r} is no scene, of which the objects are known; take scene_samples")
        return cls.of_scene(vlm, sample.scene)

    @classmethod
    def of_scene(cls, vlm: VLM, scene: Scene) -> Pictured:
        """What enters the language model of a scene."""
        prompt = vlm.prompt(scene.render(), ANY_QUESTION)
        shown = object_patches(scene, prompt.grid)
        cells = torch.from_numpy(np.stack([prompt.grid.row, prompt.grid.col], axis=1).astype(np.int64))
        inputs = vlm.to_device(vlm.family.batch([prompt], padding=0))
        inputs["position_ids"] = vlm.family.positions(vlm.model, inputs)
        # Patches see one another in the tower, as when they are decoded.
        states = embeddings(vlm.model, inputs, apart=False).cpu()[torch.from_numpy(prompt.grid.position.copy())]
        return cls(states, cells, np.where(shown.any(axis=0), shown.argmax(axis=0), -1))

    @cached_property
    def n_objects(self) -> int:
        """How many objects there are."""
        return int(self.of.max()) + 1

    def clusters(self, pruner: SeTok) -> np.ndarray:
        """The number of its cluster: int [patch]."""
        # Of the scene itself: scenes with as many objects must not share their draw.
        order = torch.from_numpy(np.random.default_rng(self.of + 1).permutation(len(self.of)).astype(np.float32))
        return pruner.clusters(self.states, self.cells, order)[1].numpy()


def purity(owner: np.ndarray, of: np.ndarray) -> float:
    """Share of the patches of objects that lie in a cluster of which most patches are of the same object."""
    counts = np.zeros((owner.max() + 1, of.max() + 2), int)
    np.add.at(counts, (owner, of + 1), 1)
    most = counts[owner, of + 1] * 2 > counts.sum(axis=1)[owner]
    return float(most[of >= 0].mean())


def alone(owner: np.ndarray, of: np.ndarray) -> float:
    """Share of the objects whose patches share a cluster with nothing else."""
    objects = range(of.max() + 1)
    return float(np.mean([np.isin(owner[of != one], owner[of == one]).sum() == 0 for one in objects]))


def calibrated(scenes: Sequence[Pictured], tokens: int, neighbours: float) -> SeTok:
    """SeTok with the threshold under which the median scene has so many tokens, to three digits."""
    asked = SeTok(neighbours=neighbours)
    ranked = [asked.scores(one.states, one.cells)[1].sort(descending=True).values for one in scenes]
    # Between the last score that is to be a centre and the next one.
    between = [(float(one[tokens - 1]) + float(one[min(tokens, len(one) - 1)])) / 2 for one in ranked]
    return replace(asked, threshold=float(f"{np.median(between):.3g}"))


def arms_of(pruner: SeTok) -> dict[str, SeTok]:
    """SeTok, its controls at equal counts, and its published setting, which has a count of its own."""
    return {
        SETOK: pruner,
        NOT_MERGED: replace(pruner, merge=False),
        KMEANS: replace(pruner, by="kmeans"),
        BLOCKS: replace(pruner, by="rectangles"),
        FAR: replace(pruner, by="spread", merge=False),
        RANDOM: replace(pruner, by="random", merge=False),
        PUBLISHED: SeTok(),
    }


@dataclass(frozen=True, eq=False)
class Tokens:
    """What was measured of clusters."""

    pruners: dict[str, SeTok]  # by arm
    objects: np.ndarray  # int [scene]
    thresholds: np.ndarray  # float [threshold]
    counts: np.ndarray  # int [scene, threshold], tokens at the calibrated setting
    owners: dict[str, np.ndarray]  # arm -> int [scene, patch]
    of: np.ndarray  # int [scene, patch]
    arms: Arms  # of decoding

    @property
    def names(self) -> list[str]:
        """The arms."""
        return list(self.pruners)

    def count(self, arm: str) -> np.ndarray:
        """Tokens of each scene: int [scene]."""
        return self.owners[arm].max(axis=1) + 1

    def follows(self, counts: np.ndarray) -> Estimate:
        """Rank correlation of counts, int [scene], with the number of objects."""
        return correlation(rankdata(counts), rankdata(self.objects), np.arange(len(counts)), unit="scene")

    def _mean(self, arm: str, of_scene: Any) -> Estimate:
        values = [of_scene(owner, of) for owner, of in zip(self.owners[arm], self.of, strict=True)]
        return cluster_bootstrap(values, np.arange(len(values)), method="studentized", unit="scene")

    @cached_property
    def purity(self) -> dict[str, Estimate]:
        """:func:`purity` by arm."""
        return {arm: self._mean(arm, purity) for arm in self.names}

    @cached_property
    def alone(self) -> dict[str, Estimate]:
        """:func:`alone` by arm."""
        return {arm: self._mean(arm, alone) for arm in self.names}

    @cached_property
    def accuracy(self) -> dict[str, Estimate]:
        """Share of right answers by arm, dense among them; empty where these are not known."""
        return {arm: one.truth.accuracy for arm, one in self.arms.changes.items() if one.truth is not None}

    @cached_property
    def judged(self) -> dict[tuple[str, str], Claim]:
        """Differences in accuracy, all adjusted as one family: (arm, over)."""
        return self.arms.judge_accuracy([(SETOK, arm) for arm in (DENSE, *self.names[1:])])

    def numbers(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "arms": self.arms.numbers(),
            "threshold": self.pruners[SETOK].threshold,
            "tokens": {arm: float(np.median(self.count(arm))) for arm in self.names},
            "follows": as_json(self.follows(self.count(SETOK))),
            "purity": as_json(self.purity),
            "alone": as_json(self.alone),
            "judged": [(*names, claim.to_json()) for names, claim in self.judged.items()],
        }


def semantic_tokens(
    vlm: VLM, samples: Sequence[Sample], tokens: int, scenes: int, cells: int, *, seed: int = 0, **options: Any
) -> Tokens:
    """Calibrate, cluster and decode.

    Parameters
    ----------
    vlm : VLM
    samples : list of Sample
        Scenes to decode, of `cells` cells per side.
    tokens : int
        That the median calibration scene is to have.
    scenes : int
        How many scenes are calibrated on, and how many others are counted.
    cells, seed
        Of those scenes.
    **options
        Of :func:`decode_arms`.
    """
    patches, first = 4 * cells**2, 10_000 * seed
    known, counted = (
        [Pictured.of_scene(vlm, generate(start + first + number, cells)) for number in range(scenes)]
        for start in (FIRST_CALIBRATION_SEED, FIRST_COUNTED_SEED)
    )
    pruner = calibrated(known, tokens, OBJECT_PATCHES / patches)
    arms: Mapping[str, SeTok] = arms_of(pruner)
    scores = torch.stack([pruner.scores(one.states, one.cells)[1] for one in counted]).numpy()
    thresholds = pruner.threshold * np.geomspace(0.5, 1.6, 12)
    found = (scores[:, :, None] > thresholds).sum(axis=1)
    pruners: dict[str, Pruner] = {**arms}
    return Tokens(
        dict(arms),
        np.array([one.n_objects for one in counted]),
        thresholds,
        np.where(found > 0, found, OBJECT_PATCHES),  # where nothing is above, as many as neighbours
        {arm: np.stack([one.clusters(own) for one in counted]) for arm, own in arms.items()},
        np.stack([one.of for one in counted]),
        measure_arms(vlm, samples, pruners, **options),
    )


def page(study: Tokens, vlm: VLM, sample: Sample) -> Figure:
    """Draw the clusters of a sample's scene; tokens by threshold and by objects; what they hold and are worth."""
    fig, bands = figures.new_page(figures.DOUBLE, [2.0, 2.6, 2.6])
    prompt, shown = vlm.prompt(sample.image, ANY_QUESTION), (SETOK, KMEANS, BLOCKS, PUBLISHED)
    pictured = Pictured.of_picture(vlm, sample)
    with style():
        pictures = bands[0].subplots(1, len(shown))
        (curve, scene), (held, right) = (band.subplots(1, 2) for band in bands[1:])
        beside = curve.twinx()
        beside.set_ylabel("tokens, median", color=BLUE)
    for ax, arm in zip(pictures, shown, strict=True):
        owner = pictured.clusters(study.pruners[arm])
        figures.draw_clusters(ax, prompt.images[0], prompt.grid.to_map(owner.astype(float)))
        ax.set_title(f"{arm}: {owner.max() + 1}", fontsize=7)
    follows, at = [study.follows(counts) for counts in study.counts.T], study.pruners[SETOK].threshold
    figures.draw_curve(curve, study.thresholds, follows, colour=RED)
    beside.plot(study.thresholds, np.median(study.counts, axis=0), color=BLUE, linewidth=1)
    curve.axhline(0, color=GREY, linewidth=0.8, linestyle="--")
    curve.axvline(at, color=GREY, linewidth=0.8, linestyle=":")
    curve.set(xlabel="threshold (dotted: calibrated)", ylim=(-1.04, 1.04))
    curve.set_ylabel("rank correlation with objects", color=RED)
    moved = np.random.default_rng(0).uniform(-0.2, 0.2, (2, len(study.objects)))  # equal points stand side by side
    x, y = study.objects + moved[0], study.count(SETOK) + moved[1]
    figures.draw_scatter(scene, x, y, xlabel="objects of a scene", ylabel="tokens")
    figures.draw_estimates(held, study.alone)
    held.set(xlabel="objects with tokens of their own", xlim=(-0.02, 1.04))
    figures.draw_estimates(right, study.accuracy)
    right.set(xlabel="accuracy", xlim=(-0.02, 1.04))
    figures.draw_letters([pictures[0], curve, scene, held, right])
    tokens = ", ".join(f"{np.median(study.count(arm)):g} ({arm})" for arm in (SETOK, PUBLISHED))
    figures.draw_caption(fig, f"Median tokens of a scene: {tokens}; controls as many as SeTok in every scene.")
    return fig


def table(study: Tokens) -> pd.DataFrame:
    """One row per arm."""
    rows = {}
    for arm in study.names:
        change, counts = study.arms.changes[arm], study.count(arm)
        rows[arm] = {
            "setting": str(study.pruners[arm].to_dict()).replace("'name': 'setok', ", ""),
            "tokens, median (least to most)": f"{np.median(counts):g} ({counts.min()} to {counts.max()})",
            "purity": f"{study.purity[arm]:.1%}",
            "objects alone": f"{study.alone[arm]:.1%}",
            "accuracy": "not known" if change.truth is None else f"{change.truth.accuracy:.1%}",
            "cut off": cut_off_column(change),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def paper_table(study: Tokens) -> pd.DataFrame:
    """What the paper reports, beside what was measured here."""
    setok = study.pruners[SETOK]
    curve = [study.follows(counts) for counts in study.counts.T]
    best = int(np.nan_to_num([one.value for one in curve], nan=-np.inf).argmax())
    over = study.judged.get((SETOK, BLOCKS))
    rows = {
        "the number of tokens follows the picture": (
            "shown by examples",
            f"rank correlation with the number of objects {study.follows(study.count(SETOK)):.2f} at the threshold "
            f"{setok.threshold:g}; highest at {study.thresholds[best]:.3g} ({curve[best]:.2f})",
        ),
        "a token is a whole object": (
            "shown by examples",
            f"{study.alone[SETOK]:.1%} of the objects have tokens of their own, under the published setting "
            f"{study.alone[PUBLISHED]:.1%}, k-means {study.alone[KMEANS]:.1%}",
        ),
        "against pooling": (
            "ahead (tables not verified)",
            "not known" if over is None else f"{over.estimate:+.1p}, {COMPARED[over.decision]} it",
        ),
        "training": (
            "tokenizer by reconstruction and alignment, then the language model on its tokens",
            "none: clusters of the frozen tower, a token the mean of its patches",
        ),
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["paper", "here"])


def verdicts(study: Tokens) -> str:
    """What was found, as Markdown; each sentence is chosen by its adjusted test."""
    judged, follows = study.judged, study.follows(study.count(SETOK))
    curve = np.array([study.follows(one).value for one in study.counts.T])
    known = curve[np.isfinite(curve)]  # where all scenes have the same count there is no correlation
    lines = [f"{next(iter(judged.values())).family}. {RULE}"] if judged else []
    groups: dict[str, list[str]] = {}
    for (_, over), claim in judged.items():
        groups.setdefault(COMPARED[claim.decision], []).append(f"{over} ({claim.estimate:+.1p})")
    lines += [f"SeTok is {how} {listed(names)}." for how, names in groups.items()]
    lines.append(
        f"Over {len(study.objects)} scenes of their own the number of tokens and of objects have a rank correlation of "
        f"{follows:.2f}; from one threshold to another it runs from {known.min(initial=1):.2f} to "
        f"{known.max(initial=-1):.2f}. Ours was calibrated on other scenes by the wanted number of tokens alone."
    )
    cut = {arm: change.cut_off.n_arm for arm, change in study.arms.changes.items() if change.cut_off.n_arm}
    if cut:
        told = ", ".join(f"{arm} {count}" for arm, count in cut.items())
        lines.append(f"Cut off, of {study.arms.changes[DENSE].n_pairs}: {told}. These count as wrong.")
    return "\n".join(f"- {line[0].upper()}{line[1:]}" for line in lines)
