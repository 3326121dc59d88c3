"""Splitting a generated text into thinking and answer, by the marks that reasoning models write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Qwen, GLM, InternVL and others of the kind of R1, and what is trained to write like them; Kimi-VL; Magistral; Seed.
_NAMED = "think(?:ing)?|thought|reasoning|seed:think"
# The channels of gpt-oss, also as the language model of InternVL 3.5.
_CHANNEL = r"(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>{}(?:(?!<\|message\|>).)*<\|message\|>"
OPENING = rf"<(?:{_NAMED})>|◁think▷|\[THINK\]|{_CHANNEL.format('(?:analysis|commentary)')}"
CLOSING = rf"</(?:{_NAMED})>|◁/think▷|\[/THINK\]|{_CHANNEL.format('final')}"
ANSWER = r"answer|final_answer|response|conclusion"  # the last, of LLaVA-CoT
_THINK = re.compile(rf"(?P<open>{OPENING})|(?P<close>{CLOSING})", re.I)
_MARKED = re.compile(rf"<(?P<name>{ANSWER})>(?P<said>(?:(?!</?(?:{ANSWER})>).)*)(?P<whole></(?P=name)>)?", re.S | re.I)
_ANSWER_MARK = re.compile(rf"</?(?:{ANSWER})>", re.I)
_BOX = re.compile(r"<\|begin_of_box\|>(?P<said>.*?)(?:<\|end_of_box\|>|$)", re.S)  # GLM-V
_SPECIAL_TOKEN = re.compile(
    r"<[|\uff5c][^<>|\uff5c]*[|\uff5c]>|</?s>|<(?:bos|eos|pad|unk|end_of_turn|end_of_utterance|seed:eos)>|\[/?INST\]"
)


def split_text(text: str, prompt_tokens: Sequence[str] = (), marks: Iterable[str] = ()) -> tuple[str, str]:
    """Split a generated text into what was thought and what was answered.

    What stands behind the last mark that closes the thinking is the answer; of that, what the model marked as the
    answer: ``<answer>red</answer>``, ``<|begin_of_box|>red<|end_of_box|>``, ``\\boxed{red}``, also in one another.

    Parameters
    ----------
    text : str
    prompt_tokens : the end of the prompt may have opened the thinking
    marks : iterable of str
        The model's own end tokens and other special tokens, beside those of the usual forms.

    Returns
    -------
    thinking : str
        Without the marks; empty when the model did not think.
    answer : str
        Without special tokens; empty while the model still thinks: the thinking was opened, in the text or at the end
        of the prompt, and not closed, and no whole ``<answer>`` stands in it.

    Examples
    --------
    >>> split_text("<think>It is red.</think><answer>red</answer><|user|>")
    ('It is red.', 'red')
    """
    end = end_of_thinking(text, prompt_tokens)
    thinking, answer = text[:end], text[end:]
    # A model that begins to think again has answered before; what it thinks then is no part of the answer.
    again = _THINK.search(answer)
    if again is not None:
        thinking, answer = thinking + answer[again.end() :], answer[: again.start()]
    elif end == len(text) and not _closes(thinking):
        # It forgot to close its thinking.
        whole = [marked for marked in _MARKED.finditer(thinking) if marked["whole"] and marked["said"].strip()]
        if whole:
            thinking, answer = thinking[: whole[-1].start()], whole[-1][0]
    return _THINK.sub("", thinking).strip(), _without(_said(answer), marks)


def end_of_thinking(text: str, prompt_tokens: Sequence[str] = ()) -> int:
    """How many characters of a text are thinking, its marks included: 0 for none, all while the thinking goes on."""
    closing = [mark for mark in _THINK.finditer(text) if mark["close"]]
    if closing:
        return closing[-1].end()
    before = "".join(prompt_tokens).rstrip()
    asked = [mark for mark in _THINK.finditer(before) if mark.end() == len(before)]
    first = _THINK.search(text)
    opened = first is not None or bool(asked and asked[-1]["open"])
    return len(text) if opened else 0


def _closes(text: str) -> bool:
    return any(mark["close"] for mark in _THINK.finditer(text))


def _said(answer: str) -> str:
    """What is marked last as the answer, from the outer marks to the inner; all of it where nothing is."""
    for marked in (_MARKED, _BOX):
        found = [one for one in marked.finditer(answer) if one["said"].strip()]
        answer = found[-1]["said"] if found else answer
    return _boxed(_ANSWER_MARK.sub("", answer))


def _boxed(answer: str) -> str:
    r"""What the last ``\boxed{...}`` holds, braces in it included; the whole text where there is none."""
    filled = list(re.finditer(r"\\boxed\{(?!\s*\})", answer))
    if not filled:
        return answer
    begin = filled[-1].start()
    inside, depth = answer[begin + len(r"\boxed{") :], 1
    for place, letter in enumerate(inside):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return _text_of(inside[:place])
    return _text_of(inside)  # cut off


def _text_of(formula: str) -> str:
    r"""``\text{red}`` as ``red``."""
    whole = re.fullmatch(r"\s*\\(?:text|textbf|mathrm|mathbf)\{(.*)\}\s*", formula, re.S)
    return formula if whole is None else whole[1]


def _without(answer: str, marks: Iterable[str]) -> str:
    for mark in sorted(marks, key=len, reverse=True):
        answer = answer.replace(mark, "")
    return _SPECIAL_TOKEN.sub("", answer).strip()
