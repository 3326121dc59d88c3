"""What a masked-diffusion reasoner needs of the image, and when: the findings of arXiv 2511.15098 with their nulls.

Questions are about generated scenes. Short answers are given at once, on a canvas of four places with as many steps;
long ones with thoughts, with half as many steps as places, as the study decodes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from visionpulse_analysis.attention.routing import Call, intercept
from visionpulse_analysis.decoding import decode
from visionpulse_analysis.decoding.denoising import DenoisingStep
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.flops import costs_of
from visionpulse_analysis.metrics.statistics import (
    Claim,
    Estimate,
    cluster_bootstrap,
    judge,
    paired_difference,
    permutation_test,
    proportion_interval,
)
from visionpulse_analysis.models.loading import VLM, load
from visionpulse_analysis.pruners import make_pruner
from visionpulse_analysis.testbed.diffusion.canvases import PLACES
from visionpulse_analysis.testbed.diffusion.twin import Asked, denoise_all, draw_asked, right
from visionpulse_analysis.testbed.heads.pairs import straight_answer
from visionpulse_analysis.testbed.scenes.truth import annotate, object_patches
from visionpulse_analysis.testbed.training.batches import LANGUAGE, pack
from visionpulse_analysis.testbed.training.evaluation import noise
from visionpulse_analysis.testbed.training.evaluation_set import Item
from visionpulse_analysis.testbed.training.scoring import hidden_states
from visionpulse_analysis.traces import Trace

FIRST_STUDY_SEED = 60_000_000  # scenes of this study: of no training, evaluation or validation
DENSE, NOISE, NOTHING = "dense", "noise for a picture", "nothing"
SHORT = {"DivPrune": "divprune(budget={})", "FastV": "fastv(budget={})", "random": "fastv(layer=0, budget={})"}
LONG_SHARE = 0.25
WITHDRAWN = (2, 4, 6)  # layers from which VTW hides the image
SHARES = ("image", "prompt", "answer")
LAGS = (-1, 0, 1)
SHUFFLES = 20
Right = dict[str, np.ndarray]  # bool [sample] by arm; the order of samples is that of the questions


@dataclass
class Study:
    """Everything that was measured.

    Attributes
    ----------
    budgets, starts : shares of the patches kept in short answers; of the steps of long ones before patches are hidden
    short, long, other : whether each answer is right, by arm: of the twin, of the twin, and of the model it was adapted
        from, on the same long questions
    flops : of long answers, by arm, float64 [sample]
    compare_at_once : bool [sample], of the short answers' pictures
    shares : model -> float64 [sample, layer, kind]; kinds are `SHARES`. uniform : float64 [sample], what the image has
        of a row that attends to everything equally
    lagged, shuffled : float64 [sample, lag] and [sample]
    order : kind of word -> float64 [sample], mean share of the steps done when it is unmasked
    on_object, area : float64 [sample]: what the object named gets of the image's attention, and of its patches
    traces : recorded ones of long answers
    """

    budgets: list[float]
    starts: list[float]
    short: Right
    long: Right
    other: Right
    flops: dict[str, np.ndarray]
    compare_at_once: np.ndarray
    shares: dict[str, np.ndarray]
    uniform: np.ndarray
    lagged: np.ndarray
    shuffled: np.ndarray
    order: dict[str, np.ndarray]
    on_object: np.ndarray
    area: np.ndarray
    traces: list[Trace]

    @property
    def table(self) -> pd.DataFrame:
        """Whether each answer is right, one row per kind of answer, arm and sample."""
        groups = {"short": self.short, "long": self.long, "other": self.other}
        rows = [
            (kind, arm, number, bool(one))
            for kind, arms in groups.items()
            for arm, values in arms.items()
            for number, one in enumerate(values)
        ]
        return pd.DataFrame(rows, columns=["answers", "arm", "sample", "right"])

    def accuracy(self, kind: str, arm: str) -> Estimate:
        """Share of right answers of an arm; ``kind`` "short", "long" or "other"."""
        return proportion_interval(getattr(self, kind)[arm])

    @property
    def middle(self) -> float:
        """The start nearest to half of the steps."""
        return min(self.starts, key=lambda start: abs(start - 0.5))

    def at_equal_cost(self, layer: int) -> str:
        """The arm of DivPrune whose cost is nearest to that of VTW from a layer on."""
        goal = self.flops[withdrawn(layer)].mean()
        arms = [late("DivPrune", start) for start in self.starts]
        return min(arms, key=lambda arm: abs(self.flops[arm].mean() - goal))

    @cached_property
    def judged(self) -> dict[str, Claim]:
        """Every claim, adjusted together (Holm)."""
        half = short_arm("DivPrune", max(self.budgets))
        first, middle = late("DivPrune", self.starts[0]), late("DivPrune", self.middle)
        gone = late(NOTHING, self.middle)
        short, long, other = (
            {n: v.astype(float) for n, v in arms.items()} for arms in (self.short, self.long, self.other)
        )
        pairs = {
            "short, pruned": (short[DENSE], short[half]),
            "short, chosen": (short[short_arm("random", max(self.budgets))], short[half]),
            "long, from the first step": (long[DENSE], long[first]),
            "long, from the middle": (long[DENSE], long[middle]),
            "long, waiting": (long[first], long[middle]),
            "long, beside the other model": (other[gone] - other[DENSE], long[gone] - long[DENSE]),
            "share of the image": (self.shares["other"][..., 0].mean(1), self.shares["twin"][..., 0].mean(1)),
            "share of the image, uniform": (self.uniform, self.shares["twin"][..., 0].mean(1)),
            "share of the answer": (self.shares["other"][..., 2].mean(1), self.shares["twin"][..., 2].mean(1)),
            "answer leads": (self.shuffled, self.lagged[:, LAGS.index(1)]),
            "answer leads more than follows": (self.lagged[:, LAGS.index(-1)], self.lagged[:, LAGS.index(1)]),
            "layers or steps": (long[self.at_equal_cost(4)], long[withdrawn(4)]),
            "looked at when named": (self.area, self.on_object),
        }
        tests = {}
        for name, (a, b) in pairs.items():
            known = np.isfinite(a) & np.isfinite(b)
            tests[name] = paired_difference(a[known], b[known]), permutation_test(a[known], b[known]).p
        return judge(tests, f"{len(tests)} differences of this notebook, paired by sample")

    def numbers(self) -> dict[str, Any]:
        """JSON-ready."""
        kinds = {"short": self.short, "long": self.long, "other": self.other}
        return {
            "budgets": self.budgets,
            "starts": self.starts,
            "middle": self.middle,
            "equal": self.at_equal_cost(4),
            "accuracy": {
                kind: {arm: as_json(self.accuracy(kind, arm)) for arm in arms} for kind, arms in kinds.items()
            },
            "compare at once": proportion_interval(self.compare_at_once).to_json(),
            "flops": {arm: float(one.mean()) for arm, one in self.flops.items()},
            "shares": {model: one.mean(axis=0).tolist() for model, one in self.shares.items()},
            "order": {kind: float(np.nanmean(one)) for kind, one in self.order.items()},
            "judged": {name: claim.to_json() for name, claim in self.judged.items()},
        }


def short_arm(method: str, budget: float) -> str:
    """The arm in which a share of the patches is kept from the first step."""
    return f"{method}, {100 * budget:g} %"


def late(method: str, start: float) -> str:
    """The arm in which a share of the patches is hidden once a share of the steps is over."""
    return f"{method} from {100 * start:g} % of the steps"


def withdrawn(layer: int) -> str:
    """The arm in which the image is hidden from a layer on."""
    return f"VTW from layer {layer}"


def load_pair() -> tuple[VLM, VLM]:
    """The bundled twin, and the model that it was adapted from."""
    return load("diffusion"), load("scenes")


def measure(
    twin: VLM, other: VLM, n_short: int, n_long: int, n_recorded: int, budgets: Sequence[float],
    starts: Sequence[float], *, seed: int = 0,
) -> Study:  # fmt: skip
    """Ask the twin, and the model that it was adapted from, about generated scenes.

    Parameters
    ----------
    n_short, n_long, n_recorded : int
        Questions answered at once; questions with thoughts of each task; of these, how many are recorded.
    budgets, starts : rising, 0 to 1
    """
    first = FIRST_STUDY_SEED + 10_000 * seed
    direct = [replace(one, direct=True) for one in draw_asked(n_short, "find", first_seed=first)]
    compare = [replace(one, direct=True) for one in draw_asked(n_short, "compare", first_seed=first)]
    tasks = [draw_asked(n_long, task, first_seed=first + 2_000 * n) for n, task in enumerate(PLACES, start=1)]
    long, flops = _long_answers(twin, tasks, starts)
    recorded = [_Recorded.of(twin, asked[:n_recorded]) for asked in tasks]
    traces = [trace for part in recorded for trace in part.traces]
    lagged = [part.lagged(np.random.default_rng([seed, n])) for n, part in enumerate(recorded)]
    orders, looked = [part.order() for part in recorded], [part.looked() for part in recorded]
    shares = np.array([_shares(trace) for trace in traces])
    patches = np.array([len(trace.grid) for trace in traces])
    others = np.array([trace.meta["costs"]["text"] + trace.meta["costs"]["canvas"] for trace in traces])
    return Study(
        list(budgets), list(starts), _short_answers(twin, direct, budgets), long, _other_answers(other, tasks, starts),
        flops, right(compare, denoise_all(twin, compare, layers="none")),
        {"other": np.concatenate([_other_shares(other, asked[:n_recorded]) for asked in tasks]), "twin": shares},
        patches / (patches + others),
        np.concatenate([one for one, _ in lagged]), np.concatenate([one for _, one in lagged]),
        {kind: np.concatenate([order[kind] for order in orders]) for kind in orders[0]},
        np.concatenate([one for one, _ in looked]), np.concatenate([one for _, one in looked]), traces,
    )  # fmt: skip


def _short_answers(twin: VLM, asked: Sequence[Asked], budgets: Sequence[float]) -> Right:
    arms: dict[str, dict[str, Any]] = {DENSE: {}, NOISE: {"images": [noise(Item(one.scene, {})) for one in asked]}}
    for method, name in SHORT.items():
        arms |= {short_arm(method, budget): {"pruner": make_pruner(name.format(budget))} for budget in budgets}
    arms[NOTHING] = {"pruner": make_pruner("vtw", layer=0)}
    seeds = [one.scene.seed for one in asked]
    return {a: right(asked, denoise_all(twin, asked, layers="none", seed=seeds, **given)) for a, given in arms.items()}


def _long_answers(
    twin: VLM, tasks: Sequence[Sequence[Asked]], starts: Sequence[float]
) -> tuple[Right, dict[str, np.ndarray]]:
    divprune, gone = make_pruner("divprune", budget=LONG_SHARE), make_pruner("vtw", layer=0)
    random = make_pruner("fastv", layer=0, budget=LONG_SHARE)
    arms: dict[str, tuple[Any, float]] = {DENSE: (None, 0.0)}
    for start in starts:
        for method, pruner in (("DivPrune", divprune), ("random", random), (NOTHING, gone)):
            arms[late(method, start)] = pruner, start
    arms |= {withdrawn(layer): (make_pruner("vtw", layer=layer), 0.0) for layer in WITHDRAWN}
    found: Right = {}
    flops: dict[str, np.ndarray] = {}
    for arm, (pruner, start) in arms.items():
        parts, costs = [], []
        for asked in tasks:
            steps, seeds = asked[0].canvas // 2, [one.scene.seed for one in asked]
            options = {"steps": steps, "pruner": pruner, "start": round(start * steps), "layers": "none", "seed": seeds}
            traces = denoise_all(twin, asked, **options)
            parts.append(right(asked, traces))
            costs += [costs_of(trace).flops.sum() for trace in traces]
        found[arm], flops[arm] = np.concatenate(parts), np.array(costs)
    return found, flops


def _other_answers(other: VLM, tasks: Sequence[Sequence[Asked]], starts: Sequence[float]) -> Right:
    """The model of which the twin was made: the image goes once the same share of the words is written (MVW)."""
    parts: dict[str, list[np.ndarray]] = {}
    for asked in tasks:
        length = len(straight_answer(asked[0].scene, asked[0].question))
        arms: dict[str, Any] = {DENSE: None}
        for start in starts:
            written = round(start * length)
            arms[late(NOTHING, start)] = make_pruner("mvw", tokens=written) if written else make_pruner("vtw", layer=0)
        traces = decode(
            other, [one.scene.render() for one in asked], [one.question.text for one in asked], layers="none",
            pruner=list(arms.values()), sample=None, max_new_tokens=2 * length, progress=False,
        )  # fmt: skip
        for arm, of_arm in zip(arms, traces, strict=True):
            parts.setdefault(arm, []).append(right(asked, of_arm))
    return {arm: np.concatenate(one) for arm, one in parts.items()}


def _shares(trace: Trace) -> np.ndarray:
    """Image, prompt and answer in the rows of a denoised trace, mean over steps: float64 [layer, kind]."""
    image, answer = (trace.data[name].mean("step").values.astype(float) for name in ("mass", "canvas_mass"))
    return np.stack([image, 1 - image - answer, answer], axis=-1)


def _other_shares(other: VLM, asked: Sequence[Asked]) -> np.ndarray:
    """The same of the rows that predict the words of the answer in the other model: float64 [sample, layer, kind]."""
    batch = pack([(one.scene, [(one.question, straight_answer(one.scene, one.question))]) for one in asked])
    rows = batch.target != -100
    image = batch.ids == LANGUAGE.ids["<|image_pad|>"]
    answer = torch.zeros_like(rows)
    answer[:, 1:] = rows[:, :-1]  # behind the row that predicts a word the word itself stands
    found: list[torch.Tensor] = []

    def attend(call: Call) -> Any:
        key = call.key.repeat_interleave(call.query.shape[1] // call.key.shape[1], dim=1)
        logits = torch.matmul(call.query, key.transpose(2, 3)) * call.scaling
        weights = torch.softmax(logits.masked_fill(~call.mask, -torch.inf), dim=-1).mean(dim=1)  # [row, query, key]
        kinds = torch.stack([image, ~image & ~answer, answer], dim=2).float()
        each = torch.matmul(weights, kinds) * rows[..., None]
        found.append(each.sum(dim=1) / rows.sum(dim=1, keepdim=True))
        return call.run()

    with torch.no_grad(), intercept(other.model, attend):
        hidden_states(other.model, batch)
    return torch.stack(found, dim=1).double().numpy()


@dataclass
class _Recorded:
    """Long answers of one task, one word a step.

    own : float64 [step, sample, place], share of the canvas in the row by which a place is predicted, mean over layers.
    logprobs : float32 [step, sample, place], of the word that the place is given in the end.
    """

    asked: Sequence[Asked]
    traces: list[Trace]
    own: np.ndarray
    logprobs: np.ndarray

    @classmethod
    def of(cls, twin: VLM, asked: Sequence[Asked]) -> _Recorded:
        own, logprobs, words = [], [], torch.zeros(0)

        def watch(step: DenoisingStep) -> None:
            nonlocal words
            places = step.before.shape[1]
            own.append(torch.stack([one[..., -places:].sum(-1).mean(1) for one in step.weights.values()]).mean(0))
            logprobs.append(step.logprobs)
            words = torch.where(step.chosen, step.logprobs.argmax(-1), step.before)

        traces = denoise_all(twin, asked, batch_size=len(asked), watch=watch)
        final = torch.stack(logprobs).gather(3, words.expand(len(logprobs), -1, -1)[..., None])[..., 0]
        return cls(asked, traces, torch.stack(own).double().numpy(), final.numpy())

    def unmasked_at(self, row: int) -> np.ndarray:
        """The step of each place: int [place]."""
        places = self.traces[row].meta["denoising"]["places"]
        return np.argsort([place for step in places for place in step])

    def lagged(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Correlation of the rise of the canvas's share with the rise of the word's log probability, some steps later.

        Over all places that are still masked, float64 [sample, lag]; and at lag 1 with steps shuffled, [sample].
        """
        found, shuffled = [], []
        for row in range(len(self.asked)):
            series = []
            for place, last in enumerate(self.unmasked_at(row)):
                if last >= 3:
                    series.append(np.diff([self.own[: last + 1, row, place], self.logprobs[: last + 1, row, place]]))
            found.append([_correlated(series, lag) for lag in LAGS])
            mixed = [
                _correlated([np.stack([rng.permutation(one[0]), one[1]]) for one in series], 1) for _ in range(SHUFFLES)
            ]
            shuffled.append(np.mean(mixed))
        return np.array(found), np.array(shuffled)

    def order(self) -> dict[str, np.ndarray]:
        """Mean share of the steps that are over when words of a kind are unmasked: float64 [sample], NaN without."""
        found: dict[str, list[float]] = {kind: [] for kind in (*LANGUAGE.kinds, "end")}
        for row, (one, trace) in enumerate(zip(self.asked, self.traces, strict=True)):
            kinds = [truth.kind for truth in annotate(one.scene, trace.text.split())]
            at = self.unmasked_at(row) / len(trace)
            kinds += ["end"] * (len(at) - len(kinds))
            for kind, values in found.items():
                mine = at[[k == kind for k in kinds]]
                values.append(float(mine.mean()) if len(mine) else np.nan)
        return {kind: np.array(values) for kind, values in found.items() if np.isfinite(values).any()}

    def looked(self) -> tuple[np.ndarray, np.ndarray]:
        """What the object that a row or column is about gets of the image's attention, and its area: [sample] each."""
        shares, areas = [], []
        for row, (one, trace) in enumerate(zip(self.asked, self.traces, strict=True)):
            where, at, mine = object_patches(one.scene, trace.grid), self.unmasked_at(row), []
            rows = trace.attention.values.astype(float).mean(axis=1)
            for place, truth in enumerate(annotate(one.scene, trace.text.split())):
                if truth.object is not None and truth.kind in ("row", "column"):
                    step = rows[at[place]]
                    mine.append(step[where[truth.object]].sum() / max(step.sum(), 1e-9))
            shares.append(np.mean(mine) if mine else np.nan)
            areas.append(where.mean())
        return np.array(shares), np.array(areas)


def _correlated(series: Sequence[np.ndarray], lag: int) -> float:
    """Pearson's r of the first with the second ``lag`` steps later; series float64 [2, step], pooled; or NaN."""
    pairs = [
        (one[0, max(0, -lag) : one.shape[1] - max(0, lag)], one[1, max(0, lag) : one.shape[1] - max(0, -lag)])
        for one in series
    ]
    if not pairs or sum(len(a) for a, _ in pairs) < 3:
        return float("nan")
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else float("nan")


def mean_of(values: np.ndarray) -> Estimate:
    """Mean over the samples that have a value, float64 [sample]."""
    known = values[np.isfinite(values)]
    return cluster_bootstrap(known, np.arange(len(known))) if len(known) else Estimate.missing("no sample has one")
