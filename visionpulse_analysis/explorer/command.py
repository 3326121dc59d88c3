"""What to run to draw a view again as a figure for a paper."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

NOT_STORED = (
    "In Python, where {names} {are}. For a shell command instead: "
    'vpa.decode(..., ids="dense"), then .save("page.html", keep_traces=True).'
)


def regenerate(traces: list[dict], store: str | None, page: Path | None = None) -> dict[str, Any]:
    """The command that redraws a view, and what to know before it is run.

    Parameters
    ----------
    traces : list of dict
        Of the payload; their ids are those in the store.
    store : str or None
        Folder of the trace store.
    page : Path, optional
        Where the page is written: the store is then named as seen from its folder, so that both can move together.

    Returns
    -------
    dict
        ``command``, what stands before and after the link of the view, and ``command_note``, which may be empty.
    """
    ids = [trace["id"] for trace in traces]
    if store is None or not all(ids) or len({*ids}) < len(ids):
        names = "trace" if len(ids) == 1 else ", ".join([_variable(traces[0]), _variable(traces[1], len(ids) - 1)])
        note = NOT_STORED.format(names=names.replace("*", "").replace(", ", " and "), are=_are(len(ids)))
        return {"command": [f"vpa.explore({names}, view='", "').figure('view.pdf')"], "command_note": note}
    folder = store if page is None else os.path.relpath(store, page.parent)
    words = ["visionpulse", "explore", folder, "--sample", ids[0]]
    for other in ids[1:]:
        words += ["--pruned", other]
    note = "" if page is None else "Run it in the folder of this page."
    return {"command": [f"{shlex.join(words)} --view '", "' --figure view.pdf"], "command_note": note}


def _variable(trace: dict, count: int = 1) -> str:
    """What a notebook calls such traces."""
    return trace["name"].lower() if count == 1 else f"*{trace['name'].lower()}"


def _are(count: int) -> str:
    if count == 1:
        return "is this trace"
    return "are these traces" if count == 2 else "are the first trace and a list of the others"
