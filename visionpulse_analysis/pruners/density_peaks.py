"""Density peaks with k nearest neighbours (DPC-kNN, Du, Ding and Jia 2016), by which patches are clustered."""

from __future__ import annotations

from typing import Literal

from visionpulse_analysis._util.later import torch


def density_peaks(
    points: torch.Tensor, neighbours: int, tie: Literal["neither", "earlier"]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How dense each point is, and how far from any denser one.

    Parameters
    ----------
    points : float32 [point, width]
    neighbours : int
        How many nearest points count, the point itself among them; 1 to the number of points.
    tie : "neither" or "earlier"
        Which of two points of equal density is the denser one.

    Returns
    -------
    distances : float32 [point, point]
        Euclidean, over ``sqrt(width)``.
    density : float32 [point]
        ``exp(-mean of squared distances)`` to the neighbours, 0 to 1.
    separation : float32 [point]
        Distance to the nearest denser point; the largest of all distances where there is none.
    """
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") / points.shape[1] ** 0.5
    density = (-(torch.topk(distances, neighbours, largest=False).values ** 2).mean(dim=1)).exp()
    denser = density[None] > density[:, None]
    if tie == "earlier":
        denser |= (density[None] == density[:, None]).tril(-1)
    separation = distances.masked_fill(~denser, torch.inf).amin(dim=1)
    return distances, density, torch.where(denser.any(dim=1), separation, distances.max())
