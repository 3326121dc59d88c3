"""Where in depth a model reads the image: the curves of VisiPruner, VTW and ShortV, at two queries of every sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from visionpulse_analysis._util.progress import over
from visionpulse_analysis.decoding import decode
from visionpulse_analysis.decoding.interventions.kinds import HidePatches, Intervention, SkipImage, UnderSelection
from visionpulse_analysis.decoding.interventions.passes import TeacherForced, log_softmax
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.attention import kl_divergence
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Estimate, cluster_bootstrap
from visionpulse_analysis.models.families import Prompt
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Selection
from visionpulse_analysis.pruners.shortv import ShortV
from visionpulse_analysis.pruners.top_k import float64
from visionpulse_analysis.pruners.view import Layout, View


class LayerWatch(Selection):
    """Looks on at every layer and changes nothing.

    Attributes
    ----------
    states : list, per layer, of tensors [row, query, width]
        Hidden states of the queries that enter the layer.
    weights : list, per layer, of float64 [row, query, patch]
        Attention of the queries to the patches, mean over heads; 0 where there is no patch.
    norms : list, per layer, of float64 [row, patch]
        L1 norm of the patches' values, all key heads together.
    cosines : list, per layer, of float64 [row, query]
        The least ``cos(o - c, o)`` over the patches; see `least_cosine`.
    """

    def __init__(self, layout: Layout, queries: torch.Tensor):
        super().__init__(layout)
        self.queries = queries
        self.states: list[torch.Tensor] = []
        self.weights: list[np.ndarray] = []
        self.norms: list[np.ndarray] = []
        self.cosines: list[np.ndarray] = []

    def observe_prefill(self, view: View) -> None:
        states, queries, layout = view.states(), self.queries, self.layout
        self.states.append(states.gather(1, queries[..., None].expand(-1, -1, states.shape[-1])))
        weights = torch.softmax(view.query_logits(queries), dim=-1)
        weights, value = float64(weights), float64(view.value.to(weights.device))
        layout = layout.on(weights.device)
        self.cosines.append(least_cosine(weights, value, layout).cpu().numpy())
        index = layout.places[:, None].expand(-1, queries.shape[1], -1)
        at_patches = weights.mean(dim=1).gather(2, index) * layout.patches[:, None]
        self.weights.append(at_patches.cpu().numpy())
        norms = value.abs().sum(dim=(1, 3)).gather(1, layout.places)
        self.norms.append((norms * layout.patches).cpu().numpy())


def least_cosine(weights: torch.Tensor, value: torch.Tensor, layout: Layout) -> torch.Tensor:
    """How far the most influential patch turns the attention output: the least ``cos(o - c, o)``, [row, query].

    ``o`` is a query's attention output before the output projection, heads side by side, and ``c`` one patch's part
    of it, weight times value, without renormalisation (VisiPruner, arXiv 2510.17205, section 4).

    Parameters
    ----------
    weights : float64 [row, head, query, key]
    value : float64 [row, kv_head, key, dim]
    """
    value = value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)
    output = weights @ value  # [row, head, query, dim]
    # |o - c|^2 and o . (o - c) from o . c and |c|^2: the parts themselves, of every patch, would fill the memory.
    along = (weights * (output @ value.transpose(2, 3))).sum(dim=1)
    size = (weights**2 * value.square().sum(dim=-1)[:, :, None]).sum(dim=1)
    whole = output.square().sum(dim=(1, 3))[..., None]
    rest = (whole - 2 * along + size).clamp(min=0).sqrt() * whole.sqrt()
    cosine = (whole - along) / rest.clamp(min=torch.finfo(rest.dtype).tiny)
    index = layout.places[:, None].expand(-1, cosine.shape[1], -1)
    return cosine.gather(2, index).masked_fill(~layout.patches[:, None], torch.inf).amin(dim=2).clamp(max=1)


def sink_value_ratio(weights: np.ndarray, norms: np.ndarray, fraction: float) -> float:
    """Mean value norm of the patches with the most attention, over that of all patches; NaN where all norms are 0.

    Parameters
    ----------
    weights, norms : float [patch]
    fraction : share of the patches that counts as most attended, in (0, 1]; at least one patch
    """
    count = max(1, round(fraction * len(weights)))
    sinks = np.argsort(-weights, kind="stable")[:count]
    return float(norms[sinks].mean() / norms.mean()) if norms.mean() > 0 else float("nan")


@torch.inference_mode()
def logit_lens(vlm: VLM, states: torch.Tensor) -> np.ndarray:
    """Read hidden states as if they were the last: log probabilities float64 [..., word].

    The model's final norm and output embedding (logit lens).

    Raises ValueError for a model whose language part has no final ``norm``.
    """
    norm: Any = getattr(vlm.model.get_decoder(), "norm", None)
    if norm is None:
        raise ValueError(f"{type(vlm.model).__name__} does not show its final norm, which the logit lens needs")
    return log_softmax(vlm.model.get_output_embeddings()(norm(states)))


PLACES = ("end of the prompt", "most visual step")


@dataclass(frozen=True)
class Asked:
    """A sample with the two queries that are examined."""

    sample: Sample
    # The step of the model's own greedy answer that depends on the image most; 0 is the token after the prompt
    step: int
    effect: float  # KL(blind || dense) in nats of its next token, the image hidden in every layer
    passage: Prompt  # the prompt with the answer up to that step
    queries: np.ndarray  # int64 [place], positions in the passage
    answer: list[str]


@dataclass(frozen=True)
class ThreeStages:
    """Values of every sample at the end of its prompt and at its most visual step.

    Divergences are KL(changed || dense) of the next token, in nats, by the layer at which the change begins.
    """

    n_layers: int
    width: int
    n_shallow: int
    asked: list[Asked]
    effect: np.ndarray  # float64 [place, sample]: divergence with the image hidden in every layer
    # float64 [place, layer + 1, sample]: Divergence of what the logit lens reads in the states that enter a layer; the
    # last entry is the output, 0
    lens: np.ndarray
    lens_right: np.ndarray  # bool, the same shape: Whether its most probable word is the dense one
    # mass, sink_ratio, cosine: float64 [place, layer, sample]: attention on the image; value norm of the most attended
    # patches over that of all; the least cosine
    mass: np.ndarray
    sink_ratio: np.ndarray
    cosine: np.ndarray
    window: np.ndarray  # float64 [place, first layer, sample]: divergence when ``width`` layers skip the image
    # float64 [place, sample]: The same for the layers below ``n_shallow``, VisiPruner's shallow stage
    shallow: np.ndarray
    withdrawn: np.ndarray  # float64 [place, layer, sample]: divergence when the image is gone from a layer on (VTW)
    # frozen, frozen_reverse: float64 [place, layer, sample]: Layer Contribution (ShortV): divergence when one layer
    # leaves the patches as they were, and KL(dense || frozen)
    frozen: np.ndarray
    frozen_reverse: np.ndarray

    def curve(self, name: str, place: int) -> list[Estimate]:
        """One interval per layer of a result, which resamples samples; samples where it is undefined are left out."""
        least = -1.0 if name == "cosine" else 0.0
        return [over_samples(values, least=least) for values in getattr(self, name)[place].astype(np.float64)]

    def numbers(self) -> dict[str, Any]:
        """Headline numbers, JSON-ready."""
        curves = ("lens_right", "sink_ratio", "cosine", "window", "withdrawn", "frozen", "frozen_reverse", "mass")
        return as_json(
            {
                "n_layers": self.n_layers,
                "n_samples": len(self.asked),
                "width": self.width,
                "n_shallow": self.n_shallow,
                "mean_step": float(np.mean([one.step for one in self.asked])),
                **{
                    place: {
                        "effect": over_samples(self.effect[p], least=0.0),
                        "shallow": over_samples(self.shallow[p], least=0.0),
                        **{name: self.curve(name, p) for name in curves},
                    }
                    for p, place in enumerate(PLACES)
                },
            }
        )


def over_samples(values: np.ndarray, confidence: float = 0.95, least: float = -np.inf) -> Estimate:
    """Mean over the samples [sample] where it is defined, with its interval, which ends at the least possible value.

    Raises ValueError where it is defined for none.
    """
    defined = values[np.isfinite(values)]
    draws = round(50 / (1 - confidence))  # as many beyond each bound, however wide
    options = {"n_resamples": draws, "confidence": confidence, "method": "studentized"}
    interval = cluster_bootstrap(defined, np.arange(len(defined)), **options)
    return replace(interval, low=float(np.fmax(interval.low, least))) if not interval.refused else interval


def ask(vlm: VLM, samples: Sequence[Sample], *, max_new_tokens: int = 48, batch_size: int = 16) -> list[Asked]:
    """Find the step of each sample's dense greedy answer that depends on the image most.

    Every step is asked at once: the answer is read again with the image hidden from the text in all layers.
    """
    images, questions = [one.image for one in samples], [one.question for one in samples]
    # With a layer recorded, models whose attention cannot be read exactly are refused here.
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "sample": None}
    traces = decode(vlm, images, questions, layers="anchor", **options)
    prompts = [vlm.prompt(image, question) for image, question in zip(images, questions, strict=True)]
    asked = []
    for start in range(0, len(samples), batch_size):
        part = slice(start, start + batch_size)
        answers = [torch.from_numpy(trace.token_ids.astype(np.int64)) for trace in traces[part]]
        steps = max(len(answer) for answer in answers)
        # Shorter answers ask their last step again, so that every row has as many queries.
        queries = [
            len(prompt.ids) - 1 + np.minimum(np.arange(steps), len(answer) - 1)
            for prompt, answer in zip(prompts[part], answers, strict=True)
        ]
        whole = [prompt.answered(answer[:-1]) for prompt, answer in zip(prompts[part], answers, strict=True)]
        passages = TeacherForced(vlm, whole, queries)
        effects = kl_divergence(passages.read(HidePatches()), passages.read())
        for sample, prompt, answer, trace, effect in zip(
            samples[part], prompts[part], answers, traces[part], effects, strict=True
        ):
            step = int(effect.argmax())
            end = len(prompt.ids) - 1
            passage = prompt.answered(answer[:step])
            asked.append(
                Asked(sample, step, float(effect[step]), passage, np.array([end, end + step]), trace.tokens[: step + 1])
            )
    return asked


def asked_hash(asked: Sequence[Asked]) -> str:
    """sha256 (hex) over the passages and their images, for the provenance of a figure."""
    digest = hashlib.sha256()
    for one in asked:
        for array in (one.passage.ids.numpy(), one.queries, *one.passage.images):
            digest.update(f"{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def three_stages(
    vlm: VLM, asked: Sequence[Asked], *, width: int = 2, fraction: float = 0.05, batch_size: int = 16
) -> ThreeStages:
    """Examine every layer at the two queries of each sample.

    Raises ValueError: there are no samples, or an option is out of range.

    Parameters
    ----------
    width : layers that skip the image together, in the sliding window
    fraction : share of the patches that counts as most attended, in (0, 1]
    """
    n = vlm.n_layers
    if not asked or not 1 <= width <= n or not 0 < fraction <= 1:
        raise ValueError(
            f"{len(asked)} samples, width {width}, fraction {fraction}: expected samples, a width of 1 to {n} layers "
            "and a fraction above 0 and up to 1"
        )
    starts = range(0, len(asked), batch_size)
    parts = over(
        lambda start: _examine(vlm, asked[start : start + batch_size], width, fraction), starts, "three stages", "batch"
    )
    joined = {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}
    return ThreeStages(n_layers=n, width=width, n_shallow=shallow_layers(n), asked=list(asked), **joined)


def shallow_layers(n_layers: int) -> int:
    """VisiPruner's shallow stage, 6 of 32 layers, for a model of another depth."""
    return round(6 / 32 * n_layers)


