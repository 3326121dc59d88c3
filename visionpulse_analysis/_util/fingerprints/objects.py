"""One hash of objects and of all they lead to: fields, closures, classes and their code, hooks, weights."""

from __future__ import annotations

import builtins
import contextlib
import enum
import functools
import hashlib
import importlib
import logging
import os
import random
import re
import struct
import sys
import threading
import time
import types
import weakref
from collections import deque
from collections.abc import Collection, Iterable
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from functools import cache
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from visionpulse_analysis._util.fingerprints.code import (
    MOCKS,
    OWN,
    digest_of,
    is_foreign,
    is_library,
    is_users,
    names_of,
    reached,
    replaced,
    root_of,
)
from visionpulse_analysis._util.interrupts import PerThread

PIECE = 1 << 20  # bytes hashed at once on a CPU
WORDS = 1 << 22  # of 32 bits, weighed at once on another device


def every_byte(tensors: Iterable[torch.Tensor]) -> str:
    """A quick hash of tensors that reads every byte; it means something in this process only.

    On a CPU by Python's keyed 64-bit hash of bytes, five times as fast as sha256; on another device by two sums of its
    words, each times a random number of 64 bits, so that nothing but the sums is copied.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} {tensor.device}".encode())
        parts = _pieces(tensor) if tensor.device.type == "cpu" else _sums(tensor)
        digest.update(repr(parts).encode())
    return digest.hexdigest()


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """All bytes of a tensor in the order of its axes, on the host."""
    values: Any = _flat(tensor).cpu().numpy()
    return memoryview(values).cast("B")


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return whole.reshape(-1).view(torch.uint8)


def _pieces(tensor: torch.Tensor) -> list[int]:
    raw = bytes_of(tensor)
    return [hash(bytes(raw[start : start + PIECE])) for start in range(0, len(raw), PIECE)]


def _sums(tensor: torch.Tensor) -> list[list[int]]:
    flat = _flat(tensor)
    words = torch.nn.functional.pad(flat, (0, -len(flat) % 4)).view(torch.int32)
    # Numbers of 32 bits times random ones of 64: two tensors that differ share both sums once in 2 ** 64.
    weights = _weights(str(tensor.device))
    sums = [(part.long() * weights[:, : len(part)]).sum(dim=1) for part in words.split(WORDS)]
    return torch.stack(sums).tolist() if sums else []


@cache
def _weights(device: str) -> torch.Tensor:
    drawn = np.random.default_rng().integers(-(2**63), 2**63, (2, WORDS), dtype=np.int64)
    return torch.from_numpy(drawn).to(device)


class Unknown(TypeError):
    """Something has a state that cannot be read, so that no hash can vouch for it; the message says what, and where."""


class Remembered(dict):
    """What a run finds out once and keeps for the next one, such as timings: no part of what its result depends on."""


def fingerprint(*values: Any, hashed: Iterable[torch.Tensor] = (), installed: bool = True) -> str:
    """Hash everything that these objects are and lead to.

    Functions and classes count by the code that is loaded, with their defaults, closures, and the functions, classes
    and values that they name, wherever those live; a library's by name, unless somebody replaced a part of it. Objects
    count by class and state, modules of torch with their hooks, arrays and tensors by every byte. Raises Unknown: an
    object has a state that cannot be read: an open file, a generator, a compiled extension's object.

    Parameters
    ----------
    *values : any
    hashed : tensors
        Known to the caller by their bytes: they count by name, shape and type.
    installed : look also for what somebody replaced in the libraries that take part; it takes a tenth of a second

    Returns
    -------
    str
        sha256 (hex); the same in every process.
    """
    return _Walk({id(tensor) for tensor in hashed}).hash(values, installed)


def replaced_parts(*values: Any) -> str:
    """Hash what somebody replaced in the libraries that take part in what these objects do.

    The same hash wherever nothing is replaced, so that it can be part of the keys of several objects. Objects that
    `fingerprint` knows nothing of are left out. Raises Unknown: of something that was replaced, as `fingerprint`.
    """
    libraries: set[str] = set()
    for value in values:
        walk = _Walk(())
        with contextlib.suppress(Unknown):
            walk.hash([value], installed=False)
            libraries |= walk.libraries
    return fingerprint(list(replaced(libraries)), installed=False)


ATOMS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
PLAIN = (PurePath, re.Pattern, range, slice, date, datetime, time_of_day, timedelta, np.dtype, torch.dtype,
         torch.device, torch.layout, torch.memory_format, torch.Size)  # fmt: skip
# They say who may run or what is told, not what is computed.
STATELESS = (type(threading.Lock()), type(threading.RLock()), threading.Event, threading.Condition, logging.Logger,
             weakref.ref, weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet,
             Remembered, PerThread)  # fmt: skip
BUILT_IN = (types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodWrapperType, types.MethodDescriptorType,
            types.ClassMethodDescriptorType, types.GetSetDescriptorType,
            types.MemberDescriptorType, np.ufunc)  # fmt: skip
# Bars and stop buttons: what they hold, such as a lock of this thread, changes no result.
BESIDE = {"visionpulse_analysis._util.interrupts", "visionpulse_analysis._util.progress"}
NOT_STATE = {"_original_object_hash"}  # of GenerationConfig: Python's own hash, another one in every process
# A user's code that takes from outside of this process what no hash of the process can tell: by what it calls,
OUTSIDE = {called: why for why, several in {
    "reads files": (builtins.open, np.load, torch.load),
    "draws at random": (os.urandom,),
    "makes a generator, which may start anywhere": (np.random.default_rng, np.random.RandomState, random.Random),
    "runs text": (builtins.eval, builtins.exec),
    "takes names made as it runs": (builtins.globals, builtins.__import__, importlib.import_module),
    "reads the clock": (time.time, time.perf_counter, time.monotonic),
}.items() for called in several}  # fmt: skip
# by the library it comes from,
OUTSIDE_LIBRARIES = {"secrets": "draws at random", "uuid": "draws at random", "subprocess": "runs programs",
                     "socket": "asks the network", "urllib": "asks the network", "requests": "asks the network",
                     "tempfile": "reads files", "shutil": "reads files", "glob": "reads files"}  # fmt: skip
# or by names that many libraries give to such a thing.
OUTSIDE_NAMES = {
    **dict.fromkeys(("open", "read_text", "read_bytes", "loadtxt", "genfromtxt", "fromfile", "memmap", "from_file",
                     "load_file", "safe_open", "from_pretrained", "imread", "read_csv", "read_json", "read_parquet",
                     "read_pickle", "read_image", "listdir", "scandir", "iterdir", "rglob", "getmtime"), "reads files"),
    **dict.fromkeys(("now", "utcnow", "today", "time_ns", "perf_counter_ns", "monotonic_ns"), "reads the clock"),
    **dict.fromkeys(("popen", "system", "check_output"), "runs programs"),
    "SystemRandom": "draws at random",
    "input": "asks somebody",  # by its name: a notebook's kernel puts a method of its own in the place of Python's
}  # fmt: skip
# What a class holds beside its members, some of it noted by Python later, or called when a class is made.
NO_MEMBERS = {"__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "_abc_impl",
              "__static_attributes__", "__abstractmethods__", "__parameters__", "__orig_bases__", "__init_subclass__",
              "__set_name__", "__annotations__", "__annotate__", "__annotate_func__",
              "__annotations_cache__", "__slotnames__"}  # fmt: skip


class _Walk:
    """Numbers objects as they are met, breadth first, and hashes for each what it is and the numbers it leads to."""

    def __init__(self, hashed: Collection[int]):
        self.hashed = hashed
        self.digest = hashlib.sha256()
        self.numbers: dict[int, int] = {}
        self.waiting: deque[tuple[Any, str]] = deque()
        self.alive: list[Any] = []  # else an object made on the way could die, and its place be taken
        self.libraries: set[str] = set()  # that take part

    def hash(self, values: Iterable[Any], installed: bool) -> str:
        self.put("given", *(self.part(value, f"argument {n}") for n, value in enumerate(values)))
        self.follow()
        if installed:
            self.put("replaced in libraries", *self.parts(replaced(self.libraries), "a library"))
        self.follow()
        return self.digest.hexdigest()

    def follow(self) -> None:
        """Describe what was named and not yet described."""
        while self.waiting:
            value, where = self.waiting.popleft()
            try:
                self.describe(value, where)
            except (RecursionError, AttributeError, ValueError, RuntimeError, NotImplementedError) as error:
                raise Unknown(f"{where} ({type(value).__name__}): {error}") from error

    def put(self, *words: str) -> None:
        self.digest.update(("\0".join(words) + "\n").encode("utf-8", "surrogatepass"))

    def part(self, value: Any, where: str) -> str:
        """How another object names this one: as it is written where that says it all, else by its number."""
        if type(value) in ATOMS:
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, PLAIN):
            return f"{type(value).__name__} {value!r} {value.flags if isinstance(value, re.Pattern) else ''}"
        if isinstance(value, enum.Enum) and is_library(root_of(type(value).__module__)):
            return str(value)
        if type(value) in (tuple, frozenset):
            # By value: whether two equal tuples are one object differs from process to process.
            members: Any = value
            parts = [self.part(one, f"{where}[{n}]") for n, one in enumerate(members)]
            return f"{type(value).__name__}({', '.join(parts if type(value) is tuple else sorted(parts))})"
        if isinstance(value, np.ndarray | np.generic):
            # A masked array holds more than numbers.
            more = self.parts(getattr(value, "__dict__", {}).items(), where)
            return " ".join([f"{type(value).__name__} {self.array(np.asarray(value), where)}", *more])
        if isinstance(value, types.MethodType):
            return f"method({self.part(value.__func__, where)}, {self.part(value.__self__, where)})"
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.numbers)
            self.waiting.append((value, where))
            self.alive.append(value)
        return f"#{self.numbers[id(value)]}"

    def parts(self, named: Iterable[tuple[Any, Any]], where: str) -> list[str]:
        return [f"{self.part(name, where)}: {self.part(value, f'{where}.{name}')}" for name, value in named]

    def array(self, value: np.ndarray, where: str) -> str:
        if value.dtype.hasobject:
            return f"array {value.shape} {[self.part(one, where) for one in value.ravel().tolist()]}"
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"array {value.dtype.str} {value.dtype.descr if value.dtype.names else ''} {value.shape} {content}"

    def describe(self, value: Any, where: str) -> None:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if any(value is one for one in (os.environ, sys.modules, sys.path, sys.stdout, sys.stderr)):
            self.put("of the process")  # what code takes from it is found by name, and what it says changes nothing
        elif isinstance(value, types.FunctionType) and value.__module__ in BESIDE:
            self.put("beside the result", value.__qualname__)
        elif isinstance(value, types.FunctionType):
            self.function(value, where)
        elif isinstance(value, type):
            self.type(value, where)
        elif isinstance(value, types.ModuleType):
            said = self.parts(_of_users_module(value), where) if is_users(value) else []
            self.put("module", value.__name__, *said)
        elif isinstance(value, BUILT_IN):
            self.built_in(value, where)
        elif isinstance(value, staticmethod | classmethod):
            self.put(kind, self.part(value.__func__, where))
        elif isinstance(value, property):
            self.put(kind, *(self.part(one, where) for one in (value.fget, value.fset, value.fdel)))
        elif isinstance(value, functools.cached_property):
            self.put(kind, self.part(value.func, where))
        elif isinstance(value, functools.partial):
            said = self.parts(value.keywords.items(), where)
            self.put(kind, self.part(value.func, where), *(self.part(one, where) for one in value.args), *said)
        elif hasattr(value, "__wrapped__") and hasattr(value, "cache_info"):  # functools.cache
            self.put("cache", self.part(value.__wrapped__, where))
        elif isinstance(value, contextlib._GeneratorContextManager):  # used as a decorator: made anew at every call
            self.put(kind, *(self.part(one, where) for one in (value.func, value.args)))
            self.put("options", *self.parts(value.kwds.items(), where))
        elif isinstance(value, list | set | deque) and type(value).__module__ in ("builtins", "collections"):
            listed = [self.part(one, f"{where}[{n}]") for n, one in enumerate(value)]
            self.put(kind, *(sorted(listed) if isinstance(value, set) else listed))
        elif type(value) in (dict, types.MappingProxyType):
            self.put(kind, *self.parts(dict(value).items(), where))
        elif isinstance(value, STATELESS):
            self.put(kind)
        elif isinstance(value, torch.Tensor):
            self.tensor(value, where)
        elif isinstance(value, torch.Generator):
            self.put(kind, self.part(value.get_state().numpy(), where))
        elif isinstance(value, struct.Struct):
            self.put(kind, value.format)
        elif isinstance(value, torch.nn.Module):
            self.put("object", self.part(type(value), where), *self.parts(_module_state(value), where))
        elif root_of(type(value).__module__) in ("typing", "types") and not hasattr(value, "__dict__"):
            self.put(kind, repr(value))
        else:
            self.object(value, where)

    def function(self, function: types.FunctionType, where: str) -> None:
        where = f"{function.__module__}.{function.__qualname__}"
        cells = []
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                cells.append(self.part(cell.cell_contents, f"{where}, its variable {name}"))
            except ValueError:  # not yet set
                cells.append("empty")
        if not is_foreign(function):
            self.libraries.add(root_of(function.__module__))
            self.put("library function", where, digest_of(function.__code__), *cells)
            return
        options = self.parts((function.__kwdefaults__ or {}).items(), where)
        self.put("function", digest_of(function.__code__), self.part(function.__defaults__, where), *options, *cells)
        self.put("has", *self.parts(vars(function).items(), where))
        outside = [] if root_of(function.__globals__.get("__name__")) == OWN else self.outside(function, where)
        found = [*outside, *reached(function)]
        self.put("reaches", *(f"{name}: {self.part(value, f'{where}, {name}')}" for name, value in found))

    def outside(self, function: types.FunctionType, where: str) -> list[tuple[str, Any]]:
        """What a user's function reads of the environment; raises Unknown where it takes more from outside."""
        used = names_of(function.__code__).used.keys()
        why = next((OUTSIDE_NAMES[name] for name in used if name in OUTSIDE_NAMES), None)
        for _, value in reached(function):
            if isinstance(value, types.BuiltinFunctionType | types.FunctionType | types.MethodType | type):
                why = why or OUTSIDE_LIBRARIES.get(root_of(value.__module__))
            why = why or next((OUTSIDE[one] for one in OUTSIDE if one is value), None)  # not all can be hashed
        if why is not None:
            raise Unknown(f"{where} {why}")
        return [("environment", dict(os.environ))] if {"environ", "getenv"} & used else []

    def type(self, cls: type, where: str) -> None:
        name = f"{cls.__module__}.{cls.__qualname__}"
        if is_library(root_of(cls.__module__)):
            self.put("library class", name, *(_loaded_code(base) for base in cls.__mro__))
            self.libraries |= {root_of(base.__module__) for base in cls.__mro__}
            return
        members = [(key, value) for key, value in vars(cls).items() if key not in NO_MEMBERS]
        said = [self.part(base, name) for base in cls.__bases__]
        self.put("class", self.part(type(cls), name), *said, *self.parts(members, name))

    def built_in(self, value: Any, where: str) -> None:
        owner = getattr(value, "__self__", None)
        name = getattr(value, "__qualname__", getattr(value, "__name__", repr(value)))
        bound = [] if owner is None or isinstance(owner, types.ModuleType) else [self.part(owner, where)]
        self.put("built in", type(value).__name__, str(getattr(value, "__module__", "")), name, *bound)

    def tensor(self, tensor: torch.Tensor, where: str) -> None:
        kind = type(tensor)
        said = ["tensor", str(tensor.dtype), str(tuple(tensor.shape)), str(tensor.device)]
        if kind not in (torch.Tensor, torch.nn.Parameter):
            said.append(self.part(kind, where))
        hooks = getattr(tensor, "_backward_hooks", None) or {}
        said += [self.part(hook, where) for hook in hooks.values()]
        if tensor.is_meta:
            raise Unknown(f"{where}: a tensor without data, on the meta device")
        if id(tensor) not in self.hashed:
            said.append(hashlib.sha256(bytes_of(tensor)).hexdigest())
        self.put(*said)

    def object(self, value: Any, where: str) -> None:
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if kind.__module__ == MOCKS:
            raise Unknown(f"{where}: a {name} answers as it is told to, which cannot be read")
        if _is_made_by_python(kind) and not _slots(kind) and hasattr(value, "__dict__"):
            state: Any = [pair for pair in vars(value).items() if pair[0] not in NOT_STATE]
        else:
            state = self.reduced(value, where)
        self.put("object", self.part(kind, where), *self.parts(state, where))

    def reduced(self, value: Any, where: str) -> Iterable[tuple[Any, Any]]:
        """What pickle would keep of an object whose state lies outside of a ``__dict__``."""
        try:
            found = value.__reduce_ex__(4)
        except Exception as error:  # of any type: the object's own code says no
            name = f"{type(value).__module__}.{type(value).__qualname__}"
            raise Unknown(f"{where}: the state of a {name} cannot be read ({error})") from error
        if isinstance(found, str):
            return [("", found)]
        made, given, *rest = found
        lists = [list(one) if one is not None and n in (1, 2) else one for n, one in enumerate(rest)]
        return [("made by", made), ("given", tuple(given)), *enumerate(lists)]


