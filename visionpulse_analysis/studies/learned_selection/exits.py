"""DyVTE's gates beside the exits that would have changed nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
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
from visionpulse_analysis.pruners.networks.gates import Gates, StepGates
from visionpulse_analysis.studies.learned_selection.measure import FIRST_SIZE_SEED
from visionpulse_analysis.studies.shared.arms import DENSE, Arms, measure_arms
from visionpulse_analysis.studies.shared.sentences import COMPARED, RULE
from visionpulse_analysis.testbed.heads import exits
from visionpulse_analysis.testbed.heads.pairs import questions_of
from visionpulse_analysis.testbed.scenes.questions import TASKS
from visionpulse_analysis.testbed.scenes.scene import generate

TRAINED, SHUFFLED, NOT = "DyVTE", "shuffled labels", "untrained"
STEPS, STEPS_SHUFFLED, STEPS_NOT = "DyVTE, each step", "each step, shuffled labels", "each step, untrained"
HEADS = {TRAINED: "exits", SHUFFLED: "exits-shuffled", NOT: "untrained"}
STEP_HEADS = {STEPS: "exits-steps", STEPS_SHUFFLED: "exits-steps-shuffled", STEPS_NOT: "untrained"}
COLOURS = dict(zip((*HEADS, *STEP_HEADS), ("#D55E00", "#0072B2", GREY) * 2, strict=True))
SAME_MEAN = "VTW, mean exit"  # of the gates


@dataclass(frozen=True, eq=False)
class Told:
    """Exits that are free, and what gates say of them: of questions, or of tokens."""

    free: np.ndarray  # bool [one, gate], whether it could do without the image after that layer
    told: dict[str, np.ndarray]  # label -> bool [one, gate]
    image: np.ndarray  # int [one]

    @classmethod
    def of(cls, vlm: VLM, data: exits.Exits, image: np.ndarray, kind: type[Gates], heads: Mapping[str, str]) -> Told:
        """Ask the gates of some heads."""
        told = dict[str, np.ndarray]()
        for label, name in heads.items():
            shape = {"width": data.text.shape[2] // kind.states, "gates": data.text.shape[1]}
            gates = kind.untrained(**shape) if name == "untrained" else load_head(kind, name, vlm.weights_hash)
            with torch.no_grad():
                told[label] = exits.leaving(gates, data.text).numpy()
        return cls(data.free.numpy(), told, image)

    def share_free(self, chosen: np.ndarray | slice = slice(None)) -> list[Estimate]:
        """Share for which each exit is free, of some of them, bool [one]."""
        return [cluster_bootstrap(one[chosen], self.image[chosen]) for one in self.free.T.astype(float)]

    def balanced(self, label: str) -> list[Estimate]:
        """Balanced accuracy of each gate; missing where all are of one kind."""
        found = []
        for said, true in zip(self.told[label].T, self.free.T, strict=True):
            if true.all() or not true.any():
                found.append(Estimate.missing("all questions are of one kind"))
                continue
            weight = np.where(true, 0.5 / true.mean(), 0.5 / (1 - true.mean()))
            found.append(cluster_bootstrap(weight * (said == true), self.image))
        return found

    def left(self, label: str) -> np.ndarray:
        """Share of the images that have left by each gate: float [gate]."""
        return (np.cumsum(self.told[label], axis=1) > 0).mean(axis=0)

    def exit_layer(self, label: str | None) -> np.ndarray:
        """The first layer without the image, the number of layers where none is: int [one]; of the oracle for None."""
        given = self.free if label is None else self.told[label]
        return np.where(given.any(axis=1), given.argmax(axis=1), given.shape[1]) + 1

    def confusion(self, label: str) -> np.ndarray:
        """Share of those with an oracle exit (row, layers 1 ..) that leave at a layer (column): float, NaN for none."""
        n = self.free.shape[1] + 1
        counts = np.zeros((n, n))
        np.add.at(counts, (self.exit_layer(None) - 1, self.exit_layer(label) - 1), 1)
        total = counts.sum(axis=1, keepdims=True)
        return np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)

    def balanced_layer(self, exit_layer: np.ndarray) -> float:
        """Mean over the oracle's exit layers of the share that an exit layer, int [one], hits exactly."""
        oracle = self.exit_layer(None)
        return float(np.mean([np.mean(exit_layer[oracle == layer] == layer) for layer in np.unique(oracle)]))


