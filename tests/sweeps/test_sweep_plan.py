"""Samples and jobs: what is asked, under which id, and how it is cut into batches."""

import json

import pandas as pd
import pytest
from PIL import Image

from visionpulse_analysis.experiments.samples import scene_samples
from visionpulse_analysis.experiments.sweeps.config import SweepConfig
from visionpulse_analysis.experiments.sweeps.samples import batches, plan, read_samples


@pytest.fixture
def config(tmp_path):
    def make(samples, **more):
        return SweepConfig.from_plain({"out": "out", "samples": samples, **more}, folder=tmp_path)

    return make


@pytest.fixture
def photos(tmp_path):
    for number, name in enumerate(("b c.png", "a.png", "a.jpg")):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32 + number), "white").save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_scenes_are_those_of_the_notebooks(config):
    found = read_samples(config({"scenes": {"n": 4, "cells": 4, "seed": 2}}))
    wanted = scene_samples(4, seed=2, cells=4)
    assert [(s.name, s.question, s.expected) for s in found] == [(s.id, s.question, s.truth.answer) for s in wanted]
    assert [s.scene for s in found] == [(s.scene.seed, 4) for s in wanted]
    assert [s.task for s in found] == ["find", "compare", "count", "find"]


def test_a_folder(config, photos):
    found = read_samples(config({"folder": {"path": "photos", "question": "what ?", "answer": "white"}}))
    assert [s.name for s in found] == ["a.jpg", "a.png", "b c.png"]
    assert {(s.question, s.expected, s.scene) for s in found} == {("what ?", "white", None)}
    assert found[2].images == (str(photos / "b c.png"),)
    with pytest.raises(FileNotFoundError, match="no image"):
        read_samples(config({"folder": {"path": "none", "question": "what ?"}}))
    with pytest.raises(ValueError, match="question is empty"):
        read_samples(config({"folder": {"path": "photos", "question": " "}}))


ROWS = [
    {"image": "photos/a.png", "question": "what, or who ?", "answer": 3, "id": "one"},
    {"image": ["photos/a.png", "photos/a.jpg"], "question": "which differs ?"},
]


