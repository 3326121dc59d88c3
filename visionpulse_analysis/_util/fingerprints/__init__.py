"""What a computation depends on, as a hash: the code that is loaded, the objects it reads, and every weight.

>>> def rule(x, least=3):
...     return x > least
>>> before = fingerprint(rule)
>>> rule.__defaults__ = (4,)
>>> fingerprint(rule) == before
False
"""

from visionpulse_analysis._util.fingerprints.objects import Remembered, Unknown, every_byte, fingerprint
from visionpulse_analysis._util.fingerprints.settings import settings

__all__ = ["Remembered", "Unknown", "every_byte", "fingerprint", "settings"]
