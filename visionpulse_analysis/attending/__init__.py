"""Inside the attention of every layer while decoding: rows are recorded, choices of a pruner carried out."""

from visionpulse_analysis.attending.functions import Look, PrefillAttention, StepAttention
from visionpulse_analysis.attending.groups import Group
from visionpulse_analysis.attending.reading import Execution
from visionpulse_analysis.attending.recorder import Recorder
from visionpulse_analysis.attending.rows import RowReader, SelfCheckError

__all__ = [
    "Execution",
    "Group",
    "Look",
    "PrefillAttention",
    "Recorder",
    "RowReader",
    "SelfCheckError",
    "StepAttention",
]
