"""The three pictures of the VisionPulse authors' analysis tools, from stored traces: no model is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.collect import traces_hash
from visionpulse_analysis.experiments.stored_traces import StoredTraces
from visionpulse_analysis.metrics.attention import PAPER_THRESHOLDS
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.studies.authors_figures.figures import LEVELS, activation_page, even_steps
from visionpulse_analysis.studies.layers.figures import similarity_figure
from visionpulse_analysis.studies.layers.measure import layer_maps
from visionpulse_analysis.studies.mass_and_usage.figures import counts_page
from visionpulse_analysis.studies.mass_and_usage.measure import mass_usage


def draw_pictures(
    store: str | Path,
    out: str | Path,
    *,
    layer: int = -1,
    thresholds: Sequence[float] = PAPER_THRESHOLDS,
    sample: str | None = None,
    steps: Sequence[int] | None = None,
    levels: Sequence[float] = LEVELS,
) -> dict[str, Any]:
    """Draw ``correlation`` and ``similarity`` of all traces of a store, and ``activation`` of one.

    Raises ValueError, FileNotFoundError: as `StoredTraces`, `mass_usage` and `activation_page`; nothing is written;
    KeyError: the store has no such trace.

    Parameters
    ----------
    store : str or Path
    out : folder of the figures (PNG, PDF, SVG), made if there is none
    layer : model index, for correlation and activation; -1 for the only one that was recorded
    thresholds : of the active count, in units of attention
    sample : id of the trace of the activation picture; left out, the first
    steps : of that trace; left out, three evenly spaced
    levels : percentiles at or below which patches are black

    Returns
    -------
    dict
        ``about``, ``figures`` (the files), ``correlation`` {name: r with its interval}, ``similarity`` {layers,
        matrix}, ``left_out`` {picture: why}.
    """
    stored = StoredTraces(store)
    chosen = stored.chosen_layer(layer)
    by_id = {str(trace.meta.get("id")): trace for trace in stored.traces}
    id = next(iter(by_id)) if sample is None else sample
    if id not in by_id:
        raise KeyError(f"no trace {id!r} among the dense ones of {store}: {', '.join(list(by_id)[:5])}")
    steps = even_steps(by_id[id]) if steps is None else list(steps)
    usage = mass_usage(stored.traces, chosen, thresholds=thresholds)
    pages = {"correlation": counts_page(usage), "activation": activation_page(by_id[id], chosen, steps, levels)}
    found: dict[str, Any] = {"correlation": as_json({one.name: one.pooled for one in usage.paper}), "similarity": None}
    left_out = {}
    try:
        maps = layer_maps(stored.traces, stored.samples)
    # Traces of one layer have nothing to compare; the other two pictures are drawn all the same.
    except ValueError as error:
        left_out["similarity"] = str(error)
    else:
        pages["similarity"] = similarity_figure(maps)
        found["similarity"] = {"layers": maps.layers, "matrix": maps.similarity.tolist()}
    asked = {"thresholds": list(thresholds), "sample": id, "steps": steps, "levels": list(levels)}
    about = {"parameters": {"store": str(store), "layer": chosen, **asked}, "data_hash": traces_hash(stored.traces)}
    numbers = {"correlation": {"r": found["correlation"]}, "similarity": found["similarity"]}
    files = [
        str(path)
        for name, page in pages.items()
        for path in figures.save(page, name, folder=out, seed=0, numbers=numbers.get(name), **about)
    ]
    return {"about": stored.about, "figures": files, **found, "left_out": left_out}
