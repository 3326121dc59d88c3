"""What one decode produced: tokens, attention with named axes, kept sets, provenance."""

from visionpulse_analysis.traces import computed  # noqa: F401  puts its quantities into the table
from visionpulse_analysis.traces.frames import frame_labels, frame_pictures, media_of, without_map
from visionpulse_analysis.traces.trace import Trace, create_trace, traces_hash
from visionpulse_analysis.traces.zarr_group import StoreVersionError

__all__ = [
    "StoreVersionError",
    "Trace",
    "create_trace",
    "frame_labels",
    "frame_pictures",
    "media_of",
    "traces_hash",
    "without_map",
]
