"""DyVTE's gates beside the exits that would have changed nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.figures.style import GREY
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Claim, Estimate, cluster_bootstrap
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import make_pruner
from visionpulse_analysis.pruners.networks import load_head
from visionpulse_analysis.pruners.networks.gates import Gates
from visionpulse_analysis.studies.learned_selection.measure import FIRST_SIZE_SEED
from visionpulse_analysis.studies.shared.arms import DENSE, Arms, measure_arms
from visionpulse_analysis.studies.shared.sentences import COMPARED, RULE
from visionpulse_analysis.testbed.heads import exits
from visionpulse_analysis.testbed.heads.pairs import questions_of
from visionpulse_analysis.testbed.scenes.questions import TASKS
from visionpulse_analysis.testbed.scenes.scene import generate

TRAINED, SHUFFLED, NOT = "DyVTE", "trained on shuffled labels", "untrained gates"
HEADS = {TRAINED: "exits", SHUFFLED: "exits-shuffled", NOT: "untrained"}
COLOURS = {TRAINED: "#D55E00", SHUFFLED: "#0072B2", NOT: GREY}


@dataclass(frozen=True, eq=False)
class Exits:
    """Gates and free exits of scenes of their own, and answers of the samples."""

    free: np.ndarray  # bool [pair, gate], whether text could do without the image after that layer
    told: dict[str, np.ndarray]  # label -> bool [pair, gate], what gates say
    # image, task: int [pair]
    image: np.ndarray
    task: np.ndarray
    arms: Arms  # of decoding, VTW among them

    def share_free(self, task: int) -> list[Estimate]:
        """Share of a task's questions for which each exit is free."""
        of_task = self.task == task
        return [cluster_bootstrap(one[of_task], self.image[of_task]) for one in self.free.T.astype(float)]

    def balanced(self, label: str) -> list[Estimate]:
        """Balanced accuracy of each gate; missing where all questions are of one kind."""
        found = []
        for said, true in zip(self.told[label].T, self.free.T, strict=True):
            if true.all() or not true.any():
                found.append(Estimate.missing("all questions are of one kind"))
                continue
            weight = np.where(true, 0.5 / true.mean(), 0.5 / (1 - true.mean()))
            found.append(cluster_bootstrap(weight * (said == true), self.image))
        return found

    def left(self, label: str) -> np.ndarray:
        """Share of the questions whose image has left by each gate: float [gate]."""
        return (np.cumsum(self.told[label], axis=1) > 0).mean(axis=0)

    @property
    def judged(self) -> dict[tuple[str, str], Claim]:
        """Differences in accuracy: (arm, over)."""
        return self.arms.judge_accuracy([(TRAINED, DENSE), (TRAINED, SHUFFLED), (TRAINED, NOT)])

    def numbers(self) -> dict[str, Any]:
        """JSON-ready."""
        gates = {label: as_json(self.balanced(label)) for label in self.told}
        judged = [(*names, claim.to_json()) for names, claim in self.judged.items()]
        left = {label: self.left(label).tolist() for label in self.told}
        return {"arms": self.arms.numbers(), "balanced accuracy": gates, "left": left, "judged": judged}


def measure_exits(vlm: VLM, samples: Sequence[Sample], images: int, *, seed: int = 0, **options: Any) -> Exits:
    """Ask gates and try all exits on `images` scenes of 256 patches; decode the samples under the gates and VTW."""
    first = FIRST_SIZE_SEED + 10_000 * seed + 5_000
    scenes = [generate(first + number, 8) for number in range(images)]
    rows = [(scene, questions_of(scene, len(TASKS))) for scene in scenes]
    parts = [exits.exits(vlm, rows[start : start + 8], exits.Recipe().floor) for start in range(0, images, 8)]
    text, told = torch.cat([part.text for part in parts]), dict[str, np.ndarray]()
    for label, name in HEADS.items():
        shape = {"width": text.shape[2] // 2, "gates": text.shape[1]}
        gates = Gates.untrained(**shape) if label == NOT else load_head(Gates, name, vlm.weights_hash)
        with torch.no_grad():
            told[label] = exits.leaving(gates, text).numpy()  # pyright: ignore[reportArgumentType]
    pruners = {label: make_pruner("dyvte", head=name) for label, name in HEADS.items()}
    pruners["VTW"] = make_pruner("vtw", layer=vlm.n_layers - 2)
    free = torch.cat([part.free for part in parts]).numpy()
    number = np.arange(len(free))
    return Exits(
        free, told, number // len(TASKS), number % len(TASKS), measure_arms(vlm, samples, pruners, **options)
    )  # fmt: skip


def page(study: Exits) -> Figure:
    """Draw how often an exit is free, how well gates tell, and the accuracy under them."""
    fig, axes = figures.new_figure(figures.DOUBLE, 3.4, 1, 3)
    often, well, right = np.ravel(axes)
    gates = list(range(study.free.shape[1]))
    for task, (name, colour) in enumerate(zip(TASKS, ("#E69F00", "#009E73", "#CC79A7"), strict=True)):
        figures.draw_curve(often, gates, study.share_free(task), name, colour=colour)
    for label in study.told:
        often.plot(gates, study.left(label), color=COLOURS[label], linestyle="--", linewidth=1, label=f"left: {label}")
        known = [(gate, one) for gate, one in zip(gates, study.balanced(label), strict=True) if np.isfinite(one.value)]
        if known:
            at, curve = zip(*known, strict=True)
            figures.draw_curve(well, list(at), list(curve), label, colour=COLOURS[label])
    often.set(xlabel="after layer", ylabel="exit is free", ylim=(-0.02, 1.04))
    well.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    well.set(xlabel="gate after layer", ylabel="balanced accuracy", ylim=(-0.02, 1.04))
    accuracy: Mapping[str, Estimate] = {
        arm: change.truth.accuracy for arm, change in study.arms.changes.items() if change.truth is not None
    }
    figures.draw_estimates(right, accuracy)
    right.set(xlabel="accuracy", xlim=(-0.02, 1.04))
    for ax in (often, well):
        ax.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False)
    return fig


def verdicts(study: Exits) -> str:
    """What was found of exits, as Markdown."""
    judged = study.judged
    lines = [f"{next(iter(judged.values())).family}. {RULE}"]
    for (first, over), claim in judged.items():
        lines.append(f"{first} is {COMPARED[claim.decision]} {over} ({claim.estimate:+.1p}).")
    best = [one for one in study.balanced(TRAINED) if np.isfinite(one.value)]
    above = [one for one in best if one.low > 0.5]
    lines.append(
        f"Of {len(best)} gates with questions of both kinds, {len(above)} have an interval of balanced accuracy above "
        f"one half (each interval by itself); by the last gate {100 * study.left(TRAINED)[-1]:.0f} % of the images "
        "have left. Whether an exit is free shows at the words that are read off the image, and these come after all "
        "that a gate in prefill reads."
    )
    return "\n".join(f"- {line[0].upper()}{line[1:]}" for line in lines)
