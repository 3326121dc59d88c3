"""Density-peak clustering with k nearest neighbours (DPC-kNN, Du, Ding and Jia 2016)."""

from __future__ import annotations

import torch


def cluster(points: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find ``count`` clusters.

    Distances are Euclidean over ``sqrt(width)``. A point is dense if its ``count`` nearest points, itself among
    them, are near: ``exp(-mean of squared distances)``; it is a centre if it is dense and far from any denser
    point, the product of both being among the ``count`` largest. Every point belongs to its nearest centre, a
    centre to itself.

    Parameters
    ----------
    points : float32 [point, width]
    count : int
        1 to the number of points; also the number of neighbours.

    Returns
    -------
    centres : int64 [count]
        Indices of points.
    owner : int64 [point]
        Index into ``centres``.
    """
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") / points.shape[1] ** 0.5
    density = (-(torch.topk(distances, count, largest=False).values ** 2).mean(dim=1)).exp()
    denser = density[None] > density[:, None]
    separation = distances.masked_fill(~denser, torch.inf).amin(dim=1)
    separation = torch.where(denser.any(dim=1), separation, distances.max())
    centres = torch.argsort(density * separation, descending=True, stable=True)[:count]
    owner = distances[:, centres].argmin(dim=1)
    owner[centres] = torch.arange(count, device=points.device)
    return centres, owner