def _loaded_code(cls: type) -> str:
    """The code of a library's class, and for a part of a model the functions beside it: people edit these files."""
    module = sys.modules.get(cls.__module__)
    spaces: list[Any] = [vars(cls)]
    if issubclass(cls, torch.nn.Module) and module is not None and root_of(cls.__module__) != "torch":
        spaces.append(vars(module))
    named = [(name, one) for space in spaces for name, one in space.items() if isinstance(one, types.FunctionType)]
    digest = hashlib.sha256()
    for name, value in sorted(named, key=lambda pair: pair[0]):
        digest.update(f"{name} {value.__module__}.{value.__qualname__} {digest_of(value.__code__)}\n".encode())
    return digest.hexdigest()


def _of_users_module(module: types.ModuleType) -> Iterable[tuple[str, Any]]:
    """All that a module of a user holds: who is handed it may ask for any of it, by names made as the code runs."""
    return [(name, value) for name, value in vars(module).items() if not name.startswith("__")]


def _is_made_by_python(kind: type) -> bool:
    """Whether the ``__dict__`` of objects is all there is: `itemgetter` and `Random` have a state in C as well."""
    return kind.__basicsize__ == _Plain.__basicsize__ and kind.__itemsize__ == 0


class _Plain:
    pass


def _slots(kind: type) -> bool:
    return any(vars(base).get("__slots__") for base in kind.__mro__)


def _module_state(module: torch.nn.Module) -> Iterable[tuple[str, Any]]:
    """Everything in a module of torch; its hooks in order, without the numbers that every process deals out anew."""
    state = dict(vars(module))
    for name, value in state.items():
        if isinstance(value, dict) and all(isinstance(key, int) for key in value):
            hooks = state.get(name.partition("_with_kwargs")[0].partition("_always_called")[0], value)
            yield name, [list(hooks).index(key) if value is not hooks else value[key] for key in value]
        else:
            yield name, value


def global_hooks() -> dict[str, list[Any]]:
    """Hooks that torch calls for every module there is."""
    space = vars(torch.nn.modules.module)
    found = {name: value for name, value in space.items() if name.startswith("_global") and isinstance(value, dict)}
    return {name: list(value.values()) for name, value in sorted(found.items())}