def _examine(vlm: VLM, asked: Sequence[Asked], width: int, fraction: float) -> dict[str, np.ndarray]:
    """The results of one batch by name, each with samples last."""
    passages = TeacherForced(vlm, [one.passage for one in asked], [one.queries for one in asked])
    watch = LayerWatch(passages.layout, passages.queries)
    dense = passages.read(UnderSelection(watch))

    def divergence(acts: Sequence[Intervention], measure: Callable[..., np.ndarray] = kl_divergence) -> np.ndarray:
        """[place, intervention, row]"""
        return np.array([measure(passages.read(one), dense).T for one in acts]).swapaxes(0, 1)

    def both_ways(changed: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """[row, place, direction]"""
        return np.stack([kl_divergence(changed, reference), kl_divergence(reference, changed)], axis=-1)

    layers = range(vlm.n_layers)
    lenses = [logit_lens(vlm, states) for states in watch.states] + [dense]
    contribution = divergence([passages.under(ShortV((layer,))) for layer in layers], both_ways)
    withdrawn = divergence([HidePatches(layers=range(layer, vlm.n_layers)) for layer in layers])
    windows = [SkipImage(layers=range(first, first + width)) for first in range(vlm.n_layers - width + 1)]
    return {
        "effect": withdrawn[:, 0],
        "lens": np.array([kl_divergence(one, dense).T for one in lenses]).swapaxes(0, 1),
        "lens_right": np.array([(one.argmax(-1) == dense.argmax(-1)).T for one in lenses]).swapaxes(0, 1),
        "mass": np.array([one.sum(-1).T for one in watch.weights]).swapaxes(0, 1),
        "sink_ratio": _sink_ratios(watch, fraction),
        "cosine": np.array([one.T for one in watch.cosines]).swapaxes(0, 1),
        "window": divergence(windows),
        "shallow": divergence([SkipImage(layers=range(shallow_layers(vlm.n_layers)))])[:, 0],
        "withdrawn": withdrawn,
        "frozen": contribution[0].swapaxes(0, 1),
        "frozen_reverse": contribution[1].swapaxes(0, 1),
    }


def _sink_ratios(watch: LayerWatch, fraction: float) -> np.ndarray:
    """[place, layer, row]"""
    counts = watch.layout.counts.tolist()
    rows, places = range(len(counts)), range(watch.queries.shape[1])
    layers = list(zip(watch.weights, watch.norms, strict=True))
    return np.array(
        [
            [
                [sink_value_ratio(w[row, place, : counts[row]], v[row, : counts[row]], fraction) for row in rows]
                for w, v in layers
            ]
            for place in places
        ]
    )


def lens_words(vlm: VLM, one: Asked, count: int = 3) -> pd.DataFrame:
    """The ``count`` most probable words, best first: a row for every layer and the output, a column for each query."""
    passages = TeacherForced(vlm, [one.passage], [one.queries])
    watch = LayerWatch(passages.layout, passages.queries)
    dense = passages.read(UnderSelection(watch))
    read = [*(logit_lens(vlm, states)[0] for states in watch.states), dense[0]]
    said = (one.answer[0], one.answer[-1])
    columns = {
        f"{place}, says {word.strip()!r}": [_best(vlm, layer[number], count) for layer in read]
        for number, (place, word) in enumerate(zip(PLACES, said, strict=True))
    }
    return pd.DataFrame(columns, index=[*(f"entering layer {layer}" for layer in range(vlm.n_layers)), "output"])


def _best(vlm: VLM, logprobs: np.ndarray, count: int) -> str:
    best = np.argsort(-logprobs, kind="stable")[:count]
    return ", ".join(vlm.tokenizer.decode([int(word)]).strip() for word in best)
