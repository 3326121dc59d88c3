"""A control from the truth: one set for the whole trace, the patches of every object that the dense trace names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from visionpulse_analysis.experiments.conditions import Outcome, decode_arms
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.top_k import resolve_anchor
from visionpulse_analysis.pruners.view import View
from visionpulse_analysis.testbed.truth import Asked, Picture, parts_said

NAMED = "named objects"


@dataclass(frozen=True)
class NamedObjects(Pruner):
    """Keep given patches, the same ones at every decode step, from the anchor layer on.

    It knows a row by its seed, which :func:`decode_arms` gives to one sample alone; as it belongs to certain samples,
    it is not among `list_pruners`.

    Parameters
    ----------
    sets : tuple of tuples of int
        For every row, its seed and then the numbers of its patches.
    anchor_layer : int, optional
        Zero-based; the model's default anchor if left out.
    """

    sets: tuple[tuple[int, ...], ...] = ()
    anchor_layer: int | None = None

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
