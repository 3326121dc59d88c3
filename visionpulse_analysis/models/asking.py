"""How a model is asked: options beside picture and question, turns, and the text that a chat template makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, TemplateError, meta

from visionpulse_analysis._util.checks import plain_text, whole_number
from visionpulse_analysis.media.images import read_image
from visionpulse_analysis.media.videos import Clip, Video

Medium = np.ndarray | Clip  # a still, uint8 [row_px, col_px, 3], or a video

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


ROLES = ("system", "user", "assistant")
SOURCES = ("image", "video", "path", "url")  # names under which a part may hold its picture itself
FORMAT = '{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "..."}]}'


def read_medium(given: Any) -> Medium:
    """Read what may stand where an image may: an image, a `Video`, or one that was read before."""
    if isinstance(given, Clip):
        return given
    return given.read() if isinstance(given, Video) else read_image(given)


@dataclass(frozen=True)
class Turns:
    """What is asked, read.

    messages : the turns, each {"role", "content"}; contents are lists of parts, {"type": "text", "text"}, {"type":
    "image"} and {"type": "video"}. media : the pictures and videos, in the order of those parts. question : the text of
    the last turn. several : whether it was given as turns.
    """

    messages: list[dict[str, Any]]
    media: list[Medium]
    question: str
    several: bool = False

    @property
    def has_system(self) -> bool:
        return any(message["role"] == "system" for message in self.messages)

    def texts(self) -> Iterator[str]:
        """Every text that somebody typed."""
        for message in self.messages:
            yield from (part["text"] for part in message["content"] if part["type"] == "text")
            yield from (text for name, text in message.items() if name not in ("role", "content"))


def are_turns(question: Any) -> bool:
    """Whether a question is given as several turns: a list of messages."""
    return isinstance(question, list | tuple) and bool(question) and all(isinstance(one, Mapping) for one in question)


def plain_turns(question: Sequence[Any], pictures: int) -> tuple[list[dict[str, Any]], str]:
    """Turns to which so many pictures are given beside them: JSON-ready, and the text of the last.

    Raises ValueError as `read_turns`, and where a turn holds a picture itself.
    """
    messages = [_message(one, number) for number, one in enumerate(question)]
    parts = [part for message in messages for part in message["content"] if part["type"] != "text"]
    if any(len(part) > 1 for part in parts):
        raise ValueError("the turns hold pictures themselves; name them under image, and leave the parts without")
    if parts and len(parts) != pictures:
        raise ValueError(f"the turns show {len(parts)} pictures, and {pictures} are given; give one for each")
    return messages, _asked(messages)


def beside(messages: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The turns with the paths of pictures in them counted from a folder."""

    def placed(part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        return {
            name: str(folder / value) if name in SOURCES and isinstance(value, str) and "://" not in value else value
            for name, value in part.items()
        }

    return [
        {name: [placed(part) for part in value] if isinstance(value, list) else value for name, value in one.items()}
        for one in messages
    ]


def read_turns(images: Any, question: Any) -> Turns:
    """Read the pictures and the question or turns of one prompt.

    Parameters
    ----------
    images : image, Video, list of these, or None where the turns hold their pictures
        Those of the turns, in the order of the parts that hold none themselves; where no part is a picture or video,
        they stand at the beginning of the first turn of the user.
    question : str or list of dict

    Raises
    ------
    ValueError
        The question is empty or no text, the turns are not in the format, they end with another turn than the user's,
        or their pictures are more or fewer than those given.
    FileNotFoundError
        A path does not exist.
    """
    given = list(images) if isinstance(images, list | tuple) else [] if images is None else [images]
    if not are_turns(question):
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"the question is empty (got {question!r}); ask something")
        media = [read_medium(one) for one in given]
        content = [*map(_placed, media), {"type": "text", "text": unicode_text(question, "the question")}]
        return Turns([{"role": "user", "content": content}], _some(media), question)
    messages = [_message(one, number) for number, one in enumerate(question)]
    asked = _asked(messages)
    if not any(part["type"] != "text" for message in messages for part in message["content"]):
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = [{"type": "video" if isinstance(one, Video | Clip) else "image"} for one in given] + first[
            "content"
        ]
    media = _media(messages, given)
    return Turns(messages, _some(media), asked, several=True)


def _asked(messages: Sequence[dict[str, Any]]) -> str:
    """The text of the last turn, which is the user's; ValueError where it is another's or says nothing."""
    if messages[-1]["role"] != "user":
        raise ValueError(
            f"the last turn is the {messages[-1]['role']}'s; end with the user's, and give the beginning of the answer "
            "as prefix"
        )
    asked = "\n".join(part["text"] for part in messages[-1]["content"] if part["type"] == "text")
    if not asked.strip():
        raise ValueError(f"the question is empty (the last turn has no text: {messages[-1]!r}); ask something")
    return asked


def _some(media: list[Medium]) -> list[Medium]:
    if not media:
        raise ValueError("no image given; pass at least one")
    return media


def _placed(medium: Medium) -> dict[str, Any]:
    return {"type": "video" if isinstance(medium, Clip) else "image"}


