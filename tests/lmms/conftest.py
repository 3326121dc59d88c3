"""Without lmms-eval nothing here is collected."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "families"))  # the tiny models

collect_ignore = [] if find_spec("lmms_eval") else ["test_lmms_eval.py"]
