"""What the tests of this folder showed of each family, and the table of it in docs/models.md.

A test says with ``@pytest.mark.shows("batch")`` which column it stands for. A family has a column when every test of
that column ran on it and passed. `shown.json` keeps this for each transformers tested; ``make family-table`` runs the
tests on the oldest, on that with torchvision beside it, and on the newest, and writes it, and that page from it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.utils.import_utils import is_torchvision_available

from visionpulse_analysis.models.families import REFUSED
from visionpulse_analysis.studies.shared.readme_table import between

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "models.md"
STORED = FOLDER / "shown.json"
BESIDE = " with torchvision"  # some families are in the oldest transformers for torchvision only
BEGIN, END = "<!-- families", "<!-- end of families -->"
COLUMNS = ("still", "several images", "video", "batch", "recorded", "pruned")
NAMES = {
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL, experts",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen2_vl": "Qwen2-VL",
    "internvl": "InternVL 2.5 and 3, Qwen2",
    "internvl2_5": "InternVL 2.5, Llama",
    "internvl3_5": "InternVL 3.5, Qwen3",
    "internvl3_5_moe": "InternVL 3.5, experts",
    "aya_vision": "Aya Vision",
    "deepseek_vl": "DeepSeek-VL",
    "llava": "LLaVA-1.5",
    "llava_siglip": "LLaVA, SigLIP tower",
    "vipllava": "ViP-LLaVA",
    "llava_next": "LLaVA-NeXT",
    "llava_onevision": "LLaVA-OneVision",
    "gemma3": "Gemma 3",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "paligemma": "PaliGemma",
    "pixtral": "Pixtral",
    "mistral3": "Mistral 3",
    "glm4v": "GLM-4V",
    "glm4v_moe": "GLM-4V, experts",
    "glm46v": "GLM-4.6V",
}

WITNESS: pytest.StashKey[Witness] = pytest.StashKey()
Results = dict[str, dict[str, Any]]  # per family: its model_type, and the columns shown


class Witness:
    """Looks on at the tests of this folder."""

    def __init__(self):
        self.wanted: set[str] = set()  # tests with a mark, before any is left out
        self.ran: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
        self.types: dict[str, str] = {}
        self.seen: set[str] = set()

    def expect(self, items: Iterable[pytest.Item]) -> None:
        self.wanted |= {item.nodeid for item in items if columns_of(item) and FOLDER in item.path.parents}

    def note(self, item: Any, report: pytest.TestReport) -> None:
        """Take the outcome of one phase of a test; a family that is skipped as a whole shows nothing."""
        self.seen.add(item.nodeid)
        called = report.when == "call"
        if not columns_of(item) or (not called and not report.failed):
            return
        name = item.callspec.params["family"]
        if "family" in item.funcargs:
            self.types[name] = item.funcargs["family"].vlm.model.config.model_type
        for column in columns_of(item):
            self.ran[name][column].append(called and report.passed)

    def results(self) -> Results:
        """What this run showed. Raises LookupError where it ran only some of the tests."""
        files = {FOLDER / item.partition("::")[0].rpartition("/")[2] for item in self.wanted}
        marked = {path for path in FOLDER.glob("test_*.py") if "mark.shows(" in path.read_text()}
        if marked - files or self.wanted - self.seen:
            raise LookupError(f"{len(self.wanted - self.seen)} tests did not run; run all: pytest {FOLDER.name}")
        return {
            family: {"type": self.types.get(family, "?"), "shown": [c for c in COLUMNS if ran[c] and all(ran[c])]}
            for family, ran in sorted(self.ran.items())
        }


def columns_of(item: pytest.Item) -> list[str]:
    """The columns that a test stands for."""
    columns = [column for mark in item.iter_markers("shows") for column in mark.args]
    if unknown := set(columns) - set(COLUMNS):
        raise pytest.UsageError(f"{item.nodeid} shows {unknown}; expected some of {COLUMNS}")
    return columns


def table(stored: dict[str, Results]) -> str:
    """The table, and what is refused, from the results of each transformers."""
    versions = sorted(stored, key=lambda name: [int(part) for part in name.removesuffix(BESIDE).split(".")])
    lines = [f"| family | {' | '.join(COLUMNS)} | transformers |", "|---" * (len(COLUMNS) + 2) + "|"]
    for family in NAMES:
        on = [version for version in versions if family in stored[version]]
        cells = [_cell([v for v in on if column in stored[v][family]["shown"]], on) for column in COLUMNS]
        kind = stored[on[-1]][family]["type"] if on else "?"
        first = on[0].replace(BESIDE, f" ({BESIDE.strip()})")  # sorted behind the same without it
        tested = " to ".join(dict.fromkeys([first, on[-1]]))
        lines.append(f"| {NAMES[family]} (`{kind}`) | {' | '.join(cells)} | {tested} |")
    reasons: dict[str, list[str]] = defaultdict(list)
    for kind, why in REFUSED.items():
        reasons[why].append(f"`{kind}`")
    lines += ["", "Refused, with the reason:", ""]
    lines += [f"- {', '.join(kinds)}: {why}" for why, kinds in reasons.items()]
    return "\n".join(lines)


def _cell(shown_on: list[str], tested_on: list[str]) -> str:
    return "no" if not shown_on else "yes" if shown_on == tested_on else f"with {', '.join(shown_on)}"


def with_table(readme: str, text: str) -> str:
    """The page with the table between its marks; raises ValueError where a mark is missing."""
    return between(readme, BEGIN, END, text)


def read_stored() -> dict[str, Results]:
    return json.loads(STORED.read_text())


def write(name: str, results: Results) -> None:
    """Keep the results of one transformers, drop those of versions no longer pinned, and rewrite the page."""
    kept = {known: value for known, value in read_stored().items() if known in versions()} if STORED.exists() else {}
    STORED.write_text(json.dumps({**kept, name: results}, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), table(read_stored())))


def versions() -> set[str]:
    """The versions of transformers that the two constraint files name, the oldest also with torchvision beside it."""
    return {pinned("constraints.txt"), pinned("constraints-floor.txt"), pinned("constraints-floor.txt") + BESIDE}


def pinned(file: str) -> str:
    (line,) = [line for line in (PAGE.parents[1] / file).open() if line.startswith("transformers==")]
    return line.partition("==")[2].strip()


def this_run() -> str:
    """The name under which the results of this process are kept."""
    beside = is_torchvision_available() and transformers.__version__ == pinned("constraints-floor.txt")
    return transformers.__version__ + (BESIDE if beside else "")
