"""See what a model looked at: scrub through its reasoning, click a token, click a patch.

The same view is a notebook widget and one HTML file that needs no network (`Explorer.save`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import anywidget
import traitlets
from IPython.core.getipython import get_ipython
from IPython.display import HTML

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from visionpulse_analysis.explorer import page
from visionpulse_analysis.explorer.payload import pack
from visionpulse_analysis.explorer.view import check_view, read_view
from visionpulse_analysis.traces import Trace, traces_hash
from visionpulse_analysis.traces.store import TraceStore

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


class Explorer(anywidget.AnyWidget):
    """Interactive view of one trace, or of a dense one beside pruned ones.

    Shown by putting it last in a notebook cell. It needs no kernel once shown: everything is in the browser.

    Parameters
    ----------
    trace, *pruned, layer, **packing
        As in `explore`.
    view : str
        What is shown, as in the page's links (``"step=12&layer=3"``). Follows the reader; set it to move.
    """

    _esm = page.script()
    _css = page.asset("explorer.css")
    payload = traitlets.Unicode().tag(sync=True)
    view = traitlets.Unicode().tag(sync=True)

    def __init__(self, trace, *pruned, view: str = "", layer: int | None = None, **packing) -> None:
        asked = read_view(view).layer
        if layer is None and isinstance(asked, int):
            layer = asked  # what is asked for must be in the page
        packed = pack(trace, *pruned, layer=layer, **packing)
        check_view(view, packed)
        super().__init__(payload=json.dumps(packed, allow_nan=False), view=view)
        self._traces = (trace, *pruned)

    @property
    def packed(self) -> dict:
        """What the page holds; from `visionpulse_analysis.explorer.payload.pack`."""
        return json.loads(self.payload)

    @traitlets.validate("view")
    def _check_view(self, proposal) -> str:
        if self.payload:
            check_view(proposal.value, self.packed)
        return proposal.value

    def save(self, path: str | Path, *, keep_traces: bool = False) -> Path:
        """Write the offline page, opening at the current `view`.

        Parameters
        ----------
        path : str or Path
        keep_traces : bool
            Keep the traces, too, unless `store` named where they are: beside ``page.html`` in the store
            ``page.traces``, so that the page's command for a paper figure works. Those of an earlier page are replaced.

        Returns
        -------
        Path
            Of the page.

        Raises
        ------
        FileNotFoundError
            If the folder does not exist.
        ValueError, OSError
            As `TraceStore.add` for a trace without an id; as `TraceStore` where something else is in the way.
        """
        packed = self.packed
        page.check_folder(path)
        if keep_traces and packed["store"] is None:
            store = TraceStore(Path(path).with_suffix(".traces"), mode="a")
            for trace in self._traces:
                store.add(trace, overwrite=True)
            packed["store"] = str(store.path)
        return page.write(path, packed, self.view)

    def figure(self, path: str | Path | None = None) -> Figure:
        """Draw the current `view` as a figure for a paper.

        Parameters
        ----------
        path : str or Path, optional
            Write it there, too, as PNG, PDF and SVG; an ending is left out.

        Returns
        -------
        Figure

        Raises
        ------
        ValueError
            If there is nothing to draw: a difference where only one of the traces has a token.
        """
        from visionpulse_analysis.explorer.figure import draw_view
        from visionpulse_analysis.figures import save

        figure = draw_view(*self._traces, view=self.view)
        if path is not None:
            ids = [str(trace.meta.get("id", "")) for trace in self._traces]
            about = {"sample": ids[0], "pruned": ids[1:], "view": self.view}
            where = {"folder": Path(path).parent, "data_hash": traces_hash(self._traces)}
            save(figure, Path(path).stem, parameters=about, **where)
        return figure

    def inline(self) -> HTML:
        """Return the same view as a notebook output that stays alive in the saved notebook.

        Jupyter restores a saved widget only where a kernel has started; this needs none. What the reader does
        in it does not come back to Python.

        Returns
        -------
        IPython.display.HTML
        """
        return HTML(page.output(self.packed, self.view))

    def _repr_mimebundle_(self, **kwargs) -> tuple[dict, dict] | None:
        """The widget; in a notebook that runs with nobody in front of it (papermill, nbconvert), `inline`."""
        if somebody_is_there():
            return super()._repr_mimebundle_(**kwargs)
        return {"text/plain": repr(self), "text/html": self.inline().data}, {}

    def __repr__(self) -> str:
        packed = self.packed
        steps = " and ".join(f"{len(trace['tokens'])} steps" for trace in packed["traces"])
        return f"Explorer({packed['question']!r}, {steps}, layers {packed['layers']})"


def somebody_is_there() -> bool:
    """Whether who asked for this cell could answer a question: front ends can, runners of notebooks cannot."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is None or kernel.get_parent("shell").get("content", {}).get("allow_stdin", True)
