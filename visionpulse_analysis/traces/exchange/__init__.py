"""Traces for other programs, and from the paper's own code: ``trace.npz``, tables of steps, boxes of patches."""

from visionpulse_analysis.traces.exchange.authors_npz import (
    attention_definition,
    import_traces,
    read_npz,
    write_npz,
    write_npz_folder,
)
from visionpulse_analysis.traces.exchange.boxes import patch_boxes, write_boxes
from visionpulse_analysis.traces.exchange.tables import step_table, write_table

__all__ = [
    "attention_definition",
    "import_traces",
    "patch_boxes",
    "read_npz",
    "step_table",
    "write_boxes",
    "write_npz",
    "write_npz_folder",
    "write_table",
]
