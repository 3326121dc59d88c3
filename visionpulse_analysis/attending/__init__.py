"""Inside the attention of every layer while decoding: rows are recorded, choices of a pruner carried out."""

from visionpulse_analysis.attending.functions import PrefillAttention, StepAttention, refuse_inexact
from visionpulse_analysis.attending.groups import Group
from visionpulse_analysis.attending.reading import Execution
from visionpulse_analysis.attending.recorder import Recorder

__all__ = ["Execution", "Group", "PrefillAttention", "Recorder", "StepAttention", "refuse_inexact"]
