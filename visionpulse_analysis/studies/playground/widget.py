"""The playground's form, and the run behind its buttons.

A run has a thread of its own. Front ends differ in where the callback of a button runs: VS Code, and JupyterLab before
4.4, hand it to the main thread of the kernel, between two cells; newer ones to a thread beside it (a subshell). A run
inside the callback of *Run* would, in the first kind, keep the click on *Stop* waiting until it is over, and every cell
as well; polling for clicks inside the decode loop would have to read the kernel's own queue. From a thread of its own
the bar moves, *Stop* is heard and cells run in all of them. What is asked is read from the form before it starts.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from html import escape
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any, Optional

import ipywidgets
import numpy as np
from PIL import Image

from visionpulse_analysis import figures
from visionpulse_analysis._util.checks import Interval, checked
from visionpulse_analysis._util.interrupts import stopped_by
from visionpulse_analysis.decoding.sampling import Sample
from visionpulse_analysis.explorer import Explorer, somebody_is_there
from visionpulse_analysis.media.images import image_of_bytes, read_image
from visionpulse_analysis.models.loading import BUNDLED, VLM
from visionpulse_analysis.pruners import Pruner, as_text, list_pruners, make_pruner
from visionpulse_analysis.studies.playground.asking import Ask
from visionpulse_analysis.studies.playground.fields import (
    WIDE,
    hinted,
    make_fields,
    read_field,
    read_fields,
    side_by_side,
    with_hints,
    write_field,
)
from visionpulse_analysis.studies.playground.generated import world_of
from visionpulse_analysis.studies.playground.report import numbers, table_html
from visionpulse_analysis.traces import Trace, traces_hash

GENERATED, FILE, UPLOAD, GIVEN = "Generated", "File", "Upload", "Given"
NONE, WRITTEN = "none (dense alone)", "as text"
KINDS: dict[str, Any] = {
    "scene": Annotated[int, Interval(ge=0)],
    "temperature": Optional[Annotated[float, Interval(ge=0)]],  # noqa: UP045
    "seed": Annotated[int, Interval(ge=0)],
    "max_new_tokens": Annotated[int, Interval(ge=1)],
}
BETWEEN = 0.1  # seconds between two messages to the progress bar
THUMBNAIL = 160  # pixels
STYLE = """<style>
.vp-hint, .vp-table + small { color: var(--jp-ui-font-color2, #666); font-size: 12px; }
.vp-playground { overflow: hidden; }
.vp-playground div.vp-hint { padding-left: 138px; line-height: 1.3; margin-bottom: 4px; }
.vp-playground .vp-pruner { border-left: 3px solid var(--jp-border-color2, #ccc); margin: 6px 0; }
.vp-playground .widget-html-content { line-height: 1.5; overflow-x: auto; }
.vp-table { border-collapse: collapse; }
.vp-table th, .vp-table td { text-align: left; padding: 2px 10px 2px 0; vertical-align: top; }
.vp-error { color: var(--jp-error-color1, #b91c1c); font-weight: 600; }
.vp-code { background: var(--jp-layout-color2, #f3f3f3); padding: 8px; overflow-x: auto; user-select: all; }
</style>"""


def _row(*children: ipywidgets.Widget) -> ipywidgets.HBox:
    return ipywidgets.HBox(children, layout=ipywidgets.Layout(flex_flow="row wrap", align_items="center"))


class Playground(ipywidgets.VBox):
    """The form and what came of it: see `vpa.playground`.

    Attributes
    ----------
    traces : list of Trace
        Of the last run that came to its end: dense, then pruned.
    explorer : Explorer or None
        Which shows them.
    """

    picture: Any  # the fields and buttons are widgets
    scene: Any
    path: Any
    upload: Any
    question: Any
    task: Any
    pruner: Any
    written: Any
    layer: Any
    heads: Any
    temperature: Any
    seed: Any
    max_new_tokens: Any

    def __init__(
        self, vlm: VLM, image: Any, question: str, *, own_model: bool, pruner: str | Pruner | None, layer: int | None,
        heads: str, temperature: float | None, seed: int, max_new_tokens: int, out: str | Path,
    ) -> None:  # fmt: skip
        self.vlm, self.own_model, self.out, self.world = vlm, own_model, Path(out), world_of(vlm.name)
        self.traces: list[Trace] = []
        self.explorer: Explorer | None = None
        self.asked: Ask | None = None  # what the traces are of
        self._dense: tuple[str, Trace] | None = None  # with the key of what was asked
        self._stop, self._thread = Event(), None
        self._own_words = bool(question)
        for name, value in (("seed", seed), ("max_new_tokens", max_new_tokens), ("temperature", temperature)):
            checked(value, KINDS[name], name)
        self._make_picture(image, seed)
        self._make_question(question)
        self._make_pruner(pruner)
        self._make_settings(layer, heads, temperature, seed, max_new_tokens)
        self._make_buttons()
        self._result = ipywidgets.VBox()
        super().__init__(
            [
                ipywidgets.HTML(STYLE),
                self._picture_box, self._question_box, self._pruner_box, self._settings_box, self._buttons_box,
                self._told, self._result,
            ]
        )  # fmt: skip
        self.add_class("vp-playground")
        self._show_picture()

    # ---- the form

    def _make_picture(self, image: Any, seed: int) -> None:
        path = str(image) if isinstance(image, str | Path) else ""
        self._given = () if image is None or path else _pictures_of(image)
        if path:
            read_image(Path(path).expanduser())
        kinds = [GENERATED, FILE, UPLOAD] + [GIVEN] * bool(self._given)
        first = GIVEN if self._given else FILE if path else GENERATED
        self.picture = ipywidgets.ToggleButtons(options=kinds, value=first, style={"button_width": "90px"})
        self.scene = ipywidgets.Text(value=str(seed), description=self.world.name, style=WIDE)
        self.path = ipywidgets.Text(value=path, description="path", style=WIDE, continuous_update=False)
        self.upload = ipywidgets.FileUpload(
            accept="image/*", description="Choose a picture (below 10 MB)", layout={"width": "auto"}
        )
        self._thumbnail = ipywidgets.Image(format="png", layout={"max_height": f"{THUMBNAIL}px", "width": "auto"})
        self._sources = {GENERATED: self.scene, FILE: self.path, UPLOAD: self.upload}
        self._source = ipywidgets.HBox()
        self._picture_box = _row(ipywidgets.VBox([self.picture, self._source]), self._thumbnail)
        for one in (self.picture, *self._sources.values()):
            one.observe(lambda _: self._show_picture(), "value")

    def _make_question(self, question: str) -> None:
        self.question = ipywidgets.Textarea(
            value=question, description="question", style=WIDE, rows=2, layout={"width": "min(640px, 100%)"}
        )
        self.task = ipywidgets.Dropdown(
            options=self.world.tasks,
            description="kind",
            style={"description_width": "initial"},
            layout={"width": "150px"},
        )
        known = (
            f"The bundled model has learnt these kinds of question about such a {self.world.name}; what it says "
            "of other pictures, or when asked in other words, means nothing."
        )
        told = [ipywidgets.HTML(f"<div class='vp-hint'>{known}</div>")] * (self.vlm.name in BUNDLED)
        self._question_box = ipywidgets.VBox([_row(self.question, self.task), *told])
        self.task.observe(lambda _: self._show_picture(), "value")

    def _make_pruner(self, pruner: str | Pruner | None) -> None:
        presets = [f"{name}:{preset}" for name, kind in list_pruners().items() for preset in kind.presets]
        self.pruner = ipywidgets.Dropdown(
            options=[NONE, *sorted([*list_pruners(), *presets]), WRITTEN], description="pruner", style=WIDE
        )
        self.written = ipywidgets.Text(
            description="written",
            style=WIDE,
            placeholder="fastv(budget=0.2) | visionpulse:10",
            layout={"width": "min(640px, 100%)"},
        )
        self.parameters: dict[str, dict[str, Any]] = {}  # fields by the chosen name: what was typed is there again
        self._parameters_box = ipywidgets.VBox()
        self._pruner_box = ipywidgets.VBox([self.pruner, self._parameters_box])
        self._pruner_box.add_class("vp-pruner")
        made = make_pruner(pruner) if isinstance(pruner, str) else pruner
        if made is not None and not isinstance(made, Pruner):
            raise ValueError(f"pruner must be a name, a Pruner or None, got {pruner!r}")
        if isinstance(pruner, str) and pruner in self.pruner.options:
            chosen = pruner
        elif made is None:
            chosen = NONE
        elif made.name in list_pruners():
            chosen = made.name
            self.parameters[chosen] = make_fields(type(made), {k: v for k, v in made.to_dict().items() if k != "name"})
        else:
            chosen, self.written.value = WRITTEN, as_text(made)
        self.pruner.observe(lambda _: self._show_parameters(), "value")
        self.pruner.value = chosen
        self._show_parameters()

    def _make_settings(self, layer: int | None, heads: str, temperature: float | None, seed: int, tokens: int) -> None:
        recorded = self.vlm.attention_layers
        shown = self.vlm.default_anchor if layer is None else self.vlm.chosen_layer(layer)
        if shown not in recorded:
            raise ValueError(f"layer {shown} has no softmax attention; those that have: {recorded}")
        if heads not in ("mean", "all"):
            raise ValueError(f"heads must be 'mean' or 'all', got {heads!r}")
        self.layer = ipywidgets.Dropdown(options=recorded, value=shown, description="layer shown", style=WIDE)
        self.heads = ipywidgets.Dropdown(options=["mean", "all"], value=heads, description="heads recorded", style=WIDE)
        typed = ("draw temperature", temperature), ("seed", seed), ("max_new_tokens", tokens)
        self.temperature, self.seed, self.max_new_tokens = (
            ipywidgets.Text(value=write_field(value), description=name, style=WIDE) for name, value in typed
        )
        told = {
            self.layer: "all are recorded",
            self.heads: "each needs as much memory as their mean",
            self.temperature: "0: greedy; empty: as the model says",
            self.seed: "of the draws, whole number at least 0",
            self.max_new_tokens: "whole number at least 1",
        }
        self._settings_box = side_by_side([hinted(field, words) for field, words in told.items()])
        self.layer.observe(lambda _: self._show_layer(), "value")

    def _make_buttons(self) -> None:
        self.run_button = ipywidgets.Button(description="Run", button_style="primary", icon="play")
        self.stop_button = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.keep_button = ipywidgets.Button(description="Keep", icon="save", disabled=True)
        self.bar = ipywidgets.IntProgress(layout={"width": "200px"})
        self._done = ipywidgets.HTML()
        self._told = ipywidgets.HTML()
        self._buttons_box = _row(self.run_button, self.stop_button, self.keep_button, self.bar, self._done)
        self.run_button.on_click(lambda _: self._try(self.run))
        self.stop_button.on_click(lambda _: self.stop())
        self.keep_button.on_click(lambda _: self._try(self.keep))

    # ---- what the form says

    def pictures(self) -> tuple[np.ndarray, ...]:
        """The pictures chosen, uint8 [row_px, col_px, 3] each; ValueError or FileNotFoundError where there is none."""
        kind = self.picture.value
        if kind == GIVEN:
            return self._given
        if kind == GENERATED:
            return (self.world.make(self._number("scene"), self.task.value)[0],)
        if kind == FILE:
            return (read_image(Path(self.path.value.strip()).expanduser() if self.path.value.strip() else ""),)
        if not self.upload.value:
            raise ValueError("no picture was uploaded yet; choose one, or another kind of picture")
        chosen = self.upload.value[-1]
        return (image_of_bytes(bytes(chosen["content"]), chosen["name"]),)

    def ask(self) -> Ask:
        """What the form asks; ValueError or FileNotFoundError, which say so, where something in it cannot be."""
        temperature = self._number("temperature")
        question = self.question.value.strip()
        if not question:
            raise ValueError("the question is empty; ask something about the picture")
        return Ask(
            pictures=self.pictures(),
            question=question,
            pruner=self._chosen_pruner(),
            sample="model" if temperature is None else None if temperature == 0 else Sample(temperature),
            seed=self._number("seed"),
            heads=self.heads.value,
            max_new_tokens=self._number("max_new_tokens"),
        )

    def facts(self, asked: Ask) -> dict[str, Any]:
        """What a kept figure says of how it was made, by the names of the notebook's parameters."""
        kind = self.picture.value
        return {
            "model": self.vlm.name,
            "prompt_options": self.vlm.prompt_options.to_dict(),
            "image": self.path.value if kind == FILE else "" if kind == GENERATED else kind.lower(),
            **({"scene": self._number("scene")} if kind == GENERATED else {}),
            "question": asked.question,
            "pruner": "" if asked.pruner is None else as_text(asked.pruner),
            "layer": self.layer.value,
            "heads": asked.heads,
            "temperature": self._number("temperature"),
            "max_new_tokens": asked.max_new_tokens,
        }

    def _number(self, name: str) -> Any:
        return read_field(getattr(self, name).value, KINDS[name], name)

    def _chosen_pruner(self) -> Pruner | None:
        chosen = self.pruner.value
        if chosen == NONE:
            return None
        if chosen == WRITTEN:
            return make_pruner(self.written.value)
        return read_fields(list_pruners()[chosen.partition(":")[0]], self.parameters[chosen])

    # ---- what follows at once

    def _show_picture(self) -> None:
        source = self._sources.get(self.picture.value)
        self._source.children = () if source is None else (source,)
        self.task.layout.display = "" if self.picture.value == GENERATED else "none"
        self._say("")
        try:
            self._thumbnail.value = _png(self.pictures()[0], THUMBNAIL)
        except Exception as error:
            self._thumbnail.value = b""
            waiting = self.picture.value == UPLOAD or not getattr(source, "value", "")
            self._say("" if waiting else _sentence(error), error=True)
            return
        self._fill_question()

    def _fill_question(self) -> None:
        """The question that belongs to the scene, unless the reader has written one."""
        if self._own_words and self.question.value.strip() not in ("", self._suggested):
            return
        self._suggested = ""
        if self.picture.value == GENERATED:
            self._suggested = self.world.make(self._number("scene"), self.task.value)[1]
        self._own_words = True
        self.question.value = self._suggested

    _suggested = ""

    def _show_parameters(self) -> None:
        chosen = self.pruner.value
        if chosen in (NONE, WRITTEN):
            self._parameters_box.children = (self.written,) if chosen == WRITTEN else ()
            return
        name, _, preset = chosen.partition(":")
        kind = list_pruners()[name]
        if chosen not in self.parameters:
            self.parameters[chosen] = make_fields(kind, kind.presets[preset] if preset else {})
        does = escape((kind.__doc__ or "").partition("\n")[0].replace("``", ""))
        about = ipywidgets.HTML(f"<div class='vp-hint'>{does}</div>")
        self._parameters_box.children = (about, side_by_side(with_hints(kind, self.parameters[chosen])))

    def _show_layer(self) -> None:
        if self.explorer is not None:
            self.explorer.view = _with_layer(self.explorer.view, self.layer.value)

    # ---- running

    def run(self, wait: bool = False) -> None:
        """Decode what the form asks, in a thread of its own, or here with `wait`.

        Raises ValueError or FileNotFoundError where the form asks for what cannot be; with `wait`, what decoding
        raises, too. RuntimeError where a run is going on.
        """
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("a run is going on; stop it first, or wait")
        asked = self.ask()
        self._stop.clear()
        self._running(True)
        if wait:
            self._work(asked, raises=True)
            return
        # With the context of the click: what the thread sends belongs to the cell that shows the playground.
        self._thread = Thread(target=copy_context().run, args=(self._work, asked), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the run that is going on; what was shown before stays."""
        self._stop.set()

    def wait(self) -> None:
        """Return when no run is going on any more."""
        if self._thread is not None:
            self._thread.join()

    def _work(self, asked: Ask, raises: bool = False) -> None:
        try:
            with stopped_by(self._stop.is_set), self._counted(asked) as begin:
                traces = self._decoded(asked, begin)
            self._show(asked, traces)
        except KeyboardInterrupt:
            self._say("Stopped. What is shown is still that of the run before." if self.traces else "Stopped.")
            if raises and not self._stop.is_set():
                raise
        except Exception as error:
            self._say(_sentence(error), error=True)
            if raises:
                raise
        finally:
            self._running(False)

    def _decoded(self, asked: Ask, begin: Any) -> list[Trace]:
        key = asked.key(self.vlm)
        known = self._dense[1] if self._dense is not None and self._dense[0] == key else None
        made = [] if known is None else [known]
        arms = iter(asked.decode(self.vlm, dense=known is None))
        if known is None:
            begin("dense")
            made.append(next(arms))
            self._dense = key, made[0]
        if asked.pruner is not None:
            begin("pruned")
            made += arms
        return made

    @contextmanager
    def _counted(self, asked: Ask) -> Iterator[Any]:
        """Count the steps of the model for the bar; gives what is called, with its name, when a decode begins."""
        steps, since, told, name = 0, time.monotonic(), 0.0, ""

        def begin(what: str) -> None:
            nonlocal steps, since, name
            steps, since, name = 0, time.monotonic(), what
            self.bar.max, self.bar.value = asked.max_new_tokens, 0
            self._done.value = f"{name}: reading the picture"

        def count(*_: Any) -> None:
            nonlocal steps, told
            steps, now = steps + 1, time.monotonic()
            if now - told > BETWEEN:
                told = now
                self.bar.value = min(steps, asked.max_new_tokens)
                rate = steps / max(now - since, 1e-6)
                self._done.value = f"{name}: {steps} of at most {asked.max_new_tokens} tokens, {rate:.0f} a second"

        hook = self.vlm.model.register_forward_hook(count)
        try:
            yield begin
        finally:
            hook.remove()

    def _running(self, going: bool) -> None:
        self.run_button.disabled, self.stop_button.disabled = going, not going
        self.keep_button.disabled = going or not self.traces
        if going:
            self._say("")
        else:
            self.bar.value, self._done.value = 0, ""

    def _show(self, asked: Ask, traces: list[Trace]) -> None:
        first = _most_pointed(traces[0], self.layer.value)
        try:
            explorer = Explorer(*traces, view=first if self.explorer is None else self.explorer.view)
        except ValueError:  # another picture, a shorter trace: what was looked at is not there
            explorer = Explorer(*traces, view=first)
        self.traces, self.explorer, self.asked = traces, explorer, asked
        self._facts = self.facts(asked)
        self._table = ipywidgets.HTML(table_html(traces))
        self._kept = ipywidgets.HTML()
        self._result.children = (self._table, self._kept, explorer)

    # ---- keeping

    def keep(self, folder: str | Path | None = None, *, name: str = "playground", overwrite: bool = False) -> Path:
        """Write what is shown: page, traces, figure of the view, pictures, and the code that repeats it.

        Parameters
        ----------
        folder : str or Path, optional
            Default: the next free number inside ``out``.
        name : str
            With which the files begin.
        overwrite : bool
            Write into a folder that is there, over what was kept under this name before.

        Returns
        -------
        Path
            Of the folder: ``name.html`` with ``name.traces``, ``name.png``, ``.pdf`` and ``.svg``, ``name_image.png``,
            and the cell ``name.py``.

        Raises
        ------
        ValueError
            Nothing has been run yet, or the view cannot be drawn.
        FileExistsError
            The folder is there, and is not to be overwritten.
        """
        if self.explorer is None or self.asked is None:
            raise ValueError("there is nothing to keep yet; run first")
        figure = self.explorer.figure()  # raises before anything is written
        if folder is None:
            number = 1
            while (self.out / str(number)).exists():
                number += 1
            folder = self.out / str(number)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=overwrite)
        paths = self.asked.picture_paths(folder, name)
        for path, picture in zip(paths, self.asked.pictures, strict=True):
            path.write_bytes(_png(picture))
        code = self.asked.code(self.vlm, self.own_model, paths, self.explorer.view)
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
        self.explorer.save(folder / f"{name}.html", keep_traces=True)
        told = {**self._facts, "view": self.explorer.view}
        figures.save(
            figure, name, folder=folder, parameters=told, seed=self.asked.seed,
            data_hash=traces_hash(self.traces), numbers=numbers(self.traces),
        )  # fmt: skip
        self._kept.value = (
            f"Kept in <code>{escape(str(folder))}</code>: page, traces, figure and picture. This cell repeats it:"
            f"<pre class='vp-code'>{escape(code)}</pre>"
        )
        return folder

    # ---- telling

    def _try(self, does: Any) -> None:
        """Do what a button says; what goes wrong is told in one sentence, and nothing that was shown is lost."""
        try:
            does()
        except Exception as error:
            self._say(_sentence(error), error=True)

    def _say(self, text: str, error: bool = False) -> None:
        self._told.value = (
            text and f"<span role='alert' class='{'vp-error' if error else 'vp-hint'}'>{escape(text)}</span>"
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The form; in a notebook that runs with nobody in front of it, what came of the run."""
        if somebody_is_there() or self.explorer is None:
            return super()._repr_mimebundle_(**kwargs)
        parts = (STYLE, table_html(self.traces), self.explorer.inline().data)
        return {"text/plain": repr(self), "text/html": "".join(map(str, parts))}, {}

    def __repr__(self) -> str:
        return f"Playground({self.vlm.name!r}, {len(self.traces)} traces)"


def _pictures_of(image: Any) -> tuple[np.ndarray, ...]:
    given = image if isinstance(image, list | tuple) else [image]
    if not given:
        raise ValueError("image is an empty list; give a picture, or leave it out for a generated scene")
    return tuple(read_image(one) for one in given)


def _png(picture: np.ndarray, largest: int | None = None) -> bytes:
    opened, buffer = Image.fromarray(picture), io.BytesIO()
    if largest is not None:
        opened.thumbnail((largest, largest))
    opened.save(buffer, "PNG")
    return buffer.getvalue()


def _with_layer(view: str, layer: int) -> str:
    """A link of the explorer with another layer."""
    return "&".join([part for part in view.split("&") if part and not part.startswith("layer=")] + [f"layer={layer}"])


def _most_pointed(trace: Trace, layer: int) -> str:
    """The step at which the attention of a layer has its highest peak."""
    attention = trace.attention.sel(layer=layer)
    peaks = attention.max([dim for dim in attention.dims if dim != "step"])
    return f"step={int(peaks.values.argmax())}&layer={layer}"


def _sentence(error: BaseException) -> str:
    told = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, ValueError | OSError | RuntimeError)
    return told if known else f"{type(error).__name__}: {told}"
