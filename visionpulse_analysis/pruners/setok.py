"""SeTok: patches that look alike and lie near one another become one token, as many as the picture has of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from visionpulse_analysis._util.checks import Interval
from visionpulse_analysis._util.later import functional, torch
from visionpulse_analysis.pruners.base import Fraction, Pruner, Selection, Share
from visionpulse_analysis.pruners.density_peaks import density_peaks
from visionpulse_analysis.pruners.divprune import farthest, spread
from visionpulse_analysis.pruners.top_k import drawn, nearest_k, top_k
from visionpulse_analysis.pruners.view import View

ROUNDS = 25  # of k-means


@dataclass(frozen=True)
class SeTok(Pruner):
    """Put each cluster of patches in the place of its centre before the language model; the other patches go for good.

    SeTok (ICLR 2025), arXiv 2406.05127, and the authors' code: density peaks over the features of the vision tower and
    their places. A patch's density is ``exp(-mean of squared distances)`` to its nearest neighbours, its separation the
    distance to the nearest denser patch; it is a centre where the product exceeds a threshold, so that the number of
    tokens follows the picture. Every patch belongs to its nearest centre; where no product exceeds the threshold, the
    highest are centres, as many as there are neighbours. Pictures, tiles and frames are clustered each by itself.

    This is the part without training: a cluster is the mean of its members, where the authors train an encoder and the
    language model along. Ours: features are divided by their root mean square over the picture, so that a threshold
    means the same for every tower; ties go to the earlier patch, where the code draws noise; the token keeps position
    and later additions (DeepStack) of its centre; and `by`, which puts centres elsewhere as a control. Inside
    `generate` the rows and columns of patches are known where ``locate`` or ``images`` says; else they lie in a line.

    Parameters
    ----------
    threshold : float
        Least product of density and separation of a centre; the authors' 0.5 is for their tower.
    budget : float, optional
        Ours: keep the ``round(budget * n)`` highest products in place of those above the threshold.
    neighbours : float
        Share of the patches that are a patch's nearest, itself among them; the authors' 64 of 729.
    place : float
        Weight of the sines and cosines of row and column; 0 clusters by looks alone.
    by : "peaks", "kmeans", "rectangles", "spread" or "random"
        Controls with as many centres as peaks have: k-means; blocks of about equal size (pooling); patches far from one
        another (DivPrune); random ones.
    merge : bool
        Whether members go into the token; if False, it stays the centre's own.
    """

    name: ClassVar[str] = "setok"

    threshold: float = 0.5
    budget: Share | None = None
    neighbours: Fraction = 64 / 729
    place: Annotated[float, Interval(ge=0)] = 1.0
    by: Literal["peaks", "kmeans", "rectangles", "spread", "random"] = "peaks"
    merge: bool = True

    def begin(self, run: Selection) -> None:
        if self.by == "rectangles":
            run.by_place = "blocks are of neighbours; say another `by`"
        elif self.place:
            run.by_place = "patches are clustered by their places too; say place=0"

    def rewrite(self, layer: int, states: torch.Tensor, run: Selection) -> torch.Tensor | None:
        if layer >= 0:
            return None
        layout, order = run.layout, drawn(run.layout, 0) if self.by == "random" else None
        run.kept = torch.zeros_like(layout.patches)
        run.owner = torch.full_like(layout.places, -1)
        merged = states.clone()
        for row, present in enumerate(layout.patches):
            for piece in layout.pieces[row, present].unique():
                own = (present & (layout.pieces[row] == piece)).nonzero()[:, 0]
                points, cells = states[row, own].float(), layout.cells[row, own]
                centres, owner = self.clusters(points, cells, None if order is None else order[row, own])
                run.kept[row, own[centres]] = True
                run.owner[row, own] = own[centres[owner]]
                if self.merge:
                    sums = torch.zeros(len(centres), points.shape[1], device=points.device)
                    means = sums.index_add(0, owner, points) / torch.bincount(owner, minlength=len(centres))[:, None]
                    merged[row, own[centres]] = means.to(states.dtype)
        return merged if self.merge else None

    def visible_prefill(self, view: View, run: Selection) -> torch.Tensor | None:
        return run.kept if view.layer == 0 else None

    def clusters(
        self, points: torch.Tensor, cells: torch.Tensor, order: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The clusters of one picture.

        Parameters
        ----------
        points : float32 [patch, width]
            Embeddings of its patches.
        cells : int64 [patch, 2]
            Their rows and columns.
        order : float32 [patch], optional
            A random order, for random centres.

        Returns
        -------
        centres : int64 [cluster]
            Indices of patches, rising.
        owner : int64 [patch]
            Index into ``centres``; a centre belongs to itself.
        """
        features, scores, distances = self.scores(points, cells)
        n = len(points)
        if self.budget is None:
            above, least = scores > self.threshold, torch.tensor([self._nearest(n)], device=points.device)
            chosen = above if bool(above.any()) else top_k(scores[None], least)[0]
        else:
            chosen = top_k(scores[None], nearest_k(self.budget, torch.tensor([n], device=points.device)))[0]
        count = chosen.sum()
        if self.by == "kmeans":
            return kmeans(features, int(count))
        if self.by == "rectangles":
            return rectangles(cells, int(count))
        if self.by == "spread":
            units, there = functional.normalize(points, dim=-1)[None], torch.ones_like(chosen)[None]
            chosen = spread(units, farthest(units, there), count[None], there)[0]
        elif self.by == "random":
            if order is None:
                raise ValueError("random centres need the random order of the patches, float32 [patch]")
            chosen = top_k(-order[None], count[None])[0]
        return nearest(distances, chosen.nonzero()[:, 0])

    def scores(self, points: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What patches are clustered by, given as in `clusters`.

        Returns
        -------
        features : float32 [patch, width]
        scores : float32 [patch]
            Density times separation.
        distances : float32 [patch, patch]
            Of features, over ``sqrt(width)``.
        """
        looks = points / points.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        features = looks + self.place * places(cells, points.shape[1])
        distances, density, separation = density_peaks(features, self._nearest(len(points)), tie="earlier")
        return features, density * separation, distances

    def _nearest(self, n: int) -> int:
        """How many of ``n`` patches are the nearest of each."""
        return max(1, round(self.neighbours * n))


def nearest(distances: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres int64 [cluster] and, by distances float [patch, patch], the nearest of each patch: int64 [patch]."""
    owner = distances[:, centres].argmin(dim=1)
    owner[centres] = torch.arange(len(centres), device=centres.device)
    return centres, owner


def places(cells: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of rows, then of columns, int64 [patch, 2]: float32 [patch, width], as in MAE."""
    rates = 10_000.0 ** (-torch.arange(width // 4, device=cells.device) / max(1, width // 4))
    angles = cells[..., None] * rates
    found = torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)
    return functional.pad(found, (0, width - found.shape[1]))


def kmeans(points: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lloyd's clusters of points float32 [patch, width], from patches evenly spaced in reading order.

    None is ever empty: it takes the point farthest from the mean of a larger one. Returns as `SeTok.clusters`, centres
    being the members nearest to their means.
    """
    start = torch.linspace(0, len(points) - 1, count, device=points.device).round().long()
    means, owner = points[start], torch.full((len(points),), -1, device=points.device)
    for _ in range(ROUNDS):
        distances = torch.cdist(points, means)
        before, owner = owner, distances.argmin(dim=1)
        for empty in (torch.bincount(owner, minlength=count) == 0).nonzero()[:, 0].tolist():
            alone = torch.bincount(owner, minlength=count)[owner] == 1
            own = distances.gather(1, owner[:, None])[:, 0]
            owner[own.masked_fill(alone, -1.0).argmax()] = empty
        sums = torch.zeros_like(means).index_add_(0, owner, points)
        means = sums / torch.bincount(owner, minlength=count)[:, None]
        if torch.equal(before, owner):
            break
    return _in_order(torch.cdist(points, means), owner)


def rectangles(cells: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of patches of about equal size, halving along the longer side of their rows and columns int64 [patch, 2].

    Returns as `SeTok.clusters`, centres being the members nearest to the middle.
    """
    owner, number = torch.zeros(len(cells), dtype=torch.int64, device=cells.device), 0
    parts = [(torch.arange(len(cells), device=cells.device), count)]
    while parts:
        own, amount = parts.pop()
        if amount == 1:
            owner[own], number = number, number + 1
            continue
        at = cells[own]
        along = int((at.amax(dim=0) - at.amin(dim=0)).argmax())
        own, first = own[torch.argsort(at[:, along], stable=True)], amount // 2
        cut = min(max(round(len(own) * first / amount), first), len(own) - (amount - first))
        parts += [(own[cut:], amount - first), (own[:cut], first)]
    middles = torch.stack([cells[owner == one].float().mean(dim=0) for one in range(count)])
    return _in_order(torch.cdist(cells.float(), middles), owner)


def _in_order(distances: torch.Tensor, owner: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Clusters by owner, int64 [patch], whose centres are the nearest members by distances float [patch, cluster]."""
    count = distances.shape[1]
    member = owner[:, None] == torch.arange(count, device=owner.device)
    centres, numbers = distances.masked_fill(~member, torch.inf).argmin(dim=0).sort()
    return centres, torch.argsort(numbers)[owner]
