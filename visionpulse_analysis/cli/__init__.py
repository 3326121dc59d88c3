"""The command line: ``visionpulse``. Every command takes ``--json`` and then prints one JSON document on stdout.

A command lives in the file of its group and registers itself when that file is imported here. What all commands share
is in ``base``.
"""

from visionpulse_analysis.cli.base import app, key_values, literals

# The order in which --help lists the commands.
# isort: off
from visionpulse_analysis.cli import (
    tracing,
    comparing,
    checking,
    harness,
    exchange,
    sweeps,
    figures,
    testbed,
    benchmarks,
)

__all__ = [
    "app",
    "benchmarks",
    "checking",
    "comparing",
    "exchange",
    "figures",
    "harness",
    "key_values",
    "literals",
    "sweeps",
    "testbed",
    "tracing",
]
