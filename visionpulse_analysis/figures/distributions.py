"""How values are distributed, alone and in pairs."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .checks import check_vector
from .style import INK, style

Vector = Sequence[float] | np.ndarray


@style()
def draw_histogram(
    ax: Axes,
    values: Vector | Mapping[str, Vector],
    bins: int | Vector,
    *,
    xlabel: str,
    ylabel: str = "samples",
    reference: float | None = None,
) -> Axes:
    """Draw how often values occur; several named sets share the same bins.

    Parameters
    ----------
    ax : Axes
    values : float [n], or mapping of name to float [n]
    bins : int or float [n_bins + 1]
        Number of bins over the range of all values, or their edges.
    xlabel, ylabel : str
    reference : float, optional
        A dashed upright line, for example 0 for differences.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On no values, values that are not finite, or values outside the edges (they would vanish).
    """
    sets = dict(values) if isinstance(values, Mapping) else {"": values}
    if not sets:
        raise ValueError("no sets of values: expected at least one")
    checked = {name: check_vector(data, f"values {name}".strip()) for name, data in sets.items()}
    together = np.concatenate(list(checked.values()))
    edges = np.histogram_bin_edges(together, bins)  # raises ValueError on bins that make no sense
    if together.min() < edges[0] or together.max() > edges[-1]:
        raise ValueError(
            f"values run from {together.min():g} to {together.max():g}, "
            f"the bins only from {edges[0]:g} to {edges[-1]:g}: widen them"
        )
    for index, (name, data) in enumerate(checked.items()):
        colour = f"C{index}"
        counts, _ = np.histogram(data, edges)
        ax.stairs(counts, edges, fill=True, color=colour, alpha=0.35 if len(checked) > 1 else 0.8, linewidth=0)
        ax.stairs(counts, edges, color=colour, linewidth=1, label=name or None)
    if reference is not None:
        ax.axvline(reference, color=INK, linewidth=0.8, linestyle="--")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return ax


@style()
def draw_scatter(ax: Axes, x: Vector, y: Vector, *, xlabel: str, ylabel: str, label: str | None = None) -> Axes:
    """Draw pairs of values as dots, fainter and smaller the more there are.

    Parameters
    ----------
    ax : Axes
    x, y : float [n]
    xlabel, ylabel : str
    label : str, optional
        For `draw_legend`.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On lengths that differ or values that are not finite.
    """
    x = check_vector(x, "x")
    y = check_vector(y, "y", length=len(x))
    many = len(x) > 500
    # Thousands of dots as shapes would make a PDF of megabytes: they become one picture inside it.
    ax.scatter(x, y, s=4 if many else 10, alpha=0.25 if many else 0.7, linewidths=0, rasterized=many, label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax
