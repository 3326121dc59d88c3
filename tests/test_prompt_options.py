"""Prompt options and turns: what the chat template is given, what is refused, and what a trace and its keys say."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import visionpulse_analysis as vpa
from visionpulse_analysis.cli import app
from visionpulse_analysis.decoding.interventions.single_steps import SingleSteps
from visionpulse_analysis.decoding.prompt_text import question_tokens
from visionpulse_analysis.experiments.cache import state_of
from visionpulse_analysis.experiments.collect import collect, key_of
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.experiments.sweeps import worker
from visionpulse_analysis.experiments.sweeps.config import SweepConfig
from visionpulse_analysis.experiments.sweeps.running import run as run_sweep
from visionpulse_analysis.experiments.sweeps.samples import plan
from visionpulse_analysis.figures import read_provenance
from visionpulse_analysis.models.asking import argument_names

QUESTION = "where is the red circle ?"
PAGE = Path(__file__).parents[1] / "docs" / "prompts.md"
U, A = {"role": "user", "content": "red ?"}, {"role": "assistant", "content": "circle"}
IMAGE, RED, ASKED = {"type": "image"}, {"type": "text", "text": "red"}, {"type": "text", "text": QUESTION}
WEB = {"type": "image", "url": "https://x/y.png"}
STRICT = (  # knows two arguments; refuses a system's turn, and takes no lists there
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
    "{% else %}PICTURE{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %} the{% endif %}{% if depth %} red{% endif %}"
)


@pytest.fixture
def template(vlm, monkeypatch):
    """Give the model another chat template, in which PICTURE stands for what it writes for a picture."""

    def give(text):
        monkeypatch.setattr(vlm.tokenizer, "chat_template", text.replace("PICTURE", vlm.family.placeholder))
        return vlm

    return give


def text_of(vlm, prompt) -> str:
    """The prompt as text, one placeholder for each picture."""
    ids = prompt.ids.tolist()
    mark = vlm.family.image_id
    return vlm.tokenizer.decode([one for n, one in enumerate(ids) if one != mark or n == 0 or ids[n - 1] != mark])


def words(vlm, text) -> list[int]:
    return vlm.tokenizer(text, add_special_tokens=False).input_ids


def test_the_answer_begins_with_the_prefix_which_is_no_step(vlm, pictures):
    plain = vlm.prompt(pictures[0], QUESTION)
    trace = vpa.decode(vlm, pictures[0], QUESTION, prompt_options={"prefix": " the red"}, max_new_tokens=3)
    asked = vlm.asking({"prefix": " the red"}).prompt(pictures[0], QUESTION)
    assert asked.ids.tolist() == plain.ids.tolist() + words(vlm, " the red")
    assert asked.grid.equals(plain.grid) and len(trace.prompt_tokens) > len(plain.question.split())
    assert trace.meta["prompt_options"] == {"prefix": " the red"}
    # Continued where the model itself would be after writing the prefix: row by row the forced decode of those words.
    batch = vlm.family.batch([asked], padding=0)
    with torch.inference_mode():
        logits = vlm.model(**batch, position_ids=vlm.family.positions(vlm.model, batch)).logits[0, -1]
    assert trace.token_ids[0] == int(logits.argmax())
    # A prefix that repeats the question is no question.
    echo = vlm.asking({"prefix": f" {QUESTION}"}).prompt(pictures[0], QUESTION)
    assert question_tokens(vlm.tokenizer, echo).tolist() == question_tokens(vlm.tokenizer, plain).tolist()


def test_a_system_prompt_comes_first(vlm, pictures):
    prompt = vlm.asking({"system": "look at the picture"}).prompt(pictures[0], QUESTION)
    text = text_of(vlm, prompt)
    assert text.index("look at the picture") < text.index(vlm.family.image_token) < text.index("red circle")
    parts = [{"role": "system", "content": [{"type": "text", "text": "look at the picture"}]},
             {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]  # fmt: skip
    expected = vlm.tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
    assert words(vlm, text) == words(vlm, expected) or text == expected
    assert "system" in vlm.prompt(pictures[0], parts).turns[0]["role"]
    with pytest.raises(ValueError, match="a system's turn, and the option system"):
        vlm.asking({"system": "see"}).prompt(pictures[0], parts)


IGNORES = "PICTURE{{ messages[-1].content[-1].text }}"
AS_TEXT = (
    "{% for m in messages %}{% if m.role == 'user' %}PICTURE{% for p in m.content %}{% if p.type == 'text' %}"
    "{{ p.text }}{% endif %}{% endfor %}{% else %}<{{ m.content }}>{% endif %}{% endfor %}"
)


def test_what_a_template_does_not_know_is_refused(template, pictures):
    vlm = template(STRICT)
    for options, why in [
        ({"system": "look"}, r"refuses these turns \(system, user\): no system here"),
        ({"template": {"thinking": True}}, "takes no 'thinking' .*it takes depth, enable_thinking"),
    ]:
        with pytest.raises(ValueError, match=why):
            vpa.decode(vlm, pictures[0], QUESTION, prompt_options=options, max_new_tokens=1)
    for options, added in [({"enable_thinking": False}, " the"), ({"depth": 2, "enable_thinking": False}, " the red")]:
        prompt = vlm.asking({"template": options}).prompt(pictures[0], QUESTION)
        assert text_of(vlm, prompt).endswith(QUESTION + added)
    with pytest.raises(ValueError, match=r"writes nothing of the system's turn.*say it in the question"):
        template(IGNORES).asking({"system": QUESTION}).prompt(pictures[0], QUESTION)
    with pytest.raises(ValueError, match="writes nothing of the user's turn"):
        vlm.prompt(pictures[0], [U, A, {**U, "content": [IMAGE, {"type": "text", "text": "circle"}]}])


def test_a_template_that_wants_texts_gets_texts(template, pictures):
    prompt = template(AS_TEXT).asking({"system": "look"}).prompt(pictures[0], QUESTION)
    assert "'type'" not in (text := text_of(template(AS_TEXT), prompt)) and "look" in text


def test_names_that_a_template_takes():
    assert argument_names(STRICT) == {"enable_thinking", "depth"}
    assert argument_names("{% generation %}{{ bos_token }}{{ x.y }}{% endgeneration %}{% set z = 1 %}{{ z }}") == {"x"}


def test_several_turns_with_pictures_where_they_stand(vlm, pictures):
    a, b, c = pictures
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "look at"}, IMAGE, RED]},
        {"role": "assistant", "content": "circle"},
        {"role": "user", "content": [{"type": "image", "image": b}, IMAGE, ASKED]},
    ]
    trace = vpa.decode(vlm, [a, c], turns, max_new_tokens=2)
    assert [one.shape for one in trace.images] == [a.shape, b.shape, c.shape]
    assert trace.question == QUESTION and trace.grid.n_images == 3
    bare = [turns[0], {"role": "assistant", "content": [{"type": "text", "text": "circle"}]},
            {"role": "user", "content": [IMAGE, IMAGE, ASKED]}]  # fmt: skip
    assert trace.meta["turns"] == bare and json.loads(json.dumps(trace.meta))["turns"] == bare
    prompt = vlm.prompt([a, b, c], trace.meta["turns"])
    text, mark = text_of(vlm, prompt), vlm.family.image_token
    written = vlm.tokenizer.apply_chat_template(bare, tokenize=False, add_generation_prompt=True)
    assert written.count(mark) == text.count(mark) == 3
    order = [text.index("look at"), text.index(mark), text.index("circle"), text.rindex("circle")]
    assert order == sorted(order) and text.index(mark, order[2]) > order[2]
    replay = SingleSteps.of(vlm, trace)
    assert replay.n_prompt == len(prompt.ids)
    batch = vpa.decode(vlm, [[a, c], a], [turns, "red ?"], max_new_tokens=2)
    assert batch[0].tokens == trace.tokens and "turns" not in batch[1].meta


def test_pictures_of_turns_without_places_begin_the_first_turn(vlm, pictures):
    turns = [{"role": "user", "content": "red ?"}, {"role": "assistant", "content": "circle"},
             {"role": "user", "content": QUESTION}]  # fmt: skip
    placed = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "red ?"}]}, *turns[1:]]
    assert torch.equal(vlm.prompt(pictures[0], turns).ids, vlm.prompt(pictures[0], placed).ids)


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ([U, A], "the last turn is the assistant's; .*as prefix"),
        ([{"role": "robot", "content": "x"}], "turn 0 must be a message with a role"),
        ([{"role": "user"}], "turn 0 must be a message"),
        ([{"role": "user", "content": 3}], "turn 0: content must be a text or a list"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "turn 0: a part must be"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "turn 0: text must be a text"),
        ([{"role": "user", "content": [IMAGE, IMAGE, RED]}], "have 2 parts .* and 1 are given"),
        ([{"role": "user", "content": [IMAGE]}], "the question is empty"),
        ([U, A, {"role": "user", "content": " "}], "the question is empty"),
        ([{"role": "user", "content": [WEB, RED]}, U],
         "and 1 are given"),
        ([{"role": "user", "content": "red \ud800"}], "not valid Unicode"),
        ([{"role": "user", "content": [{"type": "video"}, RED]}], "of type 'video' was given"),
    ],
)  # fmt: skip
def test_turns_that_are_none_are_refused(vlm, pictures, turns, why):
    with pytest.raises(ValueError, match=why):
        vpa.decode(vlm, pictures[0], turns, max_new_tokens=1)


def test_nothing_is_fetched_and_marks_in_turns_are_refused(vlm, pictures):
    url = [{"role": "user", "content": [WEB, RED]}]
    with pytest.raises(ValueError, match="nothing is fetched"):
        vpa.decode(vlm, None, url, max_new_tokens=1)
    mark = vlm.family.image_token
    for turns in ([U, {**A, "content": mark}, U], [{**U, "content": f"a {mark}"}]):
        with pytest.raises(ValueError, match="the turn contains"):
            vlm.prompt(pictures[0], turns)
    for name in ("system", "prefix"):
        with pytest.raises(ValueError, match=f"the {name}.* contains"):
            vlm.asking({name: f"see {mark}"}).prompt(pictures[0], QUESTION)
    with pytest.raises(ValueError, match="ends an answer"):
        vlm.asking({"prefix": vlm.tokenizer.eos_token}).prompt(pictures[0], QUESTION)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("be brief", "must be a PromptOptions or a dict"),
        ({"max_pixel": 5}, "has no 'max_pixel'; known: min_pixels, max_pixels"),
        ({"max_pixels": 0}, "max_pixels must be at least 1"),
        ({"max_tiles": 2.5}, "max_tiles must be a whole number"),
        ({"min_pixels": 9, "max_pixels": 4}, "min_pixels must be at most max_pixels"),
        ({"system": 3}, "system must be a text"),
        ({"prefix": "\ud800"}, "prefix is not valid Unicode"),
        ({"template": ["a"]}, "template must be a dict"),
        ({"template": {"tokenize": True}}, "template cannot set 'tokenize'"),
        ({"template": {"x": float("nan")}}, "must be plain values"),
        ({"template": {"x": object()}}, "must be plain values"),
    ],
)
def test_options_that_are_none_are_refused(vlm, pictures, given, why):
    for refuse in (vpa.load, lambda name, prompt_options: vpa.decode(vlm, pictures[0], QUESTION,
                                                                     prompt_options=prompt_options)):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            refuse("scenes", prompt_options=given)


def test_options_of_a_decode_go_before_those_of_the_model(scenes_folder, vlm, pictures):
    loaded = vpa.load(str(scenes_folder), prompt_options={"system": "look", "prefix": " the", "max_pixels": 4096})
    trace = vpa.decode(
        loaded, pictures[2], QUESTION, prompt_options={"prefix": "", "min_pixels": 8192}, max_new_tokens=1
    )
    assert trace.meta["prompt_options"] == {"system": "look", "prefix": "", "min_pixels": 8192, "max_pixels": 8192}
    own = vpa.decode(loaded, pictures[0], QUESTION, max_new_tokens=1).meta["prompt_options"]
    assert own == loaded.prompt_options.to_dict() and vlm.prompt_options == vpa.PromptOptions()
    assert loaded.asking(None).prompt_options == vpa.PromptOptions()


EACH = [
    None, {"max_pixels": 4096}, {"min_pixels": 32768}, {"system": "look"}, {"prefix": " the"}, {"prefix": " red"},
    {"template": {"add_vision_id": False}},
]  # fmt: skip


def test_no_two_ways_of_asking_share_a_kept_result(vlm, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path))
    samples = [Sample("a", pictures[0], QUESTION)]
    keys = [key_of(one, samples, {}, state_of(one)) for one in map(vlm.asking, EACH[:-1])]
    assert None not in keys and len(set(keys)) == len(keys)
    [dense], [again] = (
        collect(vlm, samples, max_new_tokens=2, prompt_options=one) for one in (None, {"prefix": " the"})
    )
    assert "prompt_options" not in dense.meta and again.meta["prompt_options"] == {"prefix": " the"}
    assert len(list(tmp_path.iterdir())) == 2


def test_no_two_ways_of_asking_share_a_trace_of_a_sweep(tmp_path):
    def ids(model, decode):
        plain = {"out": "x", "samples": {"scenes": {"n": 1}}, "models": [{"name": "scenes", **model}], "decode": decode}
        return [job.id for job in plan(SweepConfig.from_plain(plain, folder=tmp_path))]

    of_decode = [ids({}, {} if one is None else {"prompt_options": one}) for one in EACH]
    of_model = [ids({} if one is None else {"prompt_options": one}, {}) for one in EACH]
    assert of_decode == of_model and len(set(map(tuple, of_decode))) == len(EACH)
    # A sweep that was begun before there were options goes on.
    assert ids({"prompt_options": {}}, {"prompt_options": {}}) == of_decode[0] == ids({}, {})
    with pytest.raises(ValueError, match=r"decode: prompt_options: unknown key 'max_pixel'. Did you mean 'max_pixels'"):
        ids({}, {"prompt_options": {"max_pixel": 5}})
    with pytest.raises(ValueError, match="max_pixels must be at least 1"):
        ids({}, {"prompt_options": {"max_pixels": 0}})


def test_a_sweep_draws_as_the_model_says_unless_told(tmp_path):
    def first(decode):
        plain = {"out": "x", "samples": {"scenes": {"n": 1}}, "decode": decode}
        config = SweepConfig.from_plain(plain, folder=tmp_path)
        return plan(config)[0].id, worker._options(json.loads(json.dumps(asdict(config.decode))))["sample"]

    own, greedy, warm = (first(one) for one in ({}, {"sample": "greedy"}, {"sample": {"temperature": 0.7}}))
    assert [own[1], greedy[1], warm[1]] == ["model", None, vpa.Sample(0.7)]
    assert own == first({"sample": "model"}) and greedy == first({"sample": None})
    others = [first({"max_new_tokens": None})[0], first({"max_new_tokens": 255})[0]]
    assert own[0] == first({"max_new_tokens": 256})[0] and len({own[0], greedy[0], warm[0], *others}) == 5
    with pytest.raises(ValueError, match="sample: expected key: value lines, got 'warm'"):
        first({"sample": "warm"})


def test_commands_take_the_options(vlm, scenes_folder, tmp_path, pictures):
    picture, out = tmp_path / "a.png", tmp_path / "out"
    Image.fromarray(pictures[0]).save(picture)
    (tmp_path / "turns.json").write_text(json.dumps([
        {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "red ?"}]},
        {"role": "assistant", "content": "circle"}, {"role": "user", "content": "where ?"},
    ]))  # fmt: skip

    def run(*args) -> Any:
        done = CliRunner().invoke(
            app, [*map(str, args), "--model", str(scenes_folder), "--max-new-tokens", "2", "--json"]
        )
        return json.loads(done.stdout) if done.exit_code == 0 else done.output

    options = ["--prefix", " the", "--system", "look", "--min-pixels", "8192"]
    found = run("decode", picture, QUESTION, *options)
    assert found["meta"]["prompt_options"] == {"prefix": " the", "system": "look", "min_pixels": 8192}
    assert found["patches"] > len(vlm.prompt(pictures[0], QUESTION).grid)
    turned = run("decode", "--turns", tmp_path / "turns.json")
    assert turned["meta"]["question"] == "where ?" and len(turned["meta"]["turns"]) == 3
    unknown = run("decode", picture, QUESTION, "--template", "enable_thinking=false")
    assert "takes no 'enable_thinking'" in unknown and "no question given" in run("decode")
    run("compare", picture, QUESTION, "--pruners", "random(budget=0.5)", "--out", out, "--prefix", " the")
    assert read_provenance(out / "kept.png")["parameters"]["prompt_options"] == {"prefix": " the"}


def test_template_arguments_of_the_command_line_are_values():
    from visionpulse_analysis.cli.base import prompt_options

    assert prompt_options(["enable_thinking=false", "depth=2", "who=me", "flag=True", 'tools=["a"]'])["template"] == {
        "enable_thinking": False, "depth": 2, "who": "me", "flag": True, "tools": ["a"]}  # fmt: skip
    assert prompt_options(None, system=None) == {}


def test_a_decode_with_options_takes_the_weights_hash_once(vlm, pictures, monkeypatch):
    asked = vlm.asking({"prefix": " the"})
    _ = asked.weights_hash
    monkeypatch.setattr("visionpulse_analysis.models.loading.bytes_of", lambda value: 1 / 0)
    assert vlm.weights_hash == asked.weights_hash == vlm.asking({"system": "x"}).weights_hash


def test_masses_of_a_prefix_are_those_of_the_words_as_the_models_own(vlm, pictures):
    """The prefix counts as text of the prompt: costs and rows know it there."""
    plain, asked = (
        vpa.decode(vlm, pictures[0], QUESTION, prompt_options=one, max_new_tokens=1)
        for one in (None, {"prefix": " the red"})
    )
    assert asked.meta["costs"]["text"] == plain.meta["costs"]["text"] + len(words(vlm, " the red"))
    assert np.isfinite(asked.mass.values).all()


def test_the_python_of_the_page_runs_as_it_stands(monkeypatch):
    monkeypatch.chdir(PAGE.parents[1])
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        exec(block, names)
    assert names["trace"].question == "find the red circle ." and len(names["trace"].meta["turns"]) == 3
    assert names["other"].prompt_options == vpa.PromptOptions(max_pixels=4096)
    for field in fields(vpa.PromptOptions):
        assert f"`{field.name}`" in PAGE.read_text("utf-8")


def test_samples_of_a_sweep_in_several_turns(vlm, scenes_folder, tmp_path, pictures):
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    turns = [{"role": "user", "content": [IMAGE, RED]}, A, {"role": "user", "content": "where ?"}]
    rows = [{"image": "a.png", "question": turns, "answer": "r1 c1"}, {"image": "a.png", "question": "where ?"}]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = {"out": "out", "models": [str(scenes_folder)], "decode": {"max_new_tokens": 2}}
    config = SweepConfig.from_plain({**plain, "samples": {"table": {"path": "table.jsonl"}}}, folder=tmp_path)
    run_sweep(config, workers=0, progress=False)
    stored = vpa.Sweep(tmp_path / "out")
    assert stored.table["question"].tolist() == ["where ?", "where ?"] and (stored.table["status"] == "done").all()
    traces = [stored.store[id] for id in stored.table["id"]]
    assert traces[0].meta["turns"] == [turns[0], {**A, "content": [{"type": "text", "text": A["content"]}]},
                                       {**turns[2], "content": [{"type": "text", "text": "where ?"}]}]  # fmt: skip
    assert traces[0].tokens == vpa.decode(vlm, pictures[0], turns, layers="none", max_new_tokens=2).tokens
    folder = {"folder": {"path": ".", "question": turns[:1]}}
    assert plan(SweepConfig.from_plain({**plain, "samples": folder}, folder=tmp_path))[0].sample.question == "red"
    for wrong, why in (([U, A], "the last turn is the assistant's"), ([WEB, RED], "hold pictures themselves")):
        folder["folder"]["question"] = wrong if wrong[0] is U else [{"role": "user", "content": wrong}]
        with pytest.raises(ValueError, match=why):
            plan(SweepConfig.from_plain({**plain, "samples": folder}, folder=tmp_path))
