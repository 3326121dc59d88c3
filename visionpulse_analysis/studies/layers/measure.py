"""How layers look at the image: how alike they are, how much image mass each has, and where the image is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionpulse_analysis._util.checks import whole_number
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.studies.step_dependence.measure import mean_over_samples
from visionpulse_analysis.testbed.scenes.horizon import read_tokens
from visionpulse_analysis.testbed.scenes.tokens import vocabulary
from visionpulse_analysis.testbed.training.evaluation_set import build_items
from visionpulse_analysis.testbed.truth import SHOWN_KINDS, kinds_said
from visionpulse_analysis.traces import Trace

HORIZON_SEED = 20_000_000  # scenes of no other study, and none of training or evaluation


@dataclass(frozen=True)
class LayerMaps:
    """Results by layer; averages are over the steps of a sample first, then over samples."""

    # layers, recorded: layers that are compared, and those whose attention was recorded: all of them, or for imported
    # traces one
    layers: list[int]
    recorded: list[int]
    # float64 [layer, layer]: Cosine between the layers' head-mean visual vectors; NaN where a layer never has mass
    similarity: np.ndarray
    # adjacent, distant: its mean over neighbouring layers, and over pairs at least half the depth apart
    adjacent: Estimate
    distant: Estimate
    kinds: list[str]  # kinds of token that occur (scenes only, else empty)
    mass_by_kind: np.ndarray  # float64 [kind, recorded]: image mass of the steps that produce a token of that kind
    mass_by_step: np.ndarray  # float64 [step, recorded]: image mass by step, as far as half of the samples reach
    mass: list[Estimate]  # [recorded]

    def numbers(self) -> dict[str, Any]:
        """Headline numbers, JSON-ready."""
        told = ("layers", "recorded", "adjacent", "distant", "mass")
        return as_json({name: getattr(self, name) for name in told})


def layer_maps(traces: Sequence[Trace], samples: Sequence[Sample], *, n_resamples: int = 1000) -> LayerMaps:
    """Compare the layers of dense traces: those recorded, or those of which imported traces keep the similarity.

    Raises ValueError: if traces and samples do not match, the traces differ in layers, or have fewer than two.
    """
    recorded = traces[0].layers if len(traces) else []
    alike = [trace.layer_similarity() for trace in traces]
    compared = [one["layer"].values.tolist() for one in alike]
    layers = compared[0] if compared else []
    if (
        len(traces) != len(samples)
        or not layers
        or any(t.layers != recorded or other != layers for t, other in zip(traces, compared, strict=True))
    ):
        raise ValueError(
            f"{len(traces)} traces of layers {recorded} and {len(samples)} samples: expected one trace per sample, "
            "all with the same two or more layers (decode with layers='all')"
        )
    per_sample = np.stack([one.values for one in alike])
    masses = [_head_mean(trace.mass.values, trace) for trace in traces]  # float64 [step, layer], each
    gap = np.abs(np.subtract.outer(np.arange(len(layers)), np.arange(len(layers))))
    kinds, by_kind = _by_kind(samples, traces, masses)
    lengths = np.array([len(mass) for mass in masses])
    reached = [t for t in range(lengths.max()) if (lengths > t).sum() >= len(traces) / 2]
    return LayerMaps(
        layers=layers,
        recorded=recorded,
        similarity=_mean(per_sample),
        adjacent=mean_over_samples([one[gap == 1] for one in per_sample], n_resamples),
        distant=mean_over_samples([one[gap >= max(1, len(layers) // 2)] for one in per_sample], n_resamples),
        kinds=kinds,
        mass_by_kind=by_kind,
        mass_by_step=np.array([_mean([mass[t] for mass in masses if len(mass) > t]) for t in reached]),
        mass=[mean_over_samples([mass[:, i] for mass in masses], n_resamples) for i in range(len(recorded))],
    )


def horizon(vlm: VLM, n: int = 24, *, cells: int = 8, n_resamples: int = 1000) -> dict[str, list[Estimate]] | None:
    """Accuracy of visual tokens when the image is cut off from a layer on, on ``n`` new scenes, which are resampled.

    See :func:`~visionpulse_analysis.testbed.scenes.horizon.read_tokens`; None for a model that does not speak the
    vocabulary of the scenes, because its own words have no known truth. Raises ValueError unless ``n`` is at least 1.
    """
    whole_number(n, "n", least=1)
    words = vlm.tokenizer.get_vocab()
    if any(words.get(word) != index for index, word in enumerate(vocabulary())):
        return None
    read = read_tokens(vlm, build_items({cells: n}, HORIZON_SEED))
    cuts = range(vlm.n_layers + 1)
    return {
        kind: [mean_over_samples([one[cut] for one in scenes], n_resamples, "scene") for cut in cuts]
        for kind, scenes in read.items()
    }


def _head_mean(values: np.ndarray, trace: Trace) -> np.ndarray:
    """Attention or mass [step, layer, ...] as float64, averaged over heads where they were recorded."""
    values = values.astype(np.float64)
    return values if trace.heads is None else values.mean(axis=2)


def _by_kind(
    samples: Sequence[Sample], traces: Sequence[Trace], masses: list[np.ndarray]
) -> tuple[list[str], np.ndarray]:
    """Kinds that occur and their mean mass [kind, layer]; none without scenes."""
    rows: dict[str, list[np.ndarray]] = {}
    for sample, trace, mass in zip(samples, traces, masses, strict=True):
        if sample.scene is None:
            continue
        kinds = np.array(kinds_said(sample.scene, sample.truth, trace.tokens))
        for kind in np.unique(kinds):
            rows.setdefault(str(kind), []).append(mass[kinds == kind].mean(axis=0))
    found = [kind for kind in SHOWN_KINDS if kind in rows]
    return found, np.array([np.mean(rows[kind], axis=0) for kind in found])


def _mean(values: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is defined; NaN where nothing is."""
    stacked = np.asarray(values, dtype=np.float64)
    defined = np.isfinite(stacked)
    count = defined.sum(axis=0)
    total = np.where(defined, stacked, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
