"""The sweep's file: every mistake is named, before anything is decoded."""

from pathlib import Path

import pytest

from visionpulse_analysis.decoding.sampling import Sample
from visionpulse_analysis.experiments.sweeps.config import Decoding, SweepConfig, read_config, read_yaml
from visionpulse_analysis.pruners import Random, VisionPulse

WHOLE = """
out: runs/one
samples:
  table: {path: rows.csv}
models:
  - scenes
  - {name: some/where/large, label: big, dtype: bfloat16}
pruners:
  - dense
  - {name: visionpulse, budget: 0.05, label: five}
  - {name: random, budget: 0.1, anchor_layer: 3}
seeds: [0, 7]
decode: {layers: [1, 3], max_new_tokens: 12, sample: {temperature: 0.5}}
retries: 0
"""


def test_a_whole_file(tmp_path):
    (tmp_path / "sweep.yaml").write_text(WHOLE)
    config = read_config(tmp_path / "sweep.yaml")
    assert config.out == tmp_path / "runs" / "one" and config.folder == tmp_path
    assert [(m.name, m.label, m.dtype) for m in config.models] == [
        ("scenes", "scenes", "auto"),
        ("some/where/large", "big", "bfloat16"),
    ]
    assert [(arm.label, arm.pruner) for arm in config.pruners] == [
        ("dense", None),
        ("five", VisionPulse(budget=0.05)),
        ("random budget=0.1 anchor_layer=3", Random(budget=0.1, anchor_layer=3)),
    ]
    assert config.decode == Decoding(layers=[1, 3], max_new_tokens=12, sample=Sample(0.5))
    assert (config.seeds, config.retries, config.table, config.modules) == ([0, 7], 0, "csv", [])


SCENES = {"scenes": {"n": 2}}


@pytest.mark.parametrize("label", ["no", "on", "null", "5", "0.05", "2026-01-02", "[a]", ""])
def test_a_label_that_is_no_text_for_yaml_is_refused_and_quotes_make_it_one(label):
    text = "{out: x, samples: {scenes: {n: 2}}, pruners: [{name: random, budget: 0.05, label: %s}]}"
    with pytest.raises(ValueError, match=r"label must be text, got .*\); a text that YAML takes for .* needs quotes"):
        SweepConfig.from_plain(read_yaml(text % label), folder=Path())
    for empty in ("''", "' '"):
        with pytest.raises(ValueError, match="label is empty; write one, or leave the line out"):
            SweepConfig.from_plain(read_yaml(text % empty), folder=Path())
    quoted = SweepConfig.from_plain(read_yaml(text % f"'{label or 'x'}'"), folder=Path())
    assert [arm.label for arm in quoted.pruners] == [label or "x"]


@pytest.mark.parametrize(
    "part", ["models: [{name: scenes, label: no}]", "samples: {folder: {path: a, question: b, answer: yes}}", "out: 5"]
)
def test_other_texts_that_are_none_for_yaml_say_that_they_need_quotes(part):
    given = {"out": "x", "samples": SCENES, **read_yaml(part)}
    with pytest.raises(ValueError, match=r"expected text.* needs quotes"):
        SweepConfig.from_plain(given, folder=Path())


