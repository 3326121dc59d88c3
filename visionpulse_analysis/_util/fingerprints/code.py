"""Code as it is loaded: what a function does, and the names by which it reaches everything else."""

from __future__ import annotations

import builtins
import dis
import hashlib
import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from visionpulse_analysis._util.fingerprints.libraries import OWN, is_library, root_of

OUTER = {"LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME"}


class _ById:
    """A code object by its identity: comparing two of them by value costs more than hashing them."""

    def __init__(self, code: CodeType):
        self.code = code

    def __hash__(self) -> int:
        return id(self.code)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self.code is other.code


@cache  # code objects never change, and one that is kept here never leaves its place in memory to another
def _digest(given: _ById) -> str:
    code = given.code
    said = [_constant(one) for one in code.co_consts]
    # Neither the file nor line numbers: code that has only moved does what it did.
    parts = (code.co_name, code.co_code, said, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars,
             code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags,
             code.co_exceptiontable)  # fmt: skip
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


def digest_of(code: CodeType) -> str:
    """sha256 (hex) of what a code object, and those inside it, do."""
    return _digest(_ById(code))


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return digest_of(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(_constant, value)))}}}"
    return f"{type(value).__name__} {value!r}"


@dataclass(frozen=True)
class Names:
    """What code, and the code inside it, names.

    outer : global and imported names, each with the attributes that are taken from it at once, as ``np.random.rand``.
    used : all names. texts : among its constants.
    """

    outer: dict[tuple[str, ...], None]
    used: dict[str, None]
    texts: dict[str, None]


def names_of(code: CodeType) -> Names:
    """The names in a code object."""
    return _names(_ById(code))


@cache
def _names(given: _ById) -> Names:
    code = given.code
    outer: dict[tuple[str, ...], None] = {}
    chain: tuple[str, ...] = ()
    for one in dis.get_instructions(code):
        if one.opname in OUTER:
            outer |= {chain: None} if chain else {}
            chain = (str(one.argval),)
        elif chain and one.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain = (*chain, str(one.argval))
        elif chain and one.opname not in ("CACHE", "PRECALL", "EXTENDED_ARG"):
            outer, chain = {**outer, chain: None}, ()
    texts = dict.fromkeys(one for one in code.co_consts if isinstance(one, str))
    found = Names(outer, dict.fromkeys(code.co_names), texts)
    for inner in [_names(_ById(one)) for one in code.co_consts if isinstance(one, CodeType)]:
        found.outer.update(inner.outer)
        found.used.update(inner.used)
        found.texts.update(inner.texts)
    return found


def reached(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Everything outside that a function names: values by name, attributes of modules, environment variables.

    A module that is handed on instead of asked for an attribute counts with every name that the function uses, and a
    user's with all that is in it: more is taken in than runs, never less.
    """
    found, space = names_of(function.__code__), function.__globals__
    for name, *attributes in found.outer:
        value = space[name] if name in space else vars(builtins).get(name, _imported(name, space))
        while isinstance(value, ModuleType) and attributes and hasattr(value, attributes[0]):
            attribute = attributes.pop(0)
            name, value = f"{value.__name__}.{attribute}", getattr(value, attribute)
        if isinstance(value, ModuleType) and is_users(value):
            yield name, value
        elif isinstance(value, ModuleType):
            yield from _of_module(value, found.used, {id(value)})
        elif value is not None:
            yield name, value
    if {"environ", "getenv"} & found.used.keys():
        for text in found.texts:
            if text.isidentifier():
                yield f"environment {text}", os.environ.get(text)


def is_users(module: ModuleType) -> bool:
    """Whether a module is neither installed, nor Python's, nor of this package."""
    root = root_of(module.__name__)
    return root != OWN and not is_library(root)


def _of_module(module: ModuleType, names: Iterable[str], seen: set[int]) -> Iterator[tuple[str, Any]]:
    """What a function that uses these names takes from a module and from the modules in it."""
    space = vars(module)  # getattr could import what the code does not ask for
    for name in names:
        value = space.get(name)
        if isinstance(value, ModuleType):
            if id(value) not in seen:
                seen.add(id(value))
                yield from _of_module(value, names, seen)
        elif name in space:
            yield f"{module.__name__}.{name}", value


def _imported(name: str, space: dict[str, Any]) -> ModuleType | None:
    """The module that a function imports by this name; of its own package, it is loaded if it is not yet.

    Otherwise what the run imports, and another process may find changed, would be missing here.
    """
    root = root_of(space.get("__name__"))
    if name not in sys.modules and root_of(name) == root and not is_library(root):
        try:
            importlib.import_module(name)
        except ImportError:
            return None
    return sys.modules.get(name)
