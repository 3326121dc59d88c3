"""Is an answer right? Rules that need no model, each a pure function of the answer and what it is held against.

>>> relaxed("4.9", ["5"]), relaxed("5 %", ["0.05"]), anls("Brasil", ["brazil"])
(1.0, 1.0, 0.8333333333333334)
>>> choice("The answer is (B).", ["B"], {"A": "one", "B": "two"})
1.0
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

LANGUAGE_MODEL = "language model"  # judged elsewhere; see `sweeps.verdicts`
RELAXED_BY = 0.05
ANLS_FROM = 0.5
RIGHT_FROM = 0.5  # every score here is 0, or from 0.5 to 1

PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
LAST_WORDS = 4
OTHER_SCRIPTS = re.compile("[^\\W\\d_A-Za-z\u00c0-\u024f\u1e00-\u1eff]+")  # letters that are not Latin
APOSTROPHES = "\u2018\u2019"


def words(prediction: str, references: Sequence[str]) -> float:
    """1 where the words are exactly those of a reference, capital letters and all, else 0.

    Parameters
    ----------
    prediction : str
    references : sequence of str, one or more

    Raises ValueError without a reference.
    """
    return float(any(prediction.split() == one.split() for one in _some(references)))


def exact(prediction: str, references: Sequence[str]) -> float:
    """1 where the answer is a reference but for capital letters and spaces around it, else 0.

    The rule "accuracy" of VLMEvalKit (arXiv 2407.11691). Raises ValueError without a reference.
    """
    said = prediction.strip().lower()
    return float(any(said == one.strip().lower() for one in _some(references)))


def relaxed(prediction: str, references: Sequence[str], *, tolerance: float = RELAXED_BY) -> float:
    """Relaxed accuracy: a number may be off by 5 % of the reference, anything else must be the same text.

    Raises ValueError: no reference, or a negative tolerance.

    Parameters
    ----------
    prediction : str
        The whole answer: "5", "-2.5e3", "5%" (which is 0.05). What is more than a number, as "5 apples" or "1,000", is
        text; a text must equal the reference but for capital letters. So is a reference of 0, of which nothing is 5 %.
    references : sequence of str, one or more
        The closest counts.
    tolerance : float, at least 0
        The largest allowed share of the reference.

    Returns
    -------
    float, 0 or 1

    Notes
    -----
    Masry et al. 2022 (arXiv 2203.10244), section 5.1; the reading of numbers is that of pix2struct's `metrics.py`, and
    so VLMEvalKit's. Here "nan" and "inf" are texts, not numbers.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    said = prediction.strip()
    return float(any(_nearly(said, one, tolerance) for one in _some(references)))