@dataclass(frozen=True, eq=False)
class Exits:
    """Gates and free exits of scenes of their own, and answers of the samples."""

    questions: Told
    tokens: Told
    task: np.ndarray  # int [question]
    same: int  # the layer of `SAME_MEAN`
    arms: Arms  # of decoding

    @property
    def judged(self) -> dict[tuple[str, str], Claim]:
        """Differences in accuracy: (arm, over)."""
        pairs = [(TRAINED, over) for over in (DENSE, SHUFFLED, NOT, SAME_MEAN)]
        return self.arms.judge_accuracy(pairs + [(STEPS, over) for over in (DENSE, STEPS_SHUFFLED, STEPS_NOT)])

    def seen(self, arm: str) -> float:
        """Share of the layers of the steps after prefill that see the image, mean over the samples."""
        given = [float(np.mean(one)) if len(one) else 1.0 for one in self.arms.rows(arm)["kept_by_layer"]]
        return float(np.mean(given))

    def numbers(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {}
        for name, told in (("questions", self.questions), ("tokens", self.tokens)):
            found[name] = {
                label: {
                    "balanced accuracy": as_json(told.balanced(label)),
                    "left": told.left(label).tolist(),
                    "exit layer, balanced accuracy": told.balanced_layer(told.exit_layer(label)),
                }
                for label in told.told
            }
        judged = [(*names, claim.to_json()) for names, claim in self.judged.items()]
        seen = {arm: self.seen(arm) for arm in self.arms.names}
        return {"arms": self.arms.numbers(), **found, "same": self.same, "seen": seen, "judged": judged}


def measure_exits(vlm: VLM, samples: Sequence[Sample], images: int, *, seed: int = 0, **options: Any) -> Exits:
    """Ask gates and try all exits on `images` scenes of 256 patches; decode the samples under the gates and VTW.

    Exits of tokens are tried on half as many of them.
    """
    first = FIRST_SIZE_SEED + 10_000 * seed + 5_000
    scenes = [generate(first + number, 8) for number in range(images)]
    rows, floor = [(scene, questions_of(scene, len(TASKS))) for scene in scenes], exits.Recipe().floor
    parts = [exits.exits(vlm, rows[start : start + 8], floor) for start in range(0, images, 8)]
    data = exits.Exits(torch.cat([part.text for part in parts]), torch.cat([part.free for part in parts]))
    number = np.arange(len(data.free))
    questions = Told.of(vlm, data, number // len(TASKS), Gates, HEADS)
    of_tokens, owner = exits.step_exits(vlm, rows[: max(1, images // 2)], floor)
    tokens = Told.of(vlm, of_tokens, owner.numpy() // len(TASKS), StepGates, STEP_HEADS)
    same = round(float(questions.exit_layer(TRAINED).mean()))
    pruners = {label: make_pruner("dyvte", head=name) for label, name in HEADS.items()}
    pruners["VTW"] = make_pruner("vtw", layer=vlm.n_layers - 2)
    pruners[SAME_MEAN] = make_pruner("vtw", layer=same)
    pruners |= {label: make_pruner("dyvte_steps", head=name) for label, name in STEP_HEADS.items()}
    return Exits(questions, tokens, number % len(TASKS), same, measure_arms(vlm, samples, pruners, **options))


def page(study: Exits) -> Figure:
    """Draw how often an exit is free, how well gates tell, and the accuracy under them: of prompts, then of tokens."""
    fig, axes = figures.new_panels(figures.DOUBLE, [3.0, 3.0], 3, [1, 1, 1.3])
    gates = list(range(study.questions.free.shape[1]))
    for told, (often, well, right), arms in (
        (study.questions, axes[0], (DENSE, *HEADS, "VTW", SAME_MEAN)),
        (study.tokens, axes[1], (DENSE, *STEP_HEADS)),
    ):
        if told is study.questions:
            for task, (name, colour) in enumerate(zip(TASKS, ("#E69F00", "#009E73", "#CC79A7"), strict=True)):
                figures.draw_curve(often, gates, told.share_free(study.task == task), name, colour=colour)
        else:
            figures.draw_curve(often, gates, told.share_free(), "tokens", colour="#000000")
        for label in told.told:
            look = {"color": COLOURS[label], "linestyle": "--", "linewidth": 1}
            often.plot(gates, told.left(label), label=f"left: {label}", **look)
            balanced = zip(gates, told.balanced(label), strict=True)
            known = [(gate, one) for gate, one in balanced if np.isfinite(one.value)]
            if known:
                at, curve = zip(*known, strict=True)
                figures.draw_curve(well, list(at), list(curve), label, colour=COLOURS[label])
        often.set(xlabel="after layer", ylabel="exit is free", ylim=(-0.02, 1.04))
        well.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        well.set(xlabel="gate after layer", ylabel="balanced accuracy", ylim=(-0.02, 1.04))
        changes = {arm: study.arms.changes[arm].truth for arm in arms}
        accuracy: Mapping[str, Estimate] = {
            f"{arm.removeprefix('each step, ')} ({study.seen(arm):.0%})": truth.accuracy
            for arm, truth in changes.items()
            if truth is not None
        }
        figures.draw_estimates(right, accuracy)
        right.set(xlabel="accuracy", xlim=(-0.02, 1.04))
        for ax in (often, well):
            ax.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False)
    figures.draw_letters(np.ravel(axes))
    figures.draw_caption(fig, "Behind the arms: share of the layers of decode steps that see the image.")
    return fig


def layers_page(study: Exits) -> Figure:
    """Draw at which layer gates leave, beside the first layer at which leaving is free."""
    names = [str(layer) for layer in range(1, study.questions.free.shape[1] + 1)] + ["never"]
    fig, axes = figures.new_figure(figures.DOUBLE, 2.2, 1, 3)
    drawn = ((study.questions, TRAINED), (study.questions, SHUFFLED), (study.tokens, STEPS))
    for (told, label), ax in zip(drawn, np.ravel(axes), strict=True):
        figures.draw_matrix(
            ax, told.confusion(label), names, names, vmin=0.0, vmax=1.0, label="share of a row",
            xlabel="gates leave at layer", ylabel="free from layer",
        )  # fmt: skip
        ax.set_title(label, fontsize=8)
    figures.draw_letters(np.ravel(axes))
    prompts, tokens = len(study.questions.free), len(study.tokens.free)
    figures.draw_caption(fig, f"n = {prompts} prompts (a, b) and {tokens} tokens (c); each row sums to 1.")
    return fig


def table(study: Exits) -> pd.DataFrame:
    """Exit layers beside the oracle's: mean, share hit exactly, and its mean over the oracle's layers."""
    rows = {}
    for told, what in ((study.questions, "prompts"), (study.tokens, "tokens")):
        oracle = told.exit_layer(None)
        given = {label: told.exit_layer(label) for label in told.told} | {"oracle": oracle}
        if told is study.questions:
            given[f"{SAME_MEAN} ({study.same})"] = np.full_like(oracle, study.same)
        for label, layer in given.items():
            rows[f"{label}: {what}"] = {
                "mean exit layer": f"{layer.mean():.2f}",
                "exact": f"{(layer == oracle).mean():.2f}",
                "balanced accuracy": f"{told.balanced_layer(layer):.2f}",
                "oracle's layers": len(np.unique(oracle)),
                "too early": f"{(layer < oracle).mean():.2f}",
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def verdicts(study: Exits) -> str:
    """What was found of exits, as Markdown."""
    judged = study.judged
    lines = [f"{next(iter(judged.values())).family}. {RULE}"]
    for (first, over), claim in judged.items():
        lines.append(f"{first} is {COMPARED[claim.decision]} {over} ({claim.estimate:+.1p}).")
    for told, label, what in ((study.questions, TRAINED, "prompts"), (study.tokens, STEPS, "tokens")):
        best = [one for one in told.balanced(label) if np.isfinite(one.value)]
        above = [one for one in best if one.low > 0.5]
        lines.append(
            f"{label}: of {len(best)} gates with {what} of both kinds, {len(above)} have an interval of balanced "
            f"accuracy above one half (each interval by itself); by the last gate {told.left(label)[-1]:.0%} of the "
            "images have left."
        )
    lines.append(
        "A reason that is not tested here: whether an exit is free for a whole answer shows at the words that are read "
        "off the image, and these come after all that a gate in prefill reads. Under "
        f"{STEPS} {study.seen(STEPS):.0%} of the layers of the steps see the image."
    )
    return "\n".join(f"- {line[0].upper()}{line[1:]}" for line in lines)