def test_tables(config, photos, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    one, two = read_samples(config({"table": {"path": "rows.jsonl"}}))
    assert (one.name, one.expected, one.images) == ("one", "3", (str(photos / "a.png"),))
    assert two.expected is None and two.images == (str(photos / "a.png"), str(photos / "a.jpg"))
    (tmp_path / "rows.csv").write_text('﻿id,image,question,answer\none,photos/a.png,"what, or who ?",3\n')
    assert read_samples(config({"table": {"path": "rows.csv"}})) == [one]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.csv", "image,answer\na.png,1\n", "r.csv: no column 'question'; it has 'image', 'answer'"),
        ("r.csv", "image,question,Answer\na.png,b,c\n", "column 'Answer' would be overlooked; call it 'answer'"),
        ("r.csv", "image,question\na.png,b\nc.png,\n", "r.csv, line 3: the question is empty"),
        ("r.csv", "image,question\n,b\n", "line 2: image must be a path"),
        ("r.csv", "image,question\na.png,b,c\n", "line 2: not as many cells as columns"),
        ("r.csv", "image,question\na.png\n", "line 2: not as many cells as columns"),
        ("r.csv", 'image,question\na.png,"b\n', "r.csv, line"),
        ("r.csv", "image,question\n", "r.csv holds no rows"),
        ("r.csv", "image,question\na.png,b\na.png,b\n", "line 3: the same sample .*as in line 2"),
        ("r.csv", "image,question,id\na.png,b,x\nc.png,d,x\n", "line 3: the same sample 'x' as in line 2"),
        ("r.jsonl", '{"image": "a.png", "question": "b"}\n{"image"', "r.jsonl, line 2: no valid JSON"),
        ("r.jsonl", "[1]", "line 1: expected an object"),
        ("r.jsonl", '{"image": [], "question": "b"}', "image must be a path or a list of paths"),
        ("r.jsonl", '{"image": 3, "question": "b"}', "image must be a path or a list of paths, got 3"),
        ("r.jsonl", '{"image": "a.png", "question": "b", "answer": ["c"]}', "answer must be text"),
        ("r.csv", "image,question,question\na.png,b,c\n", "r.csv: the column 'question' stands twice"),
        (
            "r.jsonl",
            '{"image": "a.png", "question": "b"}\n{"image": "a.png", "question": "\\ud800"}',
            "line 2: .*no valid text",
        ),
        ("r.jsonl", '{"image": "a.png", "question": "b", "answer": "\\ud800"}', r"line 1: '\\ud800' is no valid text"),
        ("r.parquet", "PAR", "r.parquet is no readable Parquet file"),
        ("r.txt", "", "neither .csv, .jsonl nor .parquet"),
    ],
)
def test_tables_that_would_be_misread(config, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_samples(config({"table": {"path": name}}))


def test_a_table_in_another_encoding_is_named(config, tmp_path):
    (tmp_path / "r.csv").write_bytes("image,question\na.png,wo ?\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"r\.csv is not in UTF-8 .*save it as UTF-8"):
        read_samples(config({"table": {"path": "r.csv"}}))


def test_a_parquet_table_says_the_same(config, photos, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n")
    listed = [{**row, "image": row["image"] if isinstance(row["image"], list) else [row["image"]]} for row in ROWS]
    pd.DataFrame(listed).astype({"answer": "Int64"}).to_parquet(tmp_path / "rows.parquet")
    pd.DataFrame(ROWS[:1]).to_parquet(tmp_path / "one.parquet")
    wanted = read_samples(config({"table": {"path": "rows.jsonl"}}))
    assert read_samples(config({"table": {"path": "rows.parquet"}})) == wanted
    assert read_samples(config({"table": {"path": "one.parquet"}})) == wanted[:1]


def test_every_job_once_in_the_order_of_the_table(config):
    arms = ["dense", {"name": "random", "label": "a/b"}]
    jobs = plan(config({"scenes": {"n": 3}}, pruners=arms, seeds=[0, 5], models=["scenes", "other/large"]))
    places = [(j.model.label, j.sample.name, j.arm.label, j.seed) for j in jobs]
    assert places == [
        (model, f"scene-1000000{i}", arm, seed)
        for model in ("scenes", "large")
        for i in range(3)
        for arm in ("dense", "a/b")
        for seed in (0, 5)
    ]
    assert len({job.id for job in jobs}) == 24
    assert jobs[2].id.startswith("scene-10000000.scenes.a-b.s0.")
    by_sample = {(j.sample.name, j.seed): j.row_seed for j in jobs}
    assert len(set(by_sample.values())) == 6, "draws differ between samples and seeds"
    assert all(job.row_seed == by_sample[job.sample.name, job.seed] for job in jobs), "and are shared by the arms"


CHANGES = {
    "tokens": {"decode": {"max_new_tokens": 9}},
    "layers": {"decode": {"layers": "all"}},
    "sampling": {"decode": {"sample": {"temperature": 1.0}}},
    "budget": {"pruners": [{"name": "random", "budget": 0.3, "label": "r"}]},
    "revision": {"models": [{"name": "scenes", "revision": "v2"}]},
    "dtype": {"models": [{"name": "scenes", "dtype": "bfloat16"}]},
    "code": {"models": [{"name": "scenes", "trust_remote_code": True}]},
    "cells": {"samples": {"scenes": {"n": 1, "cells": 6}}},
}
SAME = {
    "batch size": {"decode": {"batch_size": 3}},
    "retries": {"retries": 5},
    "device": {"models": [{"name": "scenes", "device": "cpu"}]},
    "more samples": {"samples": {"scenes": {"n": 2}}},
    "more pruners": {"pruners": [{"name": "random", "budget": 0.2, "label": "r"}, "dense"]},
}


@pytest.mark.parametrize("change", [*CHANGES, *SAME])
def test_the_id_changes_with_what_the_trace_holds_and_with_nothing_else(config, change):
    base = {"samples": {"scenes": {"n": 1}}, "pruners": [{"name": "random", "budget": 0.2, "label": "r"}]}
    [before] = plan(config(**base))
    after = plan(config(**{**base, **{**CHANGES, **SAME}[change]}))[0]
    assert (after.id == before.id) is (change in SAME)


def test_a_model_without_code_of_its_own_is_the_model_of_earlier_sweeps(config):
    plain = config({"scenes": {"n": 1}})
    assert plain.recipe(plain.models[0], plain.pruners[0])["model"] == {
        "name": "scenes",
        "dtype": "auto",
        "revision": "main",
    }


def test_another_picture_under_the_same_name_is_another_sample(config, photos):
    samples = {"folder": {"path": "photos", "question": "what ?"}}
    before = [job.id for job in plan(config(samples))]
    content = bytearray((photos / "a.png").read_bytes())
    content[-20] ^= 1  # as many bytes as before
    (photos / "a.png").write_bytes(content)
    after = [job.id for job in plan(config(samples))]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_the_same_trace_twice_is_refused(config):
    arms = [{"name": "random", "label": "a"}, {"name": "random", "label": "a "}]
    with pytest.raises(ValueError, match=r"'a ' and .*'a' would be the same trace scene-10000000\.scenes\.a\.s0"):
        plan(config({"scenes": {"n": 1}}, pruners=arms))


def test_batches_hold_samples_of_one_arm_and_every_job_once(config):
    jobs = plan(config({"scenes": {"n": 5}}, pruners=["dense", "random"], seeds=[0, 1]))
    cut = list(batches(jobs, 2))
    assert sorted(job.id for batch in cut for job in batch) == sorted(job.id for job in jobs)
    assert [len(batch) for batch in cut] == [2] * 8 + [1] * 4
    for batch in cut:
        assert len({(job.arm.label, job.seed) for job in batch}) == 1
        assert len({job.sample.name for job in batch}) == len(batch)
    assert {job.sample.name for batch in cut[:4] for job in batch} == {"scene-10000000", "scene-10000001"}
