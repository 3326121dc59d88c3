"""Installed packages: their version says what they do, unless somebody replaced a part of them."""

from __future__ import annotations

import functools
import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from types import (
    BuiltinFunctionType,
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
