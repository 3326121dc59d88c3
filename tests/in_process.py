"""The code of a notebook, run in this process: without the seconds that a kernel takes to import everything."""

import nbformat

from visionpulse_analysis.cli.notebooks import run as notebooks


def run_in_process(name, **given):
    """Run the code of a notebook with these parameters; what it has at its end."""
    space = {}
    for cell in nbformat.read(notebooks.find(name), as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, space)
            space.update(given if "parameters" in cell.metadata.get("tags", []) else {})
    return space
