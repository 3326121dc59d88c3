"""Would one set of patches do for a whole trace? Sets that change with the step beside sets that do not.

That prefill's set misses what later steps look at does not show that evidence depends on the step: prefill may be the
wrong moment. The deciding control is one fixed set chosen in hindsight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from visionpulse_analysis._util.progress import over
from visionpulse_analysis.decoding.interventions.single_steps import SingleSteps, keep_exactly
from visionpulse_analysis.experiments.conditions import Outcome, decode_arms
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.metrics.attention import coverage, top_set
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Claim, Estimate, judge, paired_difference, permutation_test
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.top_k import resolve_anchor
from visionpulse_analysis.pruners.view import View
from visionpulse_analysis.studies.step_dependence.measure import mean_over_samples, rows_of, share_over_samples
from visionpulse_analysis.testbed.truth import Asked, Picture, parts_said
from visionpulse_analysis.traces import Trace


@dataclass(frozen=True)
class NamedObjects(Pruner):
    """Keep given patches, the same ones at every decode step, from the anchor layer on.

    It knows a row by its seed, which :func:`decode_arms` gives to one sample alone; as it belongs to certain samples,
    it is not among `list_pruners`.
    """

    # for every row, its seed and then the numbers of its patches
    sets: tuple[tuple[int, ...], ...] = ()
    anchor_layer: int | None = None  # zero-based; the model's default anchor if left out

    def begin(self, run: Selection) -> None:
        """Raise ValueError where a row of the batch has a seed that no set is given for."""
        layout, run.anchor = run.layout, resolve_anchor(self.anchor_layer, run.layout)
        given = {seed: patches for seed, *patches in self.sets}
        unknown = [seed for seed in layout.seeds if seed not in given]
        if unknown:
            raise ValueError(f"no set is given for the rows with seeds {unknown[:5]}; give one per seed and sample")
        kept = torch.zeros(layout.patches.shape, dtype=torch.bool)
        for row, seed in enumerate(layout.seeds):
            kept[row, given[seed]] = True
        run.kept = kept.to(layout.device) & layout.patches

    def visible(self, view: View, run: Selection) -> torch.Tensor | None:
        return run.kept if view.layer >= run.anchor else None


def named_patches(scene: Picture, tokens: Sequence[str], grid: PatchGrid, question: Asked | None = None) -> np.ndarray:
    """Patches of everything in a picture that a trace names: bool [patch]. Of a chart its question must be given."""
    return np.any(parts_said(scene, question, tokens, grid), axis=0)


def named_arm(
    vlm: VLM,
    samples: Sequence[Sample],
    dense: Sequence[Sequence[Outcome]],
    seeds: Sequence[int] = (0,),
    anchor: int | None = None,
) -> dict[str, Pruner]:
    """The arm "named objects" of :func:`decode_arms`; none where a sample has no scene.

    Parameters
    ----------
    dense : [seed][sample], outcomes of the dense arm with these `seeds` and the same sampling
    """
    known = [(one.scene, one.truth) for one in samples if one.scene is not None]
    if len(known) < len(samples):
        return {}
    grids = [vlm.prompt(one.image, one.question).grid for one in samples]
    sets = []
    for seed, run in zip(seeds, dense, strict=True):
        for number, ((scene, question), grid, outcome) in enumerate(zip(known, grids, run, strict=True)):
            patches = np.flatnonzero(named_patches(scene, outcome.tokens, grid, question)).tolist()
            sets.append((seed * 1_000_003 + number, *patches))
    return {NAMED: NamedObjects(tuple(sets), anchor)}


def greedy_named_arm(
    vlm: VLM, samples: Sequence[Sample], anchor: int | None = None, *, max_new_tokens: int, batch_size: int
) -> dict[str, Pruner]:
    """:func:`named_arm` by the greedy dense answers, decoded or read from the cache."""
    dense = decode_arms(vlm, samples, {"dense": None}, max_new_tokens=max_new_tokens, batch_size=batch_size)["dense"]
    return named_arm(vlm, samples, dense, anchor=anchor)


OWN, BEFORE, PREFILL, HINDSIGHT = "the step's own", "the step before's", "prefill's", "hindsight"
NAMED, ONCE, AFRESH = "named objects", "static random", "random each step"
FIXED = (PREFILL, HINDSIGHT, NAMED)  # that anyone would choose; each is tested against the step's own
MEASURES = ("unharmed", "same_word", "named")


@dataclass(frozen=True)
class KeptSet:
    """What a way of choosing patches leaves to the steps after prefill; intervals resample samples."""

    share: float  # mean share of the patches kept
    mass: Estimate  # share of a step's image mass on the set
    # of the steps that need the image, the share that says what it says with only this set visible, in that step alone.
    # None where no step needs it, or nothing was replayed.
    unharmed: Estimate | None
    same_word: Estimate | None  # of the same steps, the share at which the most probable next token stays the same
    whole: Estimate | None  # share of the traces of which every step that needs the image is unharmed
    # of the steps that name an object, the share at which no patch of it is hidden; None without truth
    named: Estimate | None


@dataclass(frozen=True)
class FixedSets:
    """Results over samples, after prefill."""

    layer: int
    fraction: float
    level: float
    n_samples: int
    n_steps: int
    n_needing: int  # steps that need the image: seeing nothing moves them by more than ``level`` nats
    sets: dict[str, KeptSet]  # the step's own first
    # For each of `MEASURES` that is known and each of `FIXED`: its change against the step's own set, all of them
    # tested together (Holm)
    worse: dict[str, dict[str, Claim]]

    def numbers(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return as_json(self)


def fixed_sets(
    traces: Sequence[Trace],
    samples: Sequence[Sample],
    layer: int,
    vlm: VLM | None = None,
    *,
    fraction: float = 0.05,
    level: float = 0.05,
    seed: int = 0,
    n_resamples: int = 1000,
) -> FixedSets:
    """Hide at every step all but a set, that step alone, and see what it still says: sets by step and fixed ones.

    Parameters
    ----------
    traces : dense, of two steps or more, one per sample
    samples : aligned; those of scenes tell which patches show what a trace names
    layer : model index of a recorded layer; sets are the top of its attention, and patches are hidden from there on
    vlm : VLM, optional
        The model that wrote the traces. Without one, or where its layers see a sliding window, only masses and named
        objects are compared.
    fraction : share of the patches in a set, in (0, 1]; of named objects all patches, as many as there are
    level : KL in nats that counts as unchanged, above 0
    seed : of the random sets
    """
    if not len(traces) or len(traces) != len(samples):
        raise ValueError(
            f"{len(traces)} traces and {len(samples)} samples: expected one trace per sample, and one at least"
        )
    if not level > 0:
        raise ValueError(f"level is a KL divergence in nats above 0, got {level}")
    replayed = vlm if vlm is not None and not vlm.windowed_layers else None
    found = over(
        lambda number: _of_trace(traces[number], samples[number], layer, replayed, fraction, level, [seed, number]),
        range(len(traces)), "fixed sets", "trace",
    )  # fmt: skip
    names = [
        name for name in (OWN, BEFORE, PREFILL, HINDSIGHT, NAMED, AFRESH, ONCE) if any(name in one for one in found)
    ]

    def of(column: str, name: str) -> list[np.ndarray]:
        return [one[name][column] for one in found if name in one]

    def share(column: str, name: str) -> Estimate | None:
        columns = of(column, name)
        return share_over_samples(columns) if any(np.isfinite(one).any() for one in columns) else None

    kept = {
        name: KeptSet(
            share=float(np.concatenate(of("share", name)).mean()),
            mass=mean_over_samples(of("mass", name), n_resamples),
            unharmed=share("unharmed", name),
            same_word=share("same_word", name),
            whole=share("whole", name),
            named=share("named", name),
        )
        for name in names
    }
    needing = [np.isfinite(one[OWN]["unharmed"]) for one in found]
    return FixedSets(
        layer, fraction, level, len(found), sum(map(len, needing)), int(sum(map(np.sum, needing))), kept,
        _compared(found, [name for name in FIXED if name in names]),
    )  # fmt: skip


def candidate_sets(
    trace: Trace, sample: Sample, layer: int, fraction: float, seed: Sequence[int]
) -> dict[str, np.ndarray]:
    """The sets of every step after prefill: name -> bool [step, patch]. That of the named objects needs a scene."""
    rows = rows_of(trace, layer)
    tops = top_set(rows, fraction=fraction)
    size, shape = int(tops[0].sum()), tops[1:].shape
    rng = np.random.default_rng(list(seed))

    def drawn() -> np.ndarray:
        return rng.permutation(shape[1]) < size

    sets = {
        OWN: tops[1:],
        BEFORE: tops[:-1],
        PREFILL: np.broadcast_to(tops[0], shape),
        HINDSIGHT: np.broadcast_to(top_set(rows[1:].mean(axis=0)[None], fraction=fraction)[0], shape),
        ONCE: np.broadcast_to(drawn(), shape),
        AFRESH: np.array([drawn() for _ in range(shape[0])]),
    }
    if sample.scene is not None:
        sets[NAMED] = np.broadcast_to(named_patches(sample.scene, trace.tokens, trace.grid, sample.truth), shape)
    return sets


def _of_trace(
    trace: Trace, sample: Sample, layer: int, vlm: VLM | None, fraction: float, level: float, seed: Sequence[int]
) -> dict[str, dict[str, np.ndarray]]:
    """By set, values per step after prefill: share kept, mass on it, named object whole, unharmed; NaN where none."""
    sets = candidate_sets(trace, sample, layer, fraction, seed)
    steps, shown = len(trace) - 1, _shown(trace, sample)
    unharmed = same_word = dict.fromkeys(sets, np.full(steps, np.nan))
    if vlm is not None:
        replay = SingleSteps.of(vlm, trace)
        given = [np.zeros((steps, len(trace.grid)), dtype=bool), *sets.values()]
        # All sets in one go: the rows of a forward cost little, the forward much.
        effect = replay.run(np.tile(replay.steps, len(given)), layer, keep_exactly(np.concatenate(given)))
        blind, *kl = effect.kl.reshape(len(given), steps)
        _, *changed = effect.changed.reshape(len(given), steps)
        unharmed, same_word = (
            {name: np.where(blind > level, one, np.nan) for name, one in zip(sets, good, strict=True)}
            for good in ([one <= level for one in kl], [~one for one in changed])
        )
    rows = rows_of(trace, layer)[1:]
    return {
        name: {
            "share": kept.mean(axis=1),
            "mass": coverage(rows, kept),
            "named": np.where(shown.any(axis=1), ~(shown & ~kept).any(axis=1), np.nan),
            "unharmed": unharmed[name],
            "same_word": same_word[name],
            "whole": _every(unharmed[name]),
        }
        for name, kept in sets.items()
    }


def _shown(trace: Trace, sample: Sample) -> np.ndarray:
    """Patches of the object that each step after prefill names: bool [step, patch], none where it names none."""
    if sample.scene is None:
        return np.zeros((len(trace) - 1, len(trace.grid)), dtype=bool)
    return parts_said(sample.scene, sample.truth, trace.tokens, trace.grid)[1:]


def _every(unharmed: np.ndarray) -> np.ndarray:
    """Whether all steps that need the image are unharmed, [1]; NaN where none needs it."""
    known = unharmed[np.isfinite(unharmed)]
    return np.array([known.all() if len(known) else np.nan], dtype=float)


def _compared(
    found: Sequence[Mapping[str, Mapping[str, np.ndarray]]], names: Sequence[str]
) -> dict[str, dict[str, Claim]]:
    """Each fixed set against the step's own, in every measure that is known."""
    tests = {}
    for measure in MEASURES:
        for name in names:
            pairs = [(one[OWN][measure], one[name][measure]) for one in found if name in one]
            own, other = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
            owner = np.repeat(np.arange(len(pairs)), [len(pair[0]) for pair in pairs])
            known = np.isfinite(own) & np.isfinite(other)
            if known.any():
                given = own[known], other[known], owner[known]
                tests[measure, name] = (paired_difference(*given), permutation_test(*given).p)
    judged = judge(tests, family="fixed sets against the step's own, in all measures")
    measures = [measure for measure in MEASURES if any(measure == one for one, _ in judged)]
    return {
        measure: {name: verdict for (one, name), verdict in judged.items() if one == measure} for measure in measures
    }
