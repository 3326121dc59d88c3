"""How a method is drawn: one name, one colour and one marker, the same in the figures of all studies.

Colours are Okabe and Ito's and one of Tol's, told apart by the colour-blind; blue is VisionPulse's alone. What is no
method (layers, kinds of token, places) takes the colours of the style sheet, which are others. Triangles choose patches
at steps, the other markers of the table stand for sets that are settled when prefill ends.
"""

import re
from dataclasses import dataclass, replace
from itertools import product
from zlib import crc32

_BLUE, _ORANGE, _GREEN, _PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_AMBER, _SKY, _BLACK, _GREY, _WINE = "#E69F00", "#56B4E9", "#000000", "#6e6e6e", "#882255"


@dataclass(frozen=True)
class Look:
    """What a method is called and drawn with.

    Parameters
    ----------
    label : str
    colour, marker : str
        As matplotlib takes them.
    hollow : bool
        Whether markers are empty: a method's published setting, beside the budgets of others, or one that is not tuned
        beside its tuned twin.
    """

    label: str
    colour: str
    marker: str
    hollow: bool = False


METHODS: dict[str, Look] = {
    look.label: look
    for look in (
        Look("dense", _GREY, "o"),
        Look("VisionPulse", _BLUE, "^"),
        Look("last step only", _ORANGE, "v"),
        Look("DivPrune | VisionPulse", _GREEN, "<"),
        Look("DyCoke", _ORANGE, ">"),
        Look("ST3", _GREEN, "v"),
        Look("MVW", _PINK, "<"),
        Look("AdaptVis", _SKY, "v"),
        Look("random", _AMBER, ">"),
        Look("at prefill", _BLACK, "s"),
        Look("hindsight", _PINK, "o"),
        Look("named objects", _SKY, "s"),
        Look("static random", _GREEN, "P"),
        Look("uniform", _ORANGE, "X"),
        Look("oracle", _BLACK, "D"),
        Look("FastV", _ORANGE, "o"),
        Look("PyramidDrop", _GREEN, "s"),
        Look("SparseVLM", _PINK, "D"),
        Look("LOOK-M", _AMBER, "P"),
        Look("DivPrune", _GREEN, "o"),
        Look("CDPruner", _AMBER, "s"),
        Look("ZSPAPrune", _ORANGE, "D"),
        Look("CoViPAL", _PINK, "s"),
        Look("relevance CNN", _SKY, "D"),
        Look("SeTok", _BLACK, "P"),
        Look("DyVTE", _ORANGE, "h"),
        Look("VTW", _AMBER, "X"),
        Look("ShortV", _SKY, "p"),
        Look("VisiPruner", _GREEN, "h"),
        Look("ViCA", _BLACK, "p"),
        Look("YOPO", _WINE, "h"),
        Look("no patch", _BLACK, "X"),
    )
}
AT_STEPS, AT_PREFILL = "^v<>", "osDPXph"  # markers of the table
OTHER_NAMES = {
    "keep all": "dense",
    "chosen there": "VisionPulse",
    "the step's own": "VisionPulse",
    "paper's settings": "VisionPulse",
    "preset": "VisionPulse",
    "the step before's": "last step only",
    "prefill once": "at prefill",
    "prefill's": "at prefill",
    "random each step": "random",
    "none": "no patch",
    "lookm": "LOOK-M",
}
_NAMES = {name.lower(): name for name in METHODS} | OTHER_NAMES
_SETTING = re.compile(r"[\s,]*[\d(,].*|", re.DOTALL)  # what may follow a name: "5 %", ", greedy", "(budget=0.1)"
# Of methods that are not in the table: markers that no method there has.
_FREE = list(product("*dH8", (_ORANGE, _GREEN, _PINK, _AMBER, _SKY, _BLACK)))


def known_look(name: str) -> Look | None:
    """The row of `METHODS` for a name, with its setting behind the label; None for what is no method of the table.

    Examples
    --------
    >>> known_look("last_step_only 5 %")
    Look(label='last step only 5 %', colour='#D55E00', marker='v', hollow=False)
    >>> known_look("the step's own").marker, known_look("random forest")
    ('^', None)
    """
    plain = name.strip().replace("_", " ")
    if " | " in plain:  # pruners one after the other: settings stand behind each
        plain = " | ".join(re.sub(r"\(.*?\)$", "", part.strip()) for part in plain.split(" | "))
    for known in sorted(_NAMES, key=len, reverse=True):
        setting = plain[len(known) :]
        if plain.lower().startswith(known) and _SETTING.fullmatch(setting):
            look = METHODS[_NAMES[known]]
            # A set or setting that has a name of its own keeps it; a pruner's name in code becomes the method's.
            own = known in OTHER_NAMES and known not in ("keep all", "prefill once", "lookm")
            hollow = known == "paper's settings" or "not tuned" in setting
            return replace(look, label=plain if own else look.label + setting, hollow=hollow)
    return None


def look(name: str) -> Look:
    """How a method is drawn, also one that is not in `METHODS`: its colour and marker then follow from its name.

    Put a row into `METHODS` to choose them.

    Parameters
    ----------
    name : str
        As a study or `list_pruners` calls it, with or without a setting: "VisionPulse 5 %", "last_step_only".

    Returns
    -------
    Look
    """
    if name in METHODS:
        return METHODS[name]
    marker, colour = _FREE[crc32(name.encode()) % len(_FREE)]
    return known_look(name) or Look(name, colour, marker)
