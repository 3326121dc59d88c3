"""Who looks at whom: attention between kinds of token by layer, from which the three stages are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.attention.routing import Call
from visionpulse_analysis.decoding import decode
from visionpulse_analysis.decoding.interventions.passes import TeacherForced
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Estimate, cluster_bootstrap
from visionpulse_analysis.models.families import Prompt
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.models.prompts import ANSWER
from visionpulse_analysis.testbed.scenes.questions import TASKS

KINDS = ("system", "image", "question", "answer")
COLOURS = dict(zip(KINDS, ("#999999", "#0072B2", "#009E73", "#D55E00"), strict=True))


def kinds_of(prompt: Prompt) -> np.ndarray:
    """What each token of an answered prompt is, an index into `KINDS`: int64 [token].

    Text before the first patch is of the system, and text behind it, with its template, of the question.
    """
    places = np.arange(len(prompt.ids))
    pictures = np.concatenate([prompt.grid.position, prompt.others])
    kinds = np.where(places < prompt.grid.position.min(initial=len(places)), 0, 2)
    kinds[pictures] = 1
    kinds[prompt.kinds.numpy() == ANSWER] = 3
    return kinds


class SharesByKind:
    """Takes up, layer by layer, the attention that queries of each kind give to keys of each: [kind, kind].

    kinds : int64 [token], of the one sequence that is read.
    """

    def __init__(self, kinds: np.ndarray):
        self.of_kind = torch.nn.functional.one_hot(torch.from_numpy(kinds), len(KINDS)).float()
        self.found: list[torch.Tensor] = []

    def __call__(self, call: Call) -> Any:
        call.check_plain()
        query, key = (
            call.query[0].float(),
            call.key[0].float().repeat_interleave(call.query.shape[1] // call.key.shape[1], dim=0),
        )
        logits, mask = (query @ key.transpose(1, 2)) * call.scaling, call.mask
        if mask is None:
            logits = logits.masked_fill(~torch.ones_like(logits[0], dtype=torch.bool).tril(), -torch.inf)
        elif mask.dtype == torch.bool:
            logits = logits.masked_fill(~mask[0], -torch.inf)
        else:
            logits = logits + mask[0]
        weights, of_kind = torch.softmax(logits, dim=-1).mean(dim=0), self.of_kind.to(logits.device)
        self.found.append((of_kind.T @ weights @ of_kind / of_kind.sum(dim=0).clamp(min=1)[:, None]).cpu())
        return call.run()


@dataclass(frozen=True, eq=False)
class Stages:
    """Attention between kinds of token."""

    shares: np.ndarray  # float [sample, layer, query kind, key kind]
    tasks: np.ndarray  # int [sample]

    def of(self, task: int, query: str, key: str) -> np.ndarray:
        """The share that one kind gives another: float [sample, layer]."""
        return self.shares[self.tasks == task][:, :, KINDS.index(query), KINDS.index(key)]

    def curve(self, task: int, query: str, key: str) -> list[Estimate]:
        """The share that one kind gives another, an Estimate for each layer."""
        own = self.of(task, query, key)
        return [cluster_bootstrap(one, np.arange(len(one))) for one in own.T]

    def numbers(self) -> dict[str, Any]:
        """JSON-ready: task -> "query to key" -> layers."""
        known = np.unique(self.tasks).tolist()
        pairs = [(query, key) for query in KINDS[1:] for key in KINDS]
        return {TASKS[task]: {f"{a} to {b}": as_json(self.curve(task, a, b)) for a, b in pairs} for task in known}


@torch.inference_mode()
def measure_stages(vlm: VLM, samples: Sequence[Sample], *, max_new_tokens: int = 96, batch_size: int = 18) -> Stages:
    """Decode the samples densely, and read each with its own answer once more; samples ask the tasks in turn."""
    images, questions = [one.image for one in samples], [one.question for one in samples]
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "layers": "none", "sample": None}
    found = []
    for sample, trace in zip(samples, decode(vlm, images, questions, **options), strict=True):
        prompt = vlm.prompt(sample.image, sample.question)
        whole = prompt.answered(torch.from_numpy(trace.token_ids.astype(np.int64)))
        seen = SharesByKind(kinds_of(whole))
        TeacherForced(vlm, [whole], [[len(whole.ids) - 1]]).read(run=seen)
        found.append(torch.stack(seen.found).numpy())
    return Stages(np.stack(found), np.arange(len(samples)) % len(TASKS))


def page(stages: Stages) -> Figure:
    """Draw the shares by layer: a row for each task, a column for each kind of query.

    Samples are few: each is drawn, rather than an interval that so few would not hold.
    """
    tasks = np.unique(stages.tasks).tolist()
    fig, axes = figures.new_figure(figures.DOUBLE, 1.5 * len(tasks) + 0.5, len(tasks), 3, sharex=True, sharey=True)
    for task, row in zip(tasks, np.reshape(axes, (len(tasks), 3)), strict=True):
        for query, ax in zip(KINDS[1:], row, strict=True):
            for key in KINDS[: KINDS.index(query) + 1]:
                own = stages.of(task, query, key)
                ax.plot(own.T, color=COLOURS[key], linewidth=0.4, alpha=0.5)
                ax.plot(own.mean(axis=0), color=COLOURS[key], linewidth=1.4, label=f"to {key}")
            ax.set(ylim=(-0.02, 1.04), xlabel="layer" if task == tasks[-1] else "")
            ax.set_title(f"{TASKS[task]}: from {query}", fontsize=8)
        row[0].set_ylabel("share of attention")
    figures.draw_legend(np.ravel(axes))
    figures.draw_letters(np.ravel(axes))
    fewest = min(int((stages.tasks == task).sum()) for task in tasks)
    figures.draw_caption(fig, f"n = {fewest} samples of each task: thin lines; thick: their mean.")
    return fig
