"""Code as it is loaded: what a function does, and the names by which it reaches everything else."""

from __future__ import annotations

import builtins
import dis
import functools
import hashlib
import importlib
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

OWN = __name__.partition(".")[0]
MOCKS = "unittest.mock"
MADE_FOR_LIBRARIES = ("namedtuple_", "_cython_")  # modules that exist by name only
AT_HOME = {str, int, float, bool, tuple, list, type(None), ModuleType, BuiltinFunctionType, GetSetDescriptorType,
           MemberDescriptorType, MethodDescriptorType, WrapperDescriptorType}  # fmt: skip


def root_of(module: Any) -> str:
    """The first part of a module's name."""
    return module.partition(".")[0] if isinstance(module, str) else ""


@cache
def is_library(root: str) -> bool:
    """Whether a package is installed or Python's own, so that its version says what it does.

    This package is none, nor is one that is installed to be edited, or that only this session knows.
    """
    if root in ("", OWN, "__main__"):
        return False
    if root in sys.stdlib_module_names or root.startswith(MADE_FOR_LIBRARIES):
        return True
    place = _place(root)
    return place is not None and any(place.startswith(folder + os.sep) for folder in _folders())


def _place(root: str) -> str | None:
    module = sys.modules.get(root)
    if module is None:
        return None
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return None if file is None else os.path.realpath(file)


@cache
def _folders() -> tuple[str, ...]:
    named = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    known = [*named, *site.getsitepackages(), site.getusersitepackages()]
    return tuple(dict.fromkeys(os.path.realpath(folder) for folder in known if folder))


def is_foreign(function: FunctionType) -> bool:
    """Whether a function is neither Python's nor a library's, by the module whose names it reads."""
    return not is_library(root_of(function.__globals__.get("__name__")))


def replaced(roots: set[str]) -> Iterator[tuple[str, Any]]:
    """What does not belong into libraries: functions and callable objects of a user in their modules and classes.

    By place, in the order of the places: which modules a process has loaded, and when, makes no difference.
    """
    installed = set(filter(is_library, roots))
    loaded = sorted(name for name in sys.modules if root_of(name) in installed)
    for name in loaded:
        module = sys.modules[name]
        if isinstance(module, ModuleType):
            yield from sorted(_in_module(name, vars(module)), key=lambda found: found[0])


def _in_module(module: str, space: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    # Nearly everything is a function at home: this loop sees some 40,000 of them, and asks that first.
    for name, value in list(space.items()):
        kind = type(value)
        if kind is FunctionType:
            if value.__globals__ is not space and is_foreign(value):
                yield f"{module}.{name}", value
        elif kind is type or issubclass(kind, type):
            members = value.__dict__
            if members.get("__module__") != module:
                continue
            for key, member in list(members.items()):
                inner = type(member)
                if inner is FunctionType:
                    if member.__globals__ is not space and is_foreign(member):
                        yield f"{module}.{name}.{key}", member
                elif inner not in AT_HOME:
                    yield from ((f"{module}.{name}.{at}", one) for at, one in _inside(key, member) if _foreign(one))
        elif kind not in AT_HOME and _foreign(value):
            yield f"{module}.{name}", value


def _inside(key: str, member: Any) -> list[tuple[str, Any]]:
    """A member of a class as what can be called, or what a registry in it holds."""
    kind = type(member)
    if kind is dict:  # not one that imports when it is asked
        return [(f"{key}[{at!r}]", one) for at, one in list(member.items())]
    if kind in (staticmethod, classmethod):
        return [(key, member.__func__)]
    return [(key, member.fget if kind is property else member)]


def _foreign(value: Any) -> bool:
    if type(value) is FunctionType:
        return is_foreign(value)
    if type(value) is functools.partial:
        return _foreign(value.func)
    return _foreign_kind(type(value))


@cache
def _foreign_kind(kind: type) -> bool:
    """Whether objects of a class can be called, and the class is a user's or a stand-in that answers as it is told."""
    callable_objects = not issubclass(kind, type) and any("__call__" in vars(base) for base in kind.__mro__)
    return kind.__module__ == MOCKS or (callable_objects and not is_library(root_of(kind.__module__)))


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
    """What code, and the code inside it, names."""

    # Global and imported names, each with the attributes that are taken from it at once, as ``np.random.rand``
    outer: dict[tuple[str, ...], None]
    used: dict[str, None]  # all names
    texts: dict[str, None]  # among its constants


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