def anls(prediction: str, references: Sequence[str], *, threshold: float = ANLS_FROM) -> float:
    """Average normalised Levenshtein similarity of one answer: how much of the nearest reference is spelled right.

    Raises ValueError: no reference, or a threshold outside 0..1.

    Parameters
    ----------
    prediction : str
    references : sequence of str, one or more
        Compared without capital letters; runs of white space are one space.
    threshold : float, 0..1
        A similarity below it counts as 0.

    Returns
    -------
    float
        0, or from ``threshold`` to 1: one minus the edits over the length of the longer text.

    Notes
    -----
    Biten et al. 2019 (arXiv 1905.13648), section 3.5. At exactly the threshold the paper's formula gives 0; the scripts
    of DocVQA and VLMEvalKit give the similarity, and so does this.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in 0..1, got {threshold}")
    said = _plain(prediction)
    best = max(_similarity(said, _plain(one)) for one in _some(references))
    return best if best >= threshold else 0.0


def choice(prediction: str, references: Sequence[str], options: Mapping[str, str]) -> float:
    """1 where the answer chooses the reference's letter, else 0; see `chosen`.

    Raises ValueError: no reference, no options, or a reference that is none of them.

    Parameters
    ----------
    prediction : str
    references : sequence of str, one or more
        Letters of options.
    options : mapping of letter -> text, one or more
    """
    wrong = [one for one in _some(references) if one not in options]
    if wrong:
        raise ValueError(f"the right option is {wrong[0]!r}, but the options are {', '.join(options) or 'none'}")
    return float(chosen(prediction, options) in references)


def chosen(prediction: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer chooses: "B", "(B)", "B. two", "The answer is **B**", or "two".

    Raises ValueError: no options, or a letter that is none.

    Parameters
    ----------
    prediction : str
    options : mapping of letter -> text, one or more
        The letters are capitals A to Z.

    Returns
    -------
    str or None
        The only letter that stands as a word of its own, if it stands among the last four words; else the option whose
        text the answer is; else the only one whose text stands in the answer, if the answer is at most twice as long as
        the texts of all options. Otherwise None: "A or B" chooses nothing, nor does "A" in front of a long sentence,
        where it may be the article.

    Notes
    -----
    The rules by which VLMEvalKit reads answers without a language model (arXiv 2407.11691), and two more: in scripts
    without spaces a Latin letter is a word of its own, and an answer that is the text of an option chooses it, also
    where another option's text is part of it (10 beside 1).
    """
    letters = [letter for letter in options if re.fullmatch("[A-Z]", letter)]
    if not options or len(letters) < len(options):
        raise ValueError(f"options must be named by capital letters, got {', '.join(map(repr, options)) or 'none'}")
    said = _apart(prediction).translate(PUNCTUATION).split()
    named = [letter for letter in letters if letter in said]
    if len(named) == 1 and said.index(named[0]) >= len(said) - LAST_WORDS:
        return named[0]
    text = _plain(prediction)
    texts = {letter: _plain(option) for letter, option in options.items() if option.strip()}
    for test in (lambda option: option == text.rstrip("."), lambda option: option in text):
        found = [letter for letter, option in texts.items() if test(option)]
        if len(found) == 1:
            return found[0] if len(text) <= 2 * sum(map(len, texts.values())) else None
    return None


@dataclass(frozen=True)
class Reference:
    """What an answer is held against, and by which rule.

    Raises ValueError where the judge is unknown, or cannot judge by this.
    """

    judge: str  # a name of `JUDGES`, or `LANGUAGE_MODEL`
    answers: tuple[str, ...]  # the right ones; none only for a language model, which may find them in what it is asked
    options: Mapping[str, str] = field(default_factory=dict)  # letter -> text, for "choice"

    def __post_init__(self) -> None:
        if self.judge != LANGUAGE_MODEL:
            check_judge(self.judge)
            self.score("")

    def score(self, prediction: str) -> float | None:
        """0..1, or None where only a language model can tell."""
        if self.judge == LANGUAGE_MODEL:
            return None
        if self.judge == "choice":
            return choice(prediction, self.answers, self.options)
        return JUDGES[self.judge](prediction, self.answers)


def check_judge(name: str) -> None:
    """Raise ValueError for a judge that is not known."""
    if name not in (*JUDGES, LANGUAGE_MODEL):
        raise ValueError(f"no judge {name!r}; known: {', '.join((*JUDGES, LANGUAGE_MODEL))}")


def _some(references: Sequence[str]) -> Sequence[str]:
    if isinstance(references, str) or not references:
        raise ValueError(f"expected one or more right answers in a list, got {references!r}")
    return references


def _nearly(said: str, wanted: str, tolerance: float) -> bool:
    value, right = _number(said), _number(wanted)
    if value is None or not right:
        return said.lower() == wanted.lower()
    return abs(value - right) / abs(right) <= tolerance


def _number(text: str) -> float | None:
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(first: str, second: str) -> float:
    longer = max(len(first), len(second))
    return 1.0 if longer == 0 else 1 - _edits(first, second) / longer


def _edits(first: str, second: str) -> int:
    """Levenshtein distance, row by row of its table."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def _apart(text: str) -> str:
    """Latin letters apart from those of other scripts, and from punctuation that is not ASCII."""
    text = OTHER_SCRIPTS.sub(r" \g<0> ", unicodedata.normalize("NFKC", text))
    return "".join(
        " " if not one.isascii() and unicodedata.category(one)[0] == "P" and one not in APOSTROPHES else one
        for one in text
    )


JUDGES: dict[str, Callable[..., float]] = {
    "words": words,
    "exact": exact,
    "relaxed": relaxed,
    "choice": choice,
    "anls": anls,
}
