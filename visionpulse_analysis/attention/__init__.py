"""Inside the attention of every layer while decoding: rows are recorded, choices of a pruner carried out."""

from visionpulse_analysis.attention.functions import Look, PrefillAttention, StepAttention
from visionpulse_analysis.attention.gathered import Execution
from visionpulse_analysis.attention.groups import Group
from visionpulse_analysis.attention.quantities import LayerAttention
from visionpulse_analysis.attention.recorder import Recorder
from visionpulse_analysis.attention.rows import RowReader, SelfCheckError

__all__ = [
    "Execution",
    "Group",
    "LayerAttention",
    "Look",
    "PrefillAttention",
    "Recorder",
    "RowReader",
    "SelfCheckError",
    "StepAttention",
]