def test_paths_of_models_count_from_the_file(tmp_path, monkeypatch):
    (tmp_path / "sweeps" / "mine" / "model").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    (tmp_path / "elsewhere" / "mine" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    names = ["mine/model", "./mine", "../model", "scenes", "owner/name", "../nothing", str(tmp_path / "model")]
    models = [{"name": name, "label": f"m{number}"} for number, name in enumerate(names)]
    config = SweepConfig.from_plain({"out": "x", "samples": SCENES, "models": models}, folder=tmp_path / "sweeps")
    assert [model.name for model in config.models] == names  # as written: what a trace's id depends on
    here = tmp_path / "sweeps" / "mine"
    assert [config.source(model) for model in config.models] == [
        *map(str, (here / "model", here, tmp_path / "model")), "scenes", "owner/name",
        str(tmp_path / "nothing"), str(tmp_path / "model"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"out": "x"}, "sweep: 'samples' is missing; known: out, samples, models"),
        ({"samples": SCENES}, "sweep: 'out' is missing"),
        ([1], r"sweep: expected key: value lines, got \[1\]"),
        ({"out": "x", "samples": SCENES, "prunner": []}, "sweep: unknown key 'prunner'. Did you mean 'pruners'"),
        ({"out": 3, "samples": SCENES}, r"sweep: out: expected text, got 3 \(int\)"),
        ({"out": "x", "samples": {}}, "samples: expected one of scenes, folder, table and benchmark, got none"),
        ({"out": "x", "samples": {**SCENES, "table": {"path": "y"}}}, "got scenes and table"),
        ({"out": "x", "samples": {"scenes": {"m": 2}}}, "sweep: samples: scenes: unknown key 'm'"),
        ({"out": "x", "samples": {"scenes": {"n": True}}}, r"scenes: n: expected int, got True \(bool\)"),
        ({"out": "x", "samples": {"scenes": {"n": 0}}}, "n must be at least 1"),
        ({"out": "x", "samples": {"scenes": {"n": 1, "tasks": ["guess"]}}}, "tasks takes some of find"),
        ({"out": "x", "samples": SCENES, "pruners": ["magic"]}, "no pruner 'magic'; known: dense, "),
        ({"out": "x", "samples": SCENES, "pruners": [{"name": "random", "bugdet": 1}]}, "Did you mean 'budget'"),
        (
            {"out": "x", "samples": SCENES, "pruners": [{"name": "visionpulse", "budget": "1e-2"}]},
            "budget must be .*'1e",
        ),
        ({"out": "x", "samples": SCENES, "pruners": [{"name": "visionpulse", "budget": 2.0}]}, "budget"),
        ({"out": "x", "samples": SCENES, "pruners": [{"name": "dense", "budget": 0.1}]}, "unknown key 'budget'"),
        ({"out": "x", "samples": SCENES, "pruners": ["dense", "dense"]}, "pruners: 'dense' stands twice"),
        ({"out": "x", "samples": SCENES, "pruners": []}, "pruners is empty"),
        ({"out": "x", "samples": SCENES, "models": [{"nam": "scenes"}]}, "unknown key 'nam'. Did you mean 'name'"),
        ({"out": "x", "samples": SCENES, "models": ["a/m", "b/m"]}, "models: 'm' stands twice; give each a label"),
        ({"out": "x", "samples": SCENES, "seeds": [1, 1]}, "seeds: 1 stands twice"),
        ({"out": "x", "samples": SCENES, "seeds": ["a"]}, "seeds: expected a list of int"),
        ({"out": "x", "samples": SCENES, "retries": -1}, "retries and seeds must be at least 0"),
        ({"out": "x", "samples": SCENES, "seeds": [2**63]}, r"below 2\*\*63"),
        ({"out": "x", "samples": SCENES, "decode": {"layers": "some"}}, "layers: expected 'all' or 'anchor' or 'none'"),
        ({"out": "x", "samples": SCENES, "decode": {"sample": {"temperature": 0.0}}}, "temperature must be above 0"),
        ({"out": "x", "samples": SCENES, "decode": {"batch_size": 0}}, "max_new_tokens and batch_size"),
        ({"out": "x", "samples": SCENES, "table": "xls"}, "table: expected 'csv' or 'parquet', got 'xls'"),
        ({"out": "x", "samples": SCENES, "modules": ["no_such_module_here"]}, "modules: 'no_such_module_here' cannot"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        SweepConfig.from_plain(given, folder=Path())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' stands twice, line 1"),
        ("x: {seed: 1, seed: 2}", "the key 'seed' stands twice"),
        ("a: [1", "no valid YAML: .*line 1"),
        ("a: !!python/object/apply:os.getcwd []", "no valid YAML"),
    ],
)
def test_yaml_that_would_be_misread(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_yaml(text)
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"broken.yaml: .*{message}"):
        read_config(tmp_path / "broken.yaml")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no sweep file at .*none\.yaml"):
        read_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("code", ["def x(:", "1 / 0"])
def test_a_module_that_cannot_be_imported_is_named(code, tmp_path):
    (tmp_path / "broken_module_of_mine.py").write_text(code)
    given = {"out": "x", "samples": SCENES, "modules": ["broken_module_of_mine"]}
    with pytest.raises(ValueError, match=r"modules: 'broken_module_of_mine' cannot be imported .*Error"):
        SweepConfig.from_plain(given, folder=tmp_path)


def test_pruners_of_ones_own_come_from_a_module_beside_the_file(tmp_path):
    (tmp_path / "pruners_of_mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from visionpulse_analysis.pruners import Random\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Random):\n"
        "    name: ClassVar[str] = 'mine'\n"
    )
    given = {
        "out": "x",
        "samples": SCENES,
        "pruners": [{"name": "mine", "budget": 0.2}],
        "modules": ["pruners_of_mine"],
    }
    [arm] = SweepConfig.from_plain(given, folder=tmp_path).pruners
    assert type(arm.pruner).__name__ == "Mine" and arm.pruner.budget == 0.2


def test_presets_are_named_after_a_colon(tmp_path):
    plain = {"out": "runs", "samples": {"scenes": {"n": 1}}}
    given = ["visionpulse:10", {"name": "visionpulse:block", "anchor_layer": 3}]
    arms = SweepConfig.from_plain({**plain, "pruners": given}, folder=tmp_path).pruners
    assert [(arm.label, arm.pruner) for arm in arms] == [
        ("visionpulse:10", VisionPulse.ten_percent()),
        ("visionpulse:block anchor_layer=3", VisionPulse.block(3)),
    ]
    with pytest.raises(ValueError, match="'visionpulse:7': pruner 'visionpulse' has no preset '7'"):
        SweepConfig.from_plain({**plain, "pruners": ["visionpulse:7"]}, folder=tmp_path)
