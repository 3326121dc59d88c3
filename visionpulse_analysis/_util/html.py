"""Tables by which objects show themselves in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape


def facts_table(facts: Mapping[str, object]) -> str:
    """A table of one name and what is known of it per line; every text is escaped."""
    rows = "".join(f"<tr><th>{escape(name)}</th>{cell(str(known))}</tr>" for name, known in facts.items())
    return f"<table>{rows}</table>"


def cell(text: str) -> str:
    """A cell of a table, its text escaped."""
    return f"<td style='text-align:left'>{escape(text)}</td>"  # JupyterLab would put words at the right
