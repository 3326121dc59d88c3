"""What is stated of a benchmark: how its questions are asked, and by which rule its answers are judged."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass

from visionpulse_analysis.experiments.judging import LANGUAGE_MODEL

FIELDS = ("question", "options", "hint")


@dataclass(frozen=True)
class Stated:
    """Names of a prompt of `PROMPTS` and of a judge."""

    prompt: str
    judge: str


# As VLMEvalKit asks (`vlmeval/dataset`: image_vqa.py, image_mcq.py, charxiv.py), without the space at the end.
PROMPTS = {
    "question": "{question}",
    "short answer": "{question}\nAnswer the question using a single word or phrase.",
    "options": "Hint: {hint}\nQuestion: {question}\nOptions:\n{options}\n"
    "Please select the correct answer from the options above.",
}
BENCHMARKS = {
    "chartqa": Stated("short answer", "relaxed"),
    "infovqa": Stated("short answer", "anls"),
    "charxiv_reasoning": Stated("question", LANGUAGE_MODEL),
    "charxiv_descriptive": Stated("question", LANGUAGE_MODEL),
    "realworldqa": Stated("options", "choice"),
    "mmstar": Stated("options", "choice"),
}


def guess_benchmark(stem: str) -> str:
    """The benchmark that a file's name (without its ending) tells: "ChartQA_TEST" is chartqa.

    Raises ValueError where it tells none, or several.
    """
    parts = re.split("[^a-z0-9]+", stem.lower())
    found = [name for name in BENCHMARKS if set(name.split("_")) <= set(parts)]
    if len(found) != 1:
        several = f"could be {' or '.join(found)}" if found else f"names none of {', '.join(BENCHMARKS)}"
        raise ValueError(f"the file name {stem!r} {several}; say which with name:, or give prompt: and judge: too")
    return found[0]


def check_prompt(prompt: str) -> None:
    """Raise ValueError unless it is a name of `PROMPTS` or a text with {question} in it."""
    if prompt in PROMPTS:
        return
    try:
        found = [name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None]
    except ValueError as error:
        raise ValueError(f"prompt {prompt!r} is no template ({error}); a brace itself is written twice") from error
    if "question" not in found or set(found) - set(FIELDS):
        raise ValueError(
            f"prompt takes one of {', '.join(PROMPTS)}, or a text with {{question}} and perhaps {{options}} and "
            f"{{hint}}; got {prompt!r}"
        )


def ask(prompt: str, question: str, options: Mapping[str, str], hint: str | None) -> str:
    """A question as the model is given it.

    Parameters
    ----------
    prompt : str
        A name of `PROMPTS`, whose lines about a hint or options are left out where there are none; or a template.
    question : str
    options : mapping of letter -> text
    hint : str, optional
    """
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    template = PROMPTS.get(prompt, prompt)
    if prompt == "options":
        template = template if options else "Hint: {hint}\nQuestion: {question}"
        template = template if hint else template.removeprefix("Hint: {hint}\n")
    return template.format(question=question, options=listed, hint=hint or "").strip()
