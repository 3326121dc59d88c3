"""See what a model looked at: scrub through its reasoning, click a token, click a patch.

The same view is a notebook widget and one HTML file that needs no network (`Explorer.save`).
"""

from __future__ import annotations

from pathlib import Path

from visionpulse_analysis.explorer.widget import Explorer
from visionpulse_analysis.traces import Trace

__all__ = ["Explorer", "explore"]


def explore(
    trace,
    *pruned,
    view: str = "",
    layer: int | None = None,
    max_bytes: int = 3_000_000,
    store: str | Path | None = None,
) -> Explorer:
    """Explore one trace, or a dense trace beside pruned ones of the same image.

    Parameters
    ----------
    trace : Trace
    *pruned : Trace
        One of them at a time stands beside the first, and a selector says which. Tokens of both are aligned; the first
        divergence is marked and the cursors are linked.
    view : str
        What is shown first, as in the page's links: ``"step=12&layer=3"``.
    layer : int, optional
        Model layer shown first and kept in any case. Default: that of `view`, else the one with the most visual mass.
    max_bytes : int
        Aimed size of the saved page. Beyond it heads are averaged or layers left out, and the page says so; the mean
        over layers stays that of all. One layer is always kept whole.
    store : str or Path, optional
        Folder of the trace store that holds the traces, for the command that draws a view again as a paper figure.

    Returns
    -------
    Explorer
        A notebook widget; ``.save("explorer.html")`` writes the offline page.

    Raises
    ------
    ValueError
        If a trace is empty, the traces do not share image, patch grid and a layer, `layer` was not recorded, or
        `view` asks for what the page does not hold.
    """
    wrong = [given for given in (trace, *pruned) if not isinstance(given, Trace)]
    if wrong:
        raise ValueError(f"explore takes traces, as vpa.decode or vpa.Trace.open gives them; got {wrong[0]!r}")
    folder = None if store is None else str(store)
    return Explorer(trace, *pruned, view=view, layer=layer, max_bytes=max_bytes, store=folder)
