"""What a sweep is asked to do: the YAML file as checked dataclasses; errors name the key and those known.

>>> config = SweepConfig.from_plain({"out": "runs/one", "samples": {"scenes": {"n": 3}}}, folder=Path("."))
>>> config.models[0].name, config.pruners[0].label, config.seeds
('scenes', 'dense', [0])
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from visionpulse_analysis._util.checks import NAMES, did_you_mean, expected, fits
from visionpulse_analysis.experiments.sweeps.benchmarks import Benchmark
from visionpulse_analysis.models.asking import PromptOptions
from visionpulse_analysis.models.finding import BUNDLED, is_path
from visionpulse_analysis.models.sample import Sample as Sampling
from visionpulse_analysis.pruners import list_pruners, make_pruner
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.testbed.scenes.questions import TASKS


@dataclass(frozen=True)
class Scenes:
    """Generated scenes with one question each, the tasks in turn; those of `studies.samples.scene_samples`."""

    n: int
    cells: int = 8
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1 or self.seed < 0:
            raise ValueError(f"n must be at least 1 and seed at least 0, got {self.n} and {self.seed}")
        wrong = [task for task in self.tasks if task not in TASKS]
        if wrong or not self.tasks:
            raise ValueError(f"tasks takes some of {', '.join(TASKS)}, got {self.tasks}")


@dataclass(frozen=True)
class Folder:
    """One question, or several turns, about every image of a folder."""

    path: str
    question: str | list[dict[str, Any]]
    answer: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows of a CSV, JSON-lines or Parquet file: image, question, and perhaps answer and id.

    In JSON lines a question may be several turns, a list of messages.
    """

    path: str


@dataclass(frozen=True)
class Samples:
    """Exactly one of the four."""

    scenes: Scenes | None = None
    folder: Folder | None = None
    table: Table | None = None
    benchmark: Benchmark | None = None

    def __post_init__(self) -> None:
        given = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected one of scenes, folder, table and benchmark, got {' and '.join(given) or 'none'}"
            )


@dataclass(frozen=True)
class Model:
    """What `load` takes, and the name it has in the table; the path of a folder counts from the YAML file."""

    name: str
    label: str = ""
    dtype: str = "auto"
    device: str | None = None
    revision: str = "main"
    trust_remote_code: bool = False
    prompt_options: PromptOptions | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or Path(self.name).name)


@dataclass(frozen=True)
class Arm:
    """A pruner, or None for dense decoding, and the name it has in the table."""

    label: str
    pruner: Pruner | None


@dataclass(frozen=True)
class Decoding:
    """Options of `decode`, the same for every job."""

    layers: Literal["all", "anchor", "none"] | int | list[int] = "anchor"
    heads: Literal["mean", "all"] | list[int] = "mean"
    execution: Literal["masked", "gathered"] = "masked"
    max_new_tokens: int | None = 256  # null for what the model says
    batch_size: int = 8
    # As the model says, or "greedy" (as null), or a `Sample`
    sample: Sampling | Literal["model", "greedy"] | None = "model"
    prompt_options: PromptOptions | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sample", None if self.sample == "greedy" else self.sample)
        if (self.max_new_tokens is not None and self.max_new_tokens < 1) or self.batch_size < 1:
            raise ValueError(
                f"max_new_tokens and batch_size must be at least 1, got {self.max_new_tokens} and {self.batch_size}"
            )


@dataclass(frozen=True)
class SweepConfig:
    """A whole sweep. Relative paths count from ``folder``, where the YAML file lies."""

    out: Path
    samples: Samples
    models: list[Model]
    pruners: list[Arm]
    seeds: list[int]
    decode: Decoding
    retries: int  # how often a sample that failed is tried again
    table: Literal["csv", "parquet"]
    modules: list[str]  # Python modules that define pruners of one's own, installed or beside the YAML file
    folder: Path

    @classmethod
    def from_plain(cls, given: Any, *, folder: Path, where: str = "sweep") -> SweepConfig:
        """Check plain data, as YAML gives it; ``folder`` is what relative paths count from.

        Raises ValueError: a key is unknown, missing or of the wrong type, or a value is refused; key and value are
        named.
        """
        plain = from_plain(_Plain, given, where)
        import_modules(plain.modules, folder, where)
        models = [
            from_plain(Model, {"name": model} if isinstance(model, str) else model, f"{where}: models: {model!r}")
            for model in plain.models
        ]
        arms = [_arm(pruner, f"{where}: pruners: {pruner!r}") for pruner in plain.pruners]
        for name, labels in (("models", [m.label for m in models]), ("pruners", [a.label for a in arms])):
            _distinct(labels, f"{where}: {name}", "give each a label of its own")
        _distinct(plain.seeds, f"{where}: seeds", "name each once")
        return cls(
            out=folder / plain.out,
            models=models,
            pruners=arms,
            folder=folder,
            **{name: getattr(plain, name) for name in ("samples", "seeds", "decode", "retries", "table", "modules")},
        )

    def source(self, model: Model) -> str:
        """What `load` is given for a model: a folder by its whole path, relative names counted from ``folder``."""
        if model.name in BUNDLED:
            return model.name
        place = self.folder / Path(model.name).expanduser()
        return str(place.resolve()) if place.is_dir() or is_path(model.name) else model.name

    def recipe(self, model: Model, arm: Arm) -> dict[str, Any]:
        """Everything but sample and seed that decides what a trace holds, JSON-ready."""
        apart = ("batch_size", "prompt_options", "label", "device")
        decode = {name: value for name, value in asdict(self.decode).items() if name not in apart}
        # As sweeps said it before a model's own way to draw was followed: those go on.
        if self.decode.sample in (None, "model"):
            decode["sample"] = "greedy" if self.decode.sample is None else None
        named = {name: value for name, value in asdict(model).items() if name not in apart and value is not False}
        asked = PromptOptions.of(self.decode.prompt_options).over(PromptOptions.of(model.prompt_options)).to_dict()
        recipe = {"model": named, "pruner": arm.pruner and arm.pruner.to_dict(), "decode": decode}
        return {**recipe, "prompt_options": asked} if asked else recipe


