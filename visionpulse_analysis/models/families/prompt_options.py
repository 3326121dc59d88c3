"""How a model is asked beside picture and question: limits of pictures, system prompt, prefix, template arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from visionpulse_analysis._util.checks import plain_text, whole_number

# What decides what `apply_chat_template` returns, which is not for its caller's caller.
TAKEN = {
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages",
    "padding", "processor_kwargs", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize",
    "tokenizer_kwargs", "truncation",
}  # fmt: skip


@dataclass(frozen=True)
class PromptOptions:
    """How a model is asked, beside picture and question; what is left out is as the model's own files have it.

    Parameters
    ----------
    min_pixels, max_pixels : int, at least 1, optional
        Height times width at which the model reads a picture, or each frame of a video: a smaller one is enlarged, a
        larger one shrunk, as far as its shape and whole patches allow. Where only one is given, it goes before the
        model's own limit on the other side. Of models that read pictures at their own size (Qwen, GLM).
    max_tiles : int, at least 1, optional
        Tiles (crops) that a picture is cut into at most, an overview of it not counted; 1 where it is not cut. In place
        of the model's own number, more or fewer; of Idefics3 and SmolVLM fewer only.
    system : str, optional
        Written as the system's turn before all others; "" writes none where the model would be asked with one.
    prefix : str, optional
        The answer begins with this text, as it stands: part of the prompt, and of no step of the trace. "" for none.
    template : dict
        Passed to the chat template by name, such as ``{"enable_thinking": False}``; plain values (JSON).

    Raises
    ------
    ValueError
        A value is of another type or out of range, or a template argument is not the caller's to set.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    max_tiles: int | None = None
    system: str | None = None
    prefix: str | None = None
    template: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels", "max_tiles"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole_number(getattr(self, name), name, least=1))
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels must be at most max_pixels, got {self.min_pixels} and {self.max_pixels}; exchange them"
            )
        for name in ("system", "prefix"):
            text = plain_text(getattr(self, name))
            if text is not None:
                object.__setattr__(self, name, unicode_text(text, name))
        object.__setattr__(self, "template", _arguments({} if self.template is None else self.template))

    @classmethod
    def of(cls, given: Any) -> PromptOptions:
        """What the ``given`` PromptOptions, dict with some of its fields, or None means; ValueError for others."""
        if isinstance(given, PromptOptions):
            return given
        if given is None:
            return cls()
        known = [one.name for one in fields(cls)]
        if not isinstance(given, Mapping):
            raise ValueError(
                f"prompt_options must be a PromptOptions or a dict with some of {', '.join(known)}, got {given!r}"
            )
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"prompt_options has no {unknown[0]!r}; known: {', '.join(known)}")
        return cls(**given)

    def over(self, below: PromptOptions) -> PromptOptions:
        """These options, and where they say nothing those `below`; template arguments one by one."""
        stated = {**below.to_dict(), **self.to_dict()}
        for one, other in (("min_pixels", "max_pixels"), ("max_pixels", "min_pixels")):
            # A limit given now goes before one on the other side that was given before.
            if getattr(self, one) is not None and getattr(self, other) is None and other in stated:
                within = min if other == "min_pixels" else max
                stated[other] = within(stated[other], stated[one])
        return PromptOptions(**{**stated, "template": {**below.template, **self.template}})

    def to_dict(self) -> dict[str, Any]:
        """What is given, by name, JSON-ready; {} where nothing is."""
        named = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in named.items() if value is not None and value != {}}

    @property
    def limits(self) -> dict[str, int]:
        """Those that decide into which patches a picture is cut."""
        return {
            name: value for name, value in self.to_dict().items() if name in ("min_pixels", "max_pixels", "max_tiles")
        }


def unicode_text(text: Any, name: str) -> str:
    """Return a text; ValueError for anything else, and for what is no valid Unicode."""
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a text, got {text!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not valid Unicode text: {text!r}") from None
    return text


def _arguments(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ValueError(
            f"template must be a dict of arguments by name, such as {{'enable_thinking': False}}, got {given!r}"
        )
    taken = sorted(TAKEN & set(given))
    if taken:
        raise ValueError(
            f"template cannot set {taken[0]!r}, which decides how the prompt is made; give arguments of the model's "
            "own chat template, and set vlm.tokenizer.chat_template for another template"
        )
    try:
        same = json.loads(json.dumps(dict(given), allow_nan=False)) == dict(given)
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(f"template arguments must be plain values (None, bool, numbers, texts, lists), got {given!r}")
    return dict(given)
