"""Which tokens of a prompt are the words of the question."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from visionpulse_analysis.models.families import Prompt


def question_tokens(tokenizer: Any, prompt: Prompt) -> np.ndarray:
    """Positions in the unpadded prompt of the tokens that hold the question: int64 [token], without the chat template.

    Where the template changed the wording, so that the question is not found, all text after the last patch counts.
    """
    text_at = prompt.text_at
    ids = prompt.ids.numpy()[text_at].tolist()
    text, question = tokenizer.decode(ids), prompt.question.strip()
    begin = text.rfind(
        question, 0, len(text) - len(prompt.options.prefix or "")
    )  # what is put into its mouth is not asked
    if begin < 0:
        return text_at[text_at > prompt.grid.position.max(initial=-1)]
    # The length of the text before a token grows with the token, so its place is found by halving.
    counts = range(len(ids) + 1)
    first = bisect_right(counts, begin, key=lambda count: len(tokenizer.decode(ids[:count]))) - 1
    last = bisect_left(counts, begin + len(question), key=lambda count: len(tokenizer.decode(ids[:count])))
    return text_at[first:last]
