"""The words that charts are asked about and thought about in."""

from __future__ import annotations

from visionpulse_analysis.testbed.charts.chart import COLOURS, KINDS, LABELS, NAMES, UNITS
from visionpulse_analysis.testbed.charts.questions import ORDINALS
from visionpulse_analysis.testbed.scenes.tokens import SPECIAL

SYSTEM_PROMPT = "look at the chart , think step by step , then answer ."
LARGEST = 2 * 4 * 5 * max(UNITS)  # the sum of two marks at the top of the longest axis
WORDS = (
    "system user assistant look at the chart , think step by then answer . what is ? value of in plus which "
    "larger or how far apart are and highest lowest point many above does it rise fall rises falls level colour "
    "series right left we want a marks axis glance half find see yes no again over so clear faint hidden close "
    "check from to between them higher lower more less same minus next count none nearest all legend describe "
    "read visit done"
)


def vocabulary() -> list[str]:
    """All words in id order: special tokens, words, kinds of charts, labels, names, colours, ordinals, numbers."""
    words = [*SPECIAL, *WORDS.split(), *KINDS, *COLOURS, *ORDINALS]
    words += [word for named in (LABELS, NAMES) for form in named.values() for word in form]
    return list(dict.fromkeys([*words, *(str(i) for i in range(LARGEST + 1))]))
