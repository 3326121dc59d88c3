"""The command line: ``visionpulse``. Every command takes ``--json`` and then prints one JSON document on stdout.

A command lives in the file of its group and registers itself when that file is imported here; what all share is in
``base``. Nothing heavy is imported before a command needs it: ``--help`` and most mistakes are answered without torch.
"""

from visionpulse_analysis.cli.base import app, key_values, literals

# The order in which --help lists the commands.
# isort: off
from visionpulse_analysis.cli import asking, stored, running, testbed, benchmarks

__all__ = ["app", "asking", "benchmarks", "key_values", "literals", "running", "stored", "testbed"]
