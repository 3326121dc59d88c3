"""Self-checks of a loaded model: is what is recorded and pruned on it exact?"""

from visionpulse_analysis.decoding.exactness.checks import check
from visionpulse_analysis.decoding.exactness.report import Finding, Report

__all__ = ["Finding", "Report", "check"]
