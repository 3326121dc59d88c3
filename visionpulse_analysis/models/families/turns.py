"""What is asked: one question about some pictures, or several turns in the chat format of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from visionpulse_analysis.media.videos import Clip, Video
from visionpulse_analysis.models.families.cells import Medium, read_medium
from visionpulse_analysis.models.families.prompt_options import unicode_text

ROLES = ("system", "user", "assistant")
SOURCES = ("image", "video", "path", "url")  # names under which a part may hold its picture itself
FORMAT = '{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "..."}]}'


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
