"""``python lmms_command.py lmms-eval ARGUMENTS`` or ``... visionpulse ARGUMENTS``: what the command of that name does.

In a process of its own; only what torchvision lacks, built for another torch, is named before.
"""

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

PROGRAMS = {"lmms-eval": ("lmms_eval.cli.dispatch", "main"), "visionpulse": ("visionpulse_analysis.cli", "app")}


def main() -> None:
    spec = spec_from_file_location("names_of_operators", Path(__file__).parents[1] / "conftest.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module := module_from_spec(spec))
    assert module.OPERATORS is None or module.OPERATORS
    module, name = PROGRAMS[sys.argv.pop(1)]
    getattr(import_module(module), name)()


if __name__ == "__main__":
    main()
