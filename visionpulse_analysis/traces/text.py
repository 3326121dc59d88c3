"""Splitting a generated text into thinking and answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPECIAL_TOKEN = re.compile(r"<\|[^<>|]*\|>|</?s>|<(?:bos|eos|pad|unk|end_of_turn|end_of_utterance)>")


def split_text(text: str, prompt_tokens: Sequence[str] = ()) -> tuple[str, str]:
    """The text before and after ``</think>``.

    Returns
    -------
    thinking : str
        Without the marks; empty when the model did not think.
    answer : str
        Without special tokens; empty while the model still thinks: ``<think>`` was opened, in the text or at
        the end of the prompt, and not closed.
    """
    thinking, closed, answer = text.partition("</think>")
    opened = "<think>" in text or "<think>" in "".join(prompt_tokens[-3:])
    if not closed and not opened:
        thinking, answer = "", text
    return thinking.replace("<think>", "").strip(), _SPECIAL_TOKEN.sub("", answer).strip()
