"""Dataclasses made from plain data (YAML, JSON) with errors that name the key given and the keys known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from visionpulse_analysis._util.checks import NAMES, did_you_mean, expected, fits

T = TypeVar("T")
QUOTES = "a text that YAML takes for something else (no, yes, on, off, null, a number, a date) needs quotes"
_WORDS = {**NAMES, str: "text"}


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ValueError(f"the key {min(twice)!r} stands twice, line {node.start_mark.line + 1} and after")
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """Parse YAML; raises ValueError with the line of the mistake, also for a key that stands twice."""
    try:
        loader = _UniqueKeys(text)  # a SafeLoader: data only, no objects
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(f"no valid YAML: {' '.join(str(error).split())}") from error


def check_keys(given: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    """Raise ValueError for the first key that is not known, with the closest and all that are."""
    known = list(known)
    for key in given:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}.{did_you_mean(key, known)} Known: {', '.join(known)}")


def from_plain(cls: type[T], given: Any, where: str) -> T:
    """Build a dataclass from a mapping; inner dataclasses are built from inner mappings.

    Parameters
    ----------
    cls : dataclass
    given : mapping
    where : str
        What is being read, for the errors: "sweep.yaml: samples".

    Raises
    ------
    ValueError
        Not a mapping; a key is unknown, missing, or its value of the wrong type or refused by the dataclass.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: expected key: value lines, got {given!r}")
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls) if field.init}  # pyright: ignore[reportArgumentType]
    check_keys(given, known, where)
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in required if name not in given]
    if missing:
        raise ValueError(f"{where}: {', '.join(map(repr, missing))} is missing; known: {', '.join(known)}")
    values = {name: _value(hints[name], value, f"{where}: {name}") for name, value in given.items()}
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    words = [word for part in get_args(hint) if get_origin(part) is Literal for word in get_args(part)]
    if isinstance(value, str) and value in words:
        return value
    inner = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
    if inner is not None and not (value is None and type(None) in get_args(hint)):
        return from_plain(inner, value, where)  # pyright: ignore[reportArgumentType]
    if not fits(value, hint):
        text = str in (hint, *get_args(hint)) and not isinstance(value, str | list | Mapping)
        advice = f"; {QUOTES}" if text else ""
        raise ValueError(f"{where}: expected {expected(hint, _WORDS)}, got {value!r} ({type(value).__name__}){advice}")
    return value
