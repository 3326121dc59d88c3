"""Turns as the text that a chat template makes of them, with nothing of what was given left out in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, TemplateError, meta
from transformers.utils import chat_template_utils

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
    environment: Environment = chat_template_utils._compile_jinja_template(template).environment  # pyright: ignore[reportPrivateUsage]
    names = meta.find_undeclared_variables(environment.parse(template)) - set(environment.globals)
    own = {"messages", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token"}
    return {name for name in names - own if not name.endswith("_token")}
