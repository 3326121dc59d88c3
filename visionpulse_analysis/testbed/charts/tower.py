"""What the vision tower is taught: for every patch, what can be seen in it.

First alone, and with a small weight as long as the language model learns, for what is not asked for is unlearnt.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from visionpulse_analysis.testbed.charts.chart import COLOURS, Chart
from visionpulse_analysis.testbed.charts.glyphs import GLYPHS, HEIGHT, WIDTH
from visionpulse_analysis.testbed.charts.regions import Thing, patches_of_thing
from visionpulse_analysis.testbed.training.packing import PATCH

PLACES = 16  # rows and columns are told as so many parts of the picture's side
# What is told of a patch -> how many classes, of which the first is "nothing" but for row and column.
LABELS = {
    "glyph": 1 + len(GLYPHS),
    "colour": 1 + len(COLOURS),
    "faint": 3,
    "top": 1 + PATCH // 2,
    "row": PLACES,
    "column": PLACES,
}
EMPTY = ("glyph", "colour", "faint", "top")
LETTER_WEIGHT = 3.0  # letters are rarer than digits and are learnt later


def patch_labels(chart: Chart) -> np.ndarray:
    """What each patch shows, in the order of ``LABELS``: int64 [patch, 6].

    glyph : the letter or digit; colour : of a mark, line or legend entry; faint : 1 where that is clear, 2 where it is
    faint; top : 1 + in which of four pairs of pixel rows a mark's upper end or a point's middle lies; row, column : in
    sixteenths of the picture.
    """
    side = chart.side
    labels = np.zeros((side, side, len(LABELS)), np.int64)
    labels[..., 4], labels[..., 5] = np.mgrid[0:side, 0:side] * PLACES // side
    for series, colour in enumerate(chart.colours):
        whole = [Thing("line", series=series)] if chart.kind == "line" else []
        index = 1 + list(COLOURS).index(colour)
        for thing in [*whole, *(Thing("mark", mark, series) for mark in range(chart.n_marks))]:
            shown = patches_of_thing(chart, thing)
            labels[shown, 1], labels[shown, 2] = index, 1 + chart.is_faint(series, thing.index)
        for mark, (_, y) in enumerate(chart.points[series]):
            shown = patches_of_thing(chart, Thing("top", mark, series))
            row, part = divmod(y + 1, PATCH)  # ends lie upon every second pixel, give or take less than half of one
            shown[np.arange(side) != int(row)] = False
            labels[shown, 3] = 1 + int(part) // 2
        if chart.names[series]:
            left, top, right, _ = chart.swatch(series)
            labels[int(top // PATCH), int((left + right) / 2 // PATCH), 1:3] = index, 1
    writings = [chart.tick_writing(tick) for tick in range(chart.intervals + 1)]
    writings += [chart.label_writing(place) for place in range(len(chart.labels))]
    writings += [chart.legend_writing(series) for series in range(len(chart.names))]
    for glyph, left, top in (glyph for writing in writings for glyph in writing):
        row, column = int((top + HEIGHT / 2) // PATCH), int((left + WIDTH / 2) // PATCH)
        labels[row, column, 0] = 1 + list(GLYPHS).index(glyph)
    return labels.reshape(-1, len(LABELS))


def outputs_of(seen) -> list[torch.Tensor]:
    """The outputs of a vision tower, its last one first."""
    return [seen.pooler_output, *seen.deepstack_features]


class PatchHeads(nn.Module):
    """Linear read-outs of ``LABELS`` from each of the tower's outputs; they are no part of the model."""

    def __init__(self, outputs: int, width: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(outputs, width, sum(LABELS.values()), generator=generator) * 0.02)

    def loss(self, seen: list[torch.Tensor], labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
        """Cross-entropy of a tower's outputs [patch, width], its last one first, against labels [patch, 6].

        Returns the loss summed over labels and outputs, each class of patch (empty or not) weighing half, and (right,
        total) of each label over the patches that are not empty, read from the last output: of letters as "letter".
        """
        logits = torch.einsum("fpw,fwc->fpc", torch.stack(seen), self.weight).split(list(LABELS.values()), dim=-1)
        drawn = (labels[:, :4] > 0).any(dim=-1)
        letter = labels[:, 0] > 10  # the digits come first
        losses, counts = [], {}
        for index, (name, outputs) in enumerate(zip(LABELS, logits, strict=True)):
            shown = labels[:, index] > 0 if name in EMPTY else drawn
            weight = torch.where(shown, 0.5 / shown.float().mean().clamp_min(1e-3), 0.5 / (~shown).float().mean())
            if name == "glyph":
                weight = torch.where(letter, LETTER_WEIGHT * weight, weight)
            for output in outputs:
                losses.append((cross_entropy(output, labels[:, index], reduction="none") * weight).mean())
            right = outputs[0].argmax(-1) == labels[:, index]
            groups = {"digit": shown & ~letter, "letter": letter} if name == "glyph" else {name: shown}
            counts |= {f"see {k}": (int((right & of).sum()), int(of.sum())) for k, of in groups.items()}
        return torch.stack(losses).sum(), counts
