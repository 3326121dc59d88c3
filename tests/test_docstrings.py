"""Public docstrings name every parameter, say what comes back, of arrays with their axes, and what is raised."""

from __future__ import annotations

import inspect
import re
from functools import cached_property
from importlib import import_module

import pytest

import visionpulse_analysis

ROOMS = (
    "metrics.attention",
    "metrics.statistics",
    "figures",
    "traces.exchange",
    "metrics.flops",
    "decoding.calibration",
    "decoding.sampling",
    "decoding.patch_gradients",
    "explorer",
    "decoding.exactness",
    "decoding.interventions",
    "traces",
    "pruners",
    "media.patch_grid",
    "traces.store",
    "media.videos",
    "cli.notebooks.run",
    "metrics.nulls",
)
MODULES = ["visionpulse_analysis", *(f"visionpulse_analysis.{room}" for room in ROOMS)]
SECTIONS = re.compile(r"^(Parameters|Raises)\n-{3,}", re.MULTILINE)
RETURNS = re.compile(r"^(Returns|Yields)\n-{3,}", re.MULTILINE)
ARRAY = re.compile(r"Tensor|ndarray|DataArray")
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
    kinds = (classmethod, staticmethod, property, cached_property)
    return {
        name: value if isinstance(value, property | cached_property) else getattr(cls, name)
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
    if inspect.isclass(value) and "; made by `" in (inspect.getdoc(value) or ""):
        return set()
    return set(inspect.signature(value).parameters) - {"self", "cls"}


def source_of(value: object) -> str:
    """What runs when it is called; of a class, when one is made."""
    if not inspect.isclass(value):
        return inspect.getsource(inspect.unwrap(value))
    made = [vars(value)[name] for name in ("__init__", "__post_init__") if name in vars(value)]
    # The __init__ of a dataclass is made by the machine, and has no source.
    return "\n".join(inspect.getsource(one) for one in made if "<" not in one.__code__.co_filename)


def unsaid_errors(value: object, doc: str) -> set[str]:
    """Errors that are raised by name and that a docstring does not name."""
    raised = set(re.findall(r"\braise (\w+Error)\b", source_of(value))) - {"NotImplementedError"}
    return {name for name in raised if name not in doc}


def unsaid_result(value: object, doc: str) -> str:
    """What a docstring leaves open about the result: a docstring with sections has one for it, others name the axes."""
    result = str(inspect.signature(value).return_annotation)
    if result in ("None", "<class 'inspect._empty'>", "typing.Self"):
        return ""
    if SECTIONS.search(doc):
        return "" if RETURNS.search(doc) else "has sections, and none of them is Returns"
    return "does not name the axes of what it returns" if ARRAY.search(result) and "[" not in doc else ""


@pytest.mark.parametrize("name", PUBLIC)
def test_every_parameter_is_explained(name):
    value = PUBLIC[name]
    doc = inspect.getdoc(value) or ""
    # Results, which nobody makes by hand, may name their fields in a sentence.
    brief = inspect.isclass(value) and not name.startswith("visionpulse_analysis.")
    missing = parameters_of(value) - listed(doc) - (quoted(doc) if brief else set())
    assert not missing, f"the docstring of {name} does not list {sorted(missing)}"
    check_what_comes_out(name, value, doc)


@pytest.mark.parametrize("name", MEMBERS)
def test_every_method_is_explained(name):
    cls, member, value = MEMBERS[name]
    doc = inspect.getdoc(getattr(cls, member)) or ""
    assert doc, f"{name} has no docstring"
    if isinstance(value, property | cached_property):
        value = value.fget if isinstance(value, property) else value.func
    missing = parameters_of(value) - listed(doc) - quoted(doc) - {"arrays"}  # the latter are listed by their names
    assert not missing, f"the docstring of {name} does not name {sorted(missing)}"
    check_what_comes_out(name, value, doc)


def check_what_comes_out(name: str, value: object, doc: str) -> None:
    unsaid = unsaid_errors(value, doc)
    assert not unsaid, f"the docstring of {name} does not say that it raises {sorted(unsaid)}"
    open_ = "" if inspect.isclass(value) else unsaid_result(value, doc)
    assert not open_, f"the docstring of {name} {open_}"


def test_every_public_name_is_looked_at():
    names = set(visionpulse_analysis.__all__) - {"__version__", "StoreVersionError"}
    assert {f"visionpulse_analysis.{name}" for name in names} <= set(PUBLIC)
    some = {"metrics.attention.jaccard", "metrics.statistics.correlation", "figures.save", "traces.exchange.read_npz"}
    assert some <= set(PUBLIC)
    assert {"visionpulse_analysis.Trace.save", "visionpulse_analysis.VLM.n_layers"} <= set(MEMBERS)
    assert listed("One.\n\nParameters\n----------\na, *b : int\n    c : no\n\nReturns\n-------\nd") == {"a", "b"}
