"""Public docstrings name every parameter and say what is raised."""

from __future__ import annotations

import inspect
import re
from importlib import import_module

import pytest

import visionpulse_analysis

ROOMS = (
    "measures",
    "statistics",
    "figures",
    "exchange",
    "costs",
    "calibration",
    "sampling",
    "relevance",
    "explorer",
    "checking",
    "traces",
    "pruners",
)
MODULES = ["visionpulse_analysis", *(f"visionpulse_analysis.{room}" for room in ROOMS)]
SECTION = re.compile(r"^(Parameters|Attributes)\n-+\n(.*?)(?=^\S[^\n]*\n-{3,}\n|\Z)", re.DOTALL | re.MULTILINE)


def public_of(module: str) -> dict[str, object]:
    """What a module offers: its ``__all__``, or what is written in it."""
    found = import_module(module)
    names = getattr(found, "__all__", [name for name, value in vars(found).items() if _written_in(value, module)])
    return {f"{module.removeprefix('visionpulse_analysis.')}.{name}": getattr(found, name) for name in names}


def _written_in(value: object, module: str) -> bool:
    named = inspect.isfunction(value) or inspect.isclass(value)
    return named and value.__module__ == module and not value.__name__.startswith("_")


def _is_made_or_called(value: object) -> bool:
    return inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, Exception))


def members_of(cls: type) -> dict[str, object]:
    """Public methods and properties that a class of the package defines itself."""
    own = {name: inspect.getattr_static(cls, name) for name in vars(cls) if not name.startswith("_")}
    kinds = (classmethod, staticmethod, property)
    return {
        name: value if isinstance(value, property) else getattr(cls, name)
        for name, value in own.items()
        if inspect.isfunction(value) or isinstance(value, kinds)
    }


PUBLIC = {name: value for module in MODULES for name, value in public_of(module).items() if _is_made_or_called(value)}
MEMBERS = {
    f"{name}.{member}": (value, member, found)
    for name, value in PUBLIC.items()
    if inspect.isclass(value)
    for member, found in members_of(value).items()
}


def listed(doc: str) -> set[str]:
    """Names at the head of the entries of Parameters and Attributes."""
    heads = [line.partition(" : ")[0] for part in SECTION.findall(doc) for line in part[1].splitlines()]
    return {name.strip().lstrip("*") for head in heads if head[:1] not in ("", " ") for name in head.split(",")}


def quoted(doc: str) -> set[str]:
    """Names in backquotes before the first section."""
    return set(re.findall(r"`(\w+)`", re.split(r"^\w+\n---", doc, flags=re.MULTILINE)[0]))


def parameters_of(value: object) -> set[str]:
    return set(inspect.signature(value).parameters) - {"self", "cls"}


def raises_itself(value: object) -> bool:
    if not inspect.isclass(value):
        return "raise ValueError" in inspect.getsource(inspect.unwrap(value))
    made = [vars(value)[name] for name in ("__init__", "__post_init__") if name in vars(value)]
    # The __init__ of a dataclass is made by the machine, and has no source.
    return any("raise ValueError" in inspect.getsource(one) for one in made if "<" not in one.__code__.co_filename)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_parameter_is_explained(name):
    value = PUBLIC[name]
    doc = inspect.getdoc(value) or ""
    # Results, which nobody makes by hand, may name their fields in a sentence.
    brief = inspect.isclass(value) and not name.startswith("visionpulse_analysis.")
    missing = parameters_of(value) - listed(doc) - (quoted(doc) if brief else set())
    assert not missing, f"the docstring of {name} does not list {sorted(missing)}"
    assert "ValueError" in doc or not raises_itself(value), f"the docstring of {name} does not say what it raises"


@pytest.mark.parametrize("name", MEMBERS)
def test_every_method_is_explained(name):
    cls, member, value = MEMBERS[name]
    doc = inspect.getdoc(getattr(cls, member)) or ""
    assert doc, f"{name} has no docstring"
    if isinstance(value, property):
        return
    missing = parameters_of(value) - listed(doc) - quoted(doc)
    assert not missing, f"the docstring of {name} does not name {sorted(missing)}"
    assert "ValueError" in doc or not raises_itself(value), f"the docstring of {name} does not say what it raises"


def test_every_public_name_is_looked_at():
    names = set(visionpulse_analysis.__all__) - {"__version__", "StoreVersionError"}
    assert {f"visionpulse_analysis.{name}" for name in names} <= set(PUBLIC)
    assert {"measures.jaccard", "statistics.correlation", "figures.save", "exchange.read_npz"} <= set(PUBLIC)
    assert {"visionpulse_analysis.Trace.save", "visionpulse_analysis.VLM.n_layers"} <= set(MEMBERS)
    assert listed("One.\n\nParameters\n----------\na, *b : int\n    c : no\n\nReturns\n-------\nd") == {"a", "b"}