@dataclass(frozen=True)
class _Plain:
    """The keys of the file."""

    out: str
    samples: Samples
    models: list[Any] = field(default_factory=lambda: ["scenes"])
    pruners: list[Any] = field(default_factory=lambda: ["dense"])
    seeds: list[int] = field(default_factory=lambda: [0])
    decode: Decoding = field(default_factory=Decoding)
    retries: int = 2
    table: Literal["csv", "parquet"] = "csv"
    modules: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("models", "pruners", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")
        if self.retries < 0 or not all(0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError(f"retries and seeds must be at least 0 and below 2**63, got {self.retries}, {self.seeds}")


def read_config(path: str | Path) -> SweepConfig:
    """Read a sweep's YAML file.

    Raises FileNotFoundError: there is no such file; ValueError: it is no YAML, or as `SweepConfig.from_plain`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no sweep file at {path}")
    try:
        given = read_yaml(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    return SweepConfig.from_plain(given, folder=path.resolve().parent, where=path.name)


def import_modules(modules: Sequence[str], folder: Path, where: str) -> None:
    """Import modules that define pruners, installed or lying in ``folder``."""
    if modules and str(folder) not in sys.path:
        sys.path.append(str(folder))
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # it is somebody's code
            raise ValueError(f"{where}: modules: {module!r} cannot be imported ({error!r})") from error


def _arm(given: Any, where: str) -> Arm:
    options = {"name": given} if isinstance(given, str) else given
    if not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
        raise ValueError(f"{where}: expected a pruner's name, or name: and its parameters")
    parameters = {key: value for key, value in options.items() if key not in ("name", "label")}
    name, label = options["name"], options.get("label", "")
    if not isinstance(label, str):
        raise ValueError(f"{where}: label must be text, got {label!r} ({type(label).__name__}); {QUOTES}")
    if "label" in options and not label.strip():
        raise ValueError(f"{where}: label is empty; write one, or leave the line out")
    label = label or " ".join([name, *(f"{key}={value}" for key, value in parameters.items())])
    if name == "dense":
        check_keys(parameters, (), where)
        return Arm(label, None)
    known, kind = list_pruners(), name.partition(":")[0]
    if kind not in known:
        raise ValueError(f"{where}: no pruner {kind!r}; known: dense, {', '.join(known)}")
    check_keys(parameters, [f.name for f in fields(known[kind])], where)
    hints = get_type_hints(known[kind])
    for key, value in parameters.items():
        if not fits(value, hints[key]):
            raise ValueError(f"{where}: {key} must be {hints[key]}, got {value!r} ({type(value).__name__})")
    missing = [f.name for f in fields(known[kind]) if f.default is MISSING and f.default_factory is MISSING]
    if set(missing) - set(parameters):
        raise ValueError(f"{where}: pruner {name!r} needs {', '.join(missing)}")
    try:
        return Arm(label, make_pruner(name, **parameters))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _distinct(values: Sequence[Any], where: str, advice: str) -> None:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ValueError(f"{where}: {twice[0]!r} stands twice; {advice}")


T = TypeVar("T")
QUOTES = "a text that YAML takes for something else (no, yes, on, off, null, a number, a date) needs quotes"
_WORDS = {**NAMES, str: "text", type(None): "nothing"}


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

    Raises ValueError: not a mapping; a key is unknown, missing, or its value of the wrong type or refused by the
    dataclass.

    Parameters
    ----------
    cls : dataclass
    given : mapping
    where : what is being read, for the errors: "sweep.yaml: samples"
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
