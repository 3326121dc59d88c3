"""Where the text of a batch is in the cache, and what a choice of patches therefore reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from visionpulse_analysis.attention.sparse import Gathered
from visionpulse_analysis.pruners.view import Layout

VIEWS = 3  # stretches of text inside the prompt that are read where they lie; shorter ones are copied with the patches


@dataclass
class TextColumns:
    """Which columns of the cache hold text, and how they are read.

    What is no patch counts as text here: the other tokens of pictures are hidden from rows that see no patch.

    views : stretches (first, end) of columns where some row has text; the last has no end: it grows with the answer.
    copied : int64 [row, token], text outside of them; real : bool [row, token], False where a row has less of it.
    own : bool [row, column], where each row has text itself. uniform : whether all rows have it in the same columns.
    """

    layout: Layout
    views: list[tuple[int, int | None]]
    copied: torch.Tensor
    real: torch.Tensor
    own: torch.Tensor
    uniform: bool

    @classmethod
    def of(cls, layout: Layout, others: bool = True) -> TextColumns:
        """Find the text of a batch, with or without the ``others`` of its pictures."""
        places, present, starts = (t.cpu().numpy() for t in (layout.places, layout.patches, layout.starts))
        rows, numbers = np.nonzero(layout.others.cpu().numpy())
        other_places = layout.other_places.cpu().numpy()[rows, numbers]
        width = int(max(places[present].max(initial=-1) + 1, other_places.max(initial=-1) + 1, starts.max()))
        own = np.arange(width)[None] >= starts[:, None]
        own[np.nonzero(present)[0], places[present]] = False
        own[rows, other_places] &= others
        some = own.any(axis=0)
        edges = np.flatnonzero(np.diff(some, prepend=False, append=False))
        inner = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        last = inner.pop()[0] if inner and inner[-1][1] == width else width
        viewed = sorted(sorted(inner, key=lambda part: part[0] - part[1])[:VIEWS])
        rest = np.zeros(width, bool)
        for a, b in set(inner) - set(viewed):
            rest[a:b] = True
        counts = (own & rest).sum(axis=1)
        copied = np.zeros((len(own), counts.max(initial=0)), np.int64)
        real = np.arange(copied.shape[1])[None] < counts[:, None]
        copied[real] = np.nonzero(own & rest)[1]
        on_device = (torch.from_numpy(array).to(layout.places.device) for array in (copied, real, own))
        return cls(layout, [*viewed, (last, None)], *on_device, uniform=bool((own == some).all()))

    def gather(self, kept: torch.Tensor, width: int, fewest: int, mask: torch.Tensor | None, n_keys: int) -> Gathered:
        """Read the kept patches, bool [row, patch], of which each row has ``fewest`` to ``width``; -1 if not known.

        mask : the model's own, bool [row, 1, 1, key], or None.
        """
        even, own, real = fewest == width, self.own, self.real
        if fewest == 0 < width and self.layout.others.shape[1]:
            hidden = self.layout.hidden_keys(kept, own.shape[1])
            own, real = own & ~hidden, real & ~hidden.gather(1, self.copied)
        patches, filled = _numbers(kept, width, even)
        index = torch.cat([self.layout.places.gather(1, patches), self.copied], dim=1)
        views = [(first, n_keys if end is None else end) for first, end in self.views]
        views = [(first, end) for first, end in views if end > first]
        hidden = None
        if not even or mask is not None or not self.uniform:
            shown = [torch.cat([filled, real], dim=1), *(_columns(own, first, end) for first, end in views)]
            if mask is not None:
                given = mask[:, 0, -1]
                masks = [given.gather(1, index), *(given[:, first:end] for first, end in views)]
                shown = [a & b for a, b in zip(shown, masks, strict=True)]
            hidden = ~torch.cat(shown, dim=1)[:, None, None]
        return Gathered(patches, index, views, hidden)


def _columns(own: torch.Tensor, first: int, end: int) -> torch.Tensor:
    """Which rows have text of their ``own`` in a stretch of columns: bool [row, column]; behind the prompt, all."""
    known = own[:, first:end]
    return torch.nn.functional.pad(known, (0, end - first - known.shape[1]), value=True)


def _numbers(kept: torch.Tensor, width: int, even: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The marked patches of each row, int64 [row, slot] in order, and which of these slots are filled, bool."""
    if even:
        patches = kept.nonzero()[:, 1].view(len(kept), width)
        return patches, torch.ones_like(patches, dtype=torch.bool)
    slot = kept.cumsum(dim=1) - 1
    numbers = torch.arange(kept.shape[1], device=kept.device).expand(len(kept), -1)
    patches = torch.zeros(len(kept), width + 1, dtype=torch.int64, device=kept.device)
    patches = patches.scatter_(1, torch.where(kept, slot, width), numbers)[:, :width]
    return patches, numbers[:, :width] <= slot[:, -1:]