def _message(given: Mapping[str, Any], number: int) -> dict[str, Any]:
    where = f"turn {number}"
    if given.get("role") not in ROLES or "content" not in given:
        raise ValueError(f"{where} must be a message with a role ({', '.join(ROLES)}) and content, such as {FORMAT}; "
                         f"got {dict(given)!r}")  # fmt: skip
    content = given["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list | tuple) or not all(isinstance(part, Mapping) for part in parts):
        raise ValueError(f"{where}: content must be a text or a list of parts, as in {FORMAT}; got {content!r}")
    more = {
        name: unicode_text(text, f"{where}: {name}") for name, text in given.items() if name not in ("role", "content")
    }
    return {"role": given["role"], "content": [_part(part, where) for part in parts], **more}


def _part(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = given.get("type")
    if kind == "text" and set(given) == {"type", "text"}:
        return {"type": "text", "text": unicode_text(given["text"], f"{where}: text")}
    held = [name for name in given if name != "type"]
    if kind in ("image", "video") and set(held) <= set(SOURCES) and len(held) <= 1:
        return dict(given)
    raise ValueError(
        f"{where}: a part must be {{'type': 'text', 'text': ...}}, {{'type': 'image'}} or {{'type': 'video'}}, the "
        f"last two perhaps with the picture itself under its type, or 'path'; got {dict(given)!r}"
    )


def _media(messages: Sequence[dict[str, Any]], given: Sequence[Any]) -> list[Medium]:
    """Read the pictures in the order of their parts, and leave the parts without them."""
    waiting, media = iter(given), []
    places = [(message["content"], number) for message in messages for number, part in enumerate(message["content"])
              if part["type"] != "text"]  # fmt: skip
    own = sum(len(content[number]) > 1 for content, number in places)
    if len(places) - own != len(given):
        raise ValueError(
            f"the turns have {len(places) - own} parts for pictures or videos that hold none themselves, and "
            f"{len(given)} are given; give one for each, in their order"
        )
    for content, number in places:
        part = content[number]
        held = next((part[name] for name in SOURCES if name in part), None)
        source = next(waiting) if held is None else held
        if isinstance(source, str) and "://" in source:
            raise ValueError(f"nothing is fetched from the network; save {source!r} as a file and give its path")
        if part["type"] == "video" and isinstance(source, str | PathLike):
            source = Video(Path(source))
        medium = read_medium(source)
        if _placed(medium)["type"] != part["type"]:
            raise ValueError(f"a part of type {part['type']!r} was given {source!r:.200}; exchange them, or the type")
        content[number] = _placed(medium)
        media.append(medium)
    return media


PROBE = "text{}qzx"  # no template writes this by itself


def written(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    template: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    probe: bool = False,
) -> str:
    """The turns as text, up to where the answer begins.

    Parameters
    ----------
    tokenizer : of transformers, with a chat template
    messages : as those of `Turns`
    template : another one than the tokenizer's
    arguments : passed to the template by name
    probe : bool
        Also ask the template what becomes of every text.

    Raises
    ------
    ValueError
        The template knows an argument not, fails, or leaves out one of the turns.
    """
    arguments = {} if arguments is None else dict(arguments)
    _check_known(tokenizer, template, arguments)
    text, plain = _render(tokenizer, messages, template, arguments)
    if probe:
        marked, texts = _probes(messages)
        shown = _apply(tokenizer, _as_text(marked) if plain else marked, template, arguments)
        for mark, role in texts.items():
            if mark not in shown:
                raise ValueError(
                    f"the model's chat template writes nothing of the {role}'s turn: it knows no such turn there; "
                    f"leave it out ({'system' if role == 'system' else 'turns'}), or say it in the question"
                )
    return text


def _render(
    tokenizer: Any, messages: Sequence[dict[str, Any]], template: str | None, arguments: dict[str, Any]
) -> tuple[str, bool]:
    """The text, and whether contents had to be plain texts."""
    try:
        text = _apply(tokenizer, messages, template, arguments)
    except ValueError:
        if all(message["role"] == "user" for message in messages):
            raise
        return _apply(tokenizer, _as_text(messages), template, arguments), True
    # A template that expects a text writes the list of parts as Python would.
    as_python = any(str(message["content"]) in text for message in messages if message["content"])
    return (_apply(tokenizer, _as_text(messages), template, arguments), True) if as_python else (text, False)


def _apply(tokenizer: Any, messages: Sequence[dict[str, Any]], template: str | None, arguments: dict[str, Any]) -> str:
    options: dict[str, Any] = {"chat_template": template, "tokenize": False, "add_generation_prompt": True}
    try:
        return tokenizer.apply_chat_template(list(messages), **options, **arguments)
    except (TemplateError, TypeError, KeyError, AttributeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"the model's chat template refuses these turns ({roles}): {error}") from error


def _as_text(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with contents that are a text wherever there is no picture in them."""
    plain = []
    for message in messages:
        parts = message["content"]
        only_text = all(part["type"] == "text" for part in parts)
        plain.append({**message, "content": "\n".join(part["text"] for part in parts) if only_text else parts})
    return plain


def _probes(messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The turns with a mark in the place of every text, and of whose turn each mark is."""
    texts: dict[str, str] = {}
    marked = []
    for message in messages:
        parts = []
        for part in message["content"]:
            if part["type"] == "text":
                mark = PROBE.format(len(texts))
                texts[mark] = message["role"]
                part = {"type": "text", "text": mark}
            parts.append(part)
        marked.append({**message, "content": parts})
    return marked, texts


def _check_known(tokenizer: Any, template: str | None, arguments: dict[str, Any]) -> None:
    if not arguments:
        return
    known = argument_names(tokenizer.get_chat_template(template))
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise ValueError(
            f"the model's chat template takes no {unknown[0]!r} (template={arguments!r}); "
            + (f"it takes {', '.join(sorted(known))}" if known else "it takes no arguments: leave template out")
        )


def argument_names(template: str) -> set[str]:
    """Names that a chat template may be given, beside those that the library gives it itself."""
    from transformers.utils import chat_template_utils  # options are checked without it

    environment: Environment = chat_template_utils._compile_jinja_template(template).environment  # pyright: ignore[reportPrivateUsage]
    names = meta.find_undeclared_variables(environment.parse(template)) - set(environment.globals)
    own = {"messages", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token"}
    return {name for name in names - own if not name.endswith("_token")}
