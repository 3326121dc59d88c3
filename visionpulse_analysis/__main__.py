"""``python -m visionpulse_analysis``: the same as ``visionpulse``."""

from visionpulse_analysis.cli import app

app(prog_name="visionpulse")
