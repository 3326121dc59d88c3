"""What every command shares: the app and its groups, errors in one line, JSON output, KEY=VALUE arguments."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial, wraps
from math import isfinite
from typing import Annotated, Any

import typer

from visionpulse_analysis import __version__
from visionpulse_analysis._util import ledger as _ledger
from visionpulse_analysis._util.progress import above

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
bench = typer.Typer(no_args_is_help=True, help="Measure speed and memory, as ratios taken side by side.")
app.add_typer(bench, name="bench")


_errors = {"traceback": False}


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"visionpulse {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Say which version this is, and end.", callback=_say_version, is_eager=True),
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Before the command: show where an error came from, not just one line.")
    ] = False,
) -> None:
    """See where a vision-language model looks."""
    _errors["traceback"] = traceback


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Parameters = Annotated[
    list[str] | None,
    typer.Option("-p", "--parameter", metavar="KEY=VALUE", help="Of the notebook or pruner; may be repeated."),
]
Model = Annotated[str, typer.Option(help='"scenes", "charts", "vica" or "yopo" (bundled), a folder, or a hub id.')]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's own), float32, bfloat16 or float16.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, mps; by default cuda where there is one, else cpu.", show_default=False)
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="Split the model over devices instead: auto, balanced, sequential, or JSON such as "
        '\'{"model": 0, "lm_head": 1}\'. Needs accelerate.',
        show_default=False,
    ),
]
Revision = Annotated[str, typer.Option(help="Branch, tag or commit of a hub model.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python code that the model brings along; read it before.")
]
MinPixels = Annotated[
    int | None,
    typer.Option(min=1, help="Enlarge smaller pictures and frames to this height times width.", show_default=False),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(min=1, help="Shrink larger pictures and frames to this height times width.", show_default=False),
]
MaxTiles = Annotated[
    int | None,
    typer.Option(min=1, help="Cut a picture into so many tiles at most, an overview not counted.", show_default=False),
]
System = Annotated[str | None, typer.Option(help="System prompt.", show_default=False)]
Prefix = Annotated[
    str | None, typer.Option(help="The answer begins with this text, as a part of the prompt.", show_default=False)
]
Template = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="For the chat template: enable_thinking=false. May be repeated."),
]
PROMPTING: dict[str, Any] = {  # fields of `PromptOptions`
    "min_pixels": MinPixels,
    "max_pixels": MaxPixels,
    "max_tiles": MaxTiles,
    "system": System,
    "prefix": Prefix,
    "template": Template,
}
LOADING: dict[str, tuple[Any, Any]] = {  # what `load` takes: type, default
    "dtype": (Dtype, "auto"),
    "device": (Device, None),
    "device_map": (DeviceMap, None),
    "revision": (Revision, "main"),
    "trust_remote_code": (TrustRemoteCode, False),
    **{name: (kind, None) for name, kind in PROMPTING.items()},
}
Seed = Annotated[int, typer.Option(help="Fixes what is drawn: tokens of a sampled trace, patches of a random pruner.")]
WRITES_TO = ("out", "figure", "store", "save", "folder", "as_json")  # as options: where results go
Count = Annotated[int, typer.Option(min=1, help="How many.")]
Load = Callable[[str], Any]


def loads_model(function: Callable) -> Callable:
    """Give a command the options of `load` in the place of its argument ``load``, which loads by them."""
    signature = inspect.signature(function, eval_str=True)

    @wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        from visionpulse_analysis.models.finding import check_names, place_of

        chosen = {name: options.pop(name) for name in LOADING}
        place_of(options["model"], chosen["revision"])  # what is wrong is told before torch is imported
        check_names(chosen["dtype"], chosen["device"])
        asked = prompt_options(**{name: chosen.pop(name) for name in PROMPTING})
        return function(*args, load=partial(_load, prompt_options=asked, **chosen), **options)

    given = {name: parameter for name, parameter in signature.parameters.items() if name != "load"}
    return with_options(run, given, LOADING)


def with_options(
    run: Callable, given: Mapping[str, inspect.Parameter], more: Mapping[str, tuple[Any, Any]]
) -> Callable:
    """Have typer see a function with these parameters and further options: name -> (type, default)."""
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in more.items()
    ]
    parameters: Any = [*given.values(), *added]
    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _load(model: str, *, device_map: str | None, **options: Any) -> Any:
    import visionpulse_analysis as vpa

    placed: Any = device_map
    if device_map is not None and not device_map.isidentifier():
        try:
            placed = json.loads(device_map)
        except ValueError:
            placed = None
        if not isinstance(placed, dict):
            raise ValueError(f"--device-map must be auto, balanced, sequential or a JSON object, got {device_map!r}")
    return vpa.load(model, device_map=placed, **options)


def prompt_options(template: list[str] | None = None, **given: Any) -> dict[str, Any]:
    """What was given of the fields of `PromptOptions`; ValueError for what it does not take."""
    given |= {"template": {key: _json_or_text(text) for key, text in key_values(template).items()} or None}
    given = {name: value for name, value in given.items() if value is not None}
    if given:
        from visionpulse_analysis.models.asking import PromptOptions

        PromptOptions.of(given)
    return given


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text.lower() if text in ("True", "False", "None") else text)
    except ValueError:
        return text


def command(group: typer.Typer, name: str | None = None) -> Callable:
    """Register a command whose errors end in one line on standard error and exit code 2."""

    def register(function: Callable) -> Callable:
        @wraps(function)
        def run(*args: Any, **options: Any) -> None:
            group_name = ["bench"] if group is bench else []
            _ledger.command = _words(function, [*group_name, name or function.__name__], options)
            try:
                function(*args, **options)
            except typer.Exit:  # a RuntimeError, but an answer and not an error
                raise
            except (ValueError, TypeError, OSError, LookupError, ArithmeticError, RuntimeError, ImportError) as error:
                if _errors["traceback"]:
                    raise
                message = error.args[0] if isinstance(error, KeyError) and error.args else error
                typer.echo(f"error: {message}", err=True)
                raise typer.Exit(2) from error
            finally:
                _ledger.command = None

        group.command(name)(run)
        return function

    return register


def _words(function: Callable, name: list[str], options: dict[str, Any]) -> list[str]:
    """The command that runs as it was given, without where it writes: figures tell it, to be drawn again."""
    words, given = ["visionpulse", *name], []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        value, told = options.get(parameter.name, parameter.default), parameter.annotation.__metadata__[0]
        values = [str(one) for one in (value if isinstance(value, list | tuple) else [value])]
        plain = parameter.name.replace("_", "-")
        argument = isinstance(told, typer.models.ArgumentInfo)
        if value == parameter.default or (parameter.name in WRITES_TO and not argument):
            continue
        if argument:
            given += values
        elif isinstance(value, bool):
            words.append((told.param_decls or [f"--{plain}"])[0] if value else f"--no-{plain}")
        else:
            words += [word for one in values for word in ((told.param_decls or [f"--{plain}"])[0], one)]
    return [*words, *(["--"] if any(word.startswith("-") for word in given) else []), *given]


def told(line: str) -> None:
    """Say something on standard error while a command runs, above the bar if there is one."""
    with above():
        typer.echo(line, err=True)


def show(result: Any, as_json: bool, text: str) -> None:
    """Print ``text``, or ``result`` as JSON (NaN becomes null)."""
    typer.echo(json.dumps(_finite(result), indent=1, allow_nan=False, default=str) if as_json else text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def key_values(pairs: list[str] | None) -> dict[str, str]:
    """Split KEY=VALUE arguments; raises ValueError for one without a key or an equals sign."""
    wrong = [pair for pair in pairs or [] if not pair.partition("=")[0].strip() or "=" not in pair]
    if wrong:
        raise ValueError(f"expected KEY=VALUE, got {wrong[0]!r}")
    return {pair.partition("=")[0].strip(): pair.partition("=")[2] for pair in pairs or []}


def indices(text: str, option: str, *words: str) -> Any:
    """One of some words, or a list of indices; ValueError for anything else, before a model is loaded."""
    if text in words:
        return text
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ValueError(f"{option} must be {', '.join(words)}, or indices such as 3,5, got {text!r}")
    return [int(part) for part in text.split(",")]


def recorded(layers: str, heads: str, execution: str) -> dict[str, Any]:
    """What `decode` takes of these names; ValueError for what cannot be meant, before a model is loaded."""
    if execution not in ("masked", "gathered"):
        raise ValueError(f"execution must be 'masked' or 'gathered', got {execution!r}")
    return {
        "layers": indices(layers, "layers", "all", "anchor", "none"),
        "heads": indices(heads, "heads", "mean", "all"),
        "execution": execution,
    }


def literals(pairs: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE arguments with values read as Python literals where they are."""
    from ast import literal_eval

    values: dict[str, Any] = {}
    for key, text in key_values(pairs).items():
        try:
            values[key] = literal_eval(text)
        except (ValueError, SyntaxError):
            values[key] = text
    return values
