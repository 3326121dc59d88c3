"""The fixtures that every test module runs under."""

from __future__ import annotations

from pathlib import Path

MODULE = """
from dataclasses import dataclass

import visionpulse_analysis as vpa
from visionpulse_analysis.pruners.base import Pruner


@dataclass(frozen=True)
class Own(Pruner):
    \"\"\"Of this module alone.\"\"\"

    name = "of_{own}"


def test_only_its_own_and_those_of_the_package():
    known = vpa.list_pruners()
    assert "visionpulse" in known and [name for name in known if name.startswith("of_")] == ["of_{own}"]
"""


def test_pruners_of_a_test_module_stay_in_it(pytester):
    """Each is defined when both modules are imported, before the first test; the second module finds its own again."""
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text())
    pytester.makepyfile(**{f"test_{own}": MODULE.format(own=own) for own in ("first", "second")})
    pytester.runpytest_subprocess().assert_outcomes(passed=2)
