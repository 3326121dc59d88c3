"""The playground without a browser: what its form says, what a click does, what is kept."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import numpy as np
import pytest
from PIL import Image

import visionpulse_analysis as vpa
from visionpulse_analysis._util.checks import Interval
from visionpulse_analysis._util.interrupts import check_interrupt, stopped_by
from visionpulse_analysis.experiments.samples import one_sample
from visionpulse_analysis.explorer import Explorer
from visionpulse_analysis.studies.playground.fields import make_fields, read_field, read_fields, write_field
from visionpulse_analysis.studies.playground.generated import world_of
from visionpulse_analysis.studies.playground.report import rows
from visionpulse_analysis.testbed.charts import questions as of_charts

SHARE = Annotated[float, Interval(gt=0, le=1, what="a share of the patches")]


@pytest.fixture
def play(vlm, tmp_path):
    return vpa.playground(vlm, max_new_tokens=4, pruner="visionpulse(budget=0.1)", temperature=0, out=tmp_path / "kept")


def told(play) -> str:
    return play._told.value


def steps_of(vlm, does) -> int:
    """How often the model is called."""
    calls = []
    hook = vlm.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        does()
    finally:
        hook.remove()
    return len(calls)


def hashes(traces) -> list[str]:
    return [trace.data_hash for trace in traces]


def decoded(vlm, sample, pruner, **options):
    ask = {"heads": "mean", "sample": None, "max_new_tokens": 4, "seed": 0, **options}
    return vpa.decode(vlm, sample.image, sample.question, pruner=[None, vpa.make_pruner(pruner)], **ask)


OURS = [name for name, kind in vpa.list_pruners().items() if kind.__module__.startswith("visionpulse_analysis.")]


@pytest.mark.parametrize("name", [*OURS, "sparsevlm:192", "shortv:llava-1.5-7b", "visionpulse:10"])
def test_the_fields_of_every_pruner_read_back_what_they_were_made_from(name):
    kind = vpa.list_pruners()[name.partition(":")[0]]
    given = vpa.make_pruner(name)
    parameters = {key: value for key, value in given.to_dict().items() if key != "name"}
    made = make_fields(kind, parameters)
    assert read_fields(kind, made) == given
    assert list(made) == list(parameters) and all(field.description == key for key, field in made.items())


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("0.25", SHARE, 0.25),
        (" 1e-3 ", SHARE, 1e-3),
        ("", SHARE | None, None),
        ("  ", SHARE | None, None),
        ("3", int | None, 3),
        ("1, 2", tuple[int, ...], (1, 2)),
        ("1,", tuple[int, ...], (1,)),
        ("7", tuple[int, ...] | None, (7,)),
        ("shallow, 'deep'", tuple[str, ...], ("shallow", "deep")),
        ("12", str, "12"),
    ],
)
def test_a_field_is_read_as_its_annotation_says(text, kind, value):
    assert read_field(text, kind, "x") == value
    assert read_field(write_field(value), kind, "x") == value


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("1.5", SHARE, r"x must be a share of the patches in \(0, 1\], got 1.5"),
        ("0", SHARE | None, r"in \(0, 1\]"),
        ("", SHARE, r"x is empty; expected a share of the patches in \(0, 1\]"),
        ("many", SHARE, "x must be a finite number, got 'many'"),
        ("0,1", SHARE, "x must be a finite number"),
        ("2.0", int, "x must be a whole number, got 2.0"),
        ("a, b", tuple[int, ...], "x must be a list, each a whole number"),
        ("__import__('os')", int, "x must be a whole number"),
    ],
)
def test_a_field_out_of_bounds_is_told(text, kind, words):
    with pytest.raises(ValueError, match=words):
        read_field(text, kind, "x")


def test_a_run_shows_what_decode_gives_and_a_change_decodes_only_what_changed(vlm, play):
    sample = one_sample(seed=0)
    play.run_button.click()
    play.wait()
    assert hashes(play.traces) == hashes(decoded(vlm, sample, "visionpulse(budget=0.1)"))
    first, table = play.traces[0], rows(play.traces)
    assert [row["steps"] for row in table] == ["4", "4"] and table[0]["retention"] == "100.0 %"
    assert play.explorer._traces == tuple(play.traces) and play.question.value == sample.question
    play.explorer.view = "step=2&layer=1"

    play.parameters["visionpulse"]["budget"].value = "0.5"
    play.run()
    play.wait()
    assert play.traces[0] is first and "step=2&layer=1" in play.explorer.view
    assert hashes(play.traces) == hashes(decoded(vlm, sample, "visionpulse(budget=0.5)"))

    weights = vlm.model.lm_head.weight.data
    weights *= 2  # in place: the trace of before is another model's
    try:
        play.run(wait=True)
        assert play.traces[0] is not first and hashes(play.traces) == hashes(
            decoded(vlm, sample, "visionpulse(budget=0.5)")
        )
    finally:
        weights /= 2


def test_another_scene_brings_its_question_and_ones_own_words_stay(play):
    play.scene.value = "5"
    assert play.question.value == one_sample(seed=5).question
    play.task.value = "count"
    assert play.question.value == one_sample(seed=5, task="count").question
    play.question.value = "what is here ?"
    play.scene.value = "6"
    assert play.question.value == "what is here ?" and np.array_equal(play.pictures()[0], one_sample(seed=6).image)


def test_a_model_of_charts_is_asked_about_charts():
    for task in of_charts.TASKS:
        picture, question = world_of("charts").make(3, task)
        assert picture.dtype == np.uint8 and question.split()[-1] == "?"
        assert np.array_equal(picture, world_of("charts").make(3, task)[0])


def test_a_stopped_run_loses_nothing_and_the_next_one_goes_on(vlm, play):
    play.run(wait=True)
    shown = play.traces, play.explorer, play._result.children
    play.seed.value, play.max_new_tokens.value, steps = "1", "6", []

    def press_stop(*_) -> None:
        steps.append(1)
        if len(steps) == 8:  # the second of the pruned run
            play.stop_button.click()

    hook = vlm.model.register_forward_hook(press_stop)
    play.run_button.click()
    play.wait()
    hook.remove()
    assert "Stopped" in told(play) and len(steps) <= 9
    assert (play.traces, play.explorer, play._result.children) == shown
    assert not play.run_button.disabled and play.stop_button.disabled and not vlm.model._forward_hooks
    assert steps_of(vlm, lambda: play.run(wait=True)) == 6  # the dense run was whole
    assert hashes(play.traces) == hashes(
        decoded(vlm, one_sample(seed=0), "visionpulse(budget=0.1)", seed=1, max_new_tokens=6)
    )


def test_a_stop_is_for_its_own_block():
    with stopped_by(lambda: True):
        with stopped_by(lambda: False):
            check_interrupt()
        with pytest.raises(KeyboardInterrupt):
            check_interrupt()
    check_interrupt()


def bad_path(play):
    play.picture.value, play.path.value = "File", "no/such.png"


def no_picture(play):
    play.picture.value = "Upload"


def no_image(play):
    play.picture.value = "Upload"
    file = {
        "name": "notes.txt",
        "type": "",
        "size": 2,
        "content": memoryview(b"hi"),
        "last_modified": datetime.now(UTC),
    }
    play.upload.value = (file,)


def no_question(play):
    play.question.value = "  "


def out_of_bounds(play):
    play.parameters["visionpulse"]["budget"].value = "1.5"


def bounds_that_cross(play):
    play.parameters["visionpulse"]["budget"].value = ""
    play.parameters["visionpulse"]["budget_min"].value = "0.9"


def layer_that_is_not_there(play):  # known only to the model, in the middle of a run
    play.parameters["visionpulse"]["anchor_layer"].value = "99"


def no_such_pruner(play):
    play.pruner.value, play.written.value = "as text", "fastv(share=1)"


def no_number(play):
    play.seed.value = "one"


def no_tokens(play):
    play.max_new_tokens.value = "0"


def below_zero(play):
    play.temperature.value = "-1"


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (bad_path, "no image at no/such.png"),
        (no_picture, "no picture was uploaded yet"),
        (no_image, "notes.txt is not a readable image"),
        (no_question, "the question is empty"),
        (out_of_bounds, "budget must be a share of the patches in (0, 1], got 1.5"),
        (bounds_that_cross, "budget_min"),
        (layer_that_is_not_there, "99"),
        (no_such_pruner, "has no parameter"),
        (no_number, "seed must be a whole number, got &#x27;one&#x27;"),
        (no_tokens, "max_new_tokens must be at least 1, got 0"),
        (below_zero, "temperature must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_loses_nothing(play, breaks, words, capfd):
    play.run(wait=True)
    shown = play.traces, play.explorer, play._result.children
    typed = play.question.value
    breaks(play)
    play.run_button.click()
    play.wait()
    assert words in told(play) and "role='alert' class='vp-error'" in told(play)
    assert (play.traces, play.explorer, play._result.children) == shown
    assert play.question.value in (typed, "  ") and not play.run_button.disabled and not play.keep_button.disabled
    assert capfd.readouterr().err == ""


def test_from_python_what_cannot_be_is_an_error(vlm, play):
    for options in ({"image": "no/such.png"}, {"heads": "some"}, {"layer": 99}, {"seed": -1}, {"pruner": "fastw"}):
        with pytest.raises((ValueError, FileNotFoundError)):
            vpa.playground(vlm, **options)
    layer_that_is_not_there(play)
    with pytest.raises(ValueError, match="99"):
        play.run(wait=True)
    with pytest.raises(ValueError, match="nothing to keep yet"):
        play.keep()


def drawn_once_is_enough(monkeypatch):
    monkeypatch.setattr(Explorer, "figure", lambda *_: None)
    monkeypatch.setattr("visionpulse_analysis.figures.save", lambda *_, **__: [])


def names_in(code: str, **given) -> dict:
    space = dict(given)
    exec(code, space)
    return space


def test_the_kept_code_gives_the_same_traces_and_each_keeping_has_a_folder(play, monkeypatch):
    play.temperature.value, play.heads.value, play.seed.value = "0.7", "all", "3"
    play.run(wait=True)
    play.keep_button.click()
    drawn_once_is_enough(monkeypatch)
    again = play.keep()
    assert again.name == "2"
    folder = again.parent / "1"
    code = (folder / "playground.py").read_text()
    assert "Kept in" in play._kept.value and "vpa.decode(" in play._kept.value
    space = names_in(code)
    assert hashes([space["dense"], space["pruned"]]) == hashes(play.traces)
    store = vpa.TraceStore(folder / "playground.traces")
    assert hashes([store["dense"], store["pruned"]]) == hashes(play.traces)
    assert {f"playground.{ending}" for ending in ("html", "png", "pdf", "svg")} <= {p.name for p in folder.iterdir()}


def test_a_model_and_pictures_of_ones_own(vlm, tmp_path, pictures, monkeypatch):
    drawn_once_is_enough(monkeypatch)

    class Processor:
        tokenizer, image_processor = vlm.tokenizer, vlm.image_processor

    own = vpa.load((vlm.model, Processor()))
    play = vpa.playground(
        vlm.model, [pictures[0], Image.fromarray(pictures[0])], "which is red ?", processor=Processor(),
        pruner=None, max_new_tokens=2, out=tmp_path / "kept", run=True,
    )  # fmt: skip
    expected = vpa.decode(own, [pictures[0]] * 2, "which is red ?", max_new_tokens=2)
    assert hashes(play.traces) == [expected.data_hash]
    code = (play.keep() / "playground.py").read_text()
    space = names_in(code, model=vlm.model, processor=Processor())
    assert space["dense"].data_hash == expected.data_hash
