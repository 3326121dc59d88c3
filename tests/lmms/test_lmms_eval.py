"""lmms-eval's own command line, with and without watching: scores, answers, and one trace for each document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny_models import build
from transformers import AutoTokenizer, ProcessorMixin

import visionpulse_analysis as vpa

TASK = """
task: tiny_task
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/documents.jsonl
test_split: test
output_type: generate_until
doc_to_visual: !function tiny_task.doc_to_visual
doc_to_text: !function tiny_task.doc_to_text
doc_to_target: "answer"
process_results: !function tiny_task.process_results
generation_kwargs:
  max_new_tokens: 5
metric_list:
  - metric: letters
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """
from PIL import Image


def doc_to_visual(doc):
    return [Image.open(path).convert("RGB") for path in doc["pictures"]]


def doc_to_text(doc):
    return doc["question"]


def process_results(doc, results):
    return {"letters": sum(map(ord, results[0])) % 97}
"""
QUESTIONS = ("how many circles ?", "where ?", "which of these squares is red ?", "what is two and two ?")
PRUNER = "visionpulse(budget=0.25)"
# Classes that prepare a batch in another thread, that read two documents at a time, and that go on after an error.
CLASSES = {"qwen3_vl": ("qwen3_vl", 1, 4), "qwen2_5_vl": ("qwen2_5_vl", 2, 3), "llava_hf": ("llava", 1, 3)}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task of lmms-eval over local pictures; its last document has none."""
    folder, rng = tmp_path_factory.mktemp("task"), np.random.default_rng(0)
    documents = []
    for number, question in enumerate(QUESTIONS):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (64, 64 + 32 * number, 3), dtype=np.uint8)).save(path)
        shown = [str(path)] if number < 3 else []
        documents.append({"pictures": shown, "question": question, "answer": "two"})
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)), "utf-8")
    (folder / "tiny_task.yaml").write_text(TASK.format(folder=folder), "utf-8")
    (folder / "tiny_task.py").write_text(FUNCTIONS, "utf-8")
    return folder


@pytest.fixture(scope="module", params=CLASSES)
def stock(request, task, tmp_path_factory):
    """A stock model class over a tiny model of its kind, how it is run, and what a plain run gives."""
    family, batch, limit = CLASSES[request.param]
    folder, tiny = tmp_path_factory.mktemp(family), build(family)
    tiny.save(folder)
    if isinstance(tiny.processor, ProcessorMixin):
        tiny.processor.save_pretrained(folder)
    pixels = ",min_pixels=3136,max_pixels=12544" if "qwen" in family else ""
    made = {
        "model": request.param, "tasks": "tiny_task", "include_path": task, "log_samples": None, "limit": limit,
        "model_args": f"pretrained={folder},device_map=cpu{pixels}", "device": "cpu", "batch_size": batch,
    }  # fmt: skip
    stock = SimpleNamespace(folder=folder, options=made, out=tmp_path_factory.mktemp("out"))
    stock.plain = run("lmms-eval", stock, "plain")
    assert len(stock.plain.answers) == limit, stock.plain.said
    return stock


def run(program, stock, out, *before, **options):
    """Run a command line over the task; what lmms-eval writes: results, and each document's answer and score."""
    given = stock.options | options | {"output_path": stock.out / out}
    arguments = [part for name, value in given.items() for part in (f"--{name}", value) if part is not None]
    caches = {"HF_HOME": stock.out / "cache", "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("lmms_command.py"), program, *before, *map(str, arguments)],
        env={**os.environ, **{name: str(value) for name, value in caches.items()}},
        capture_output=True, text=True, timeout=600, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    results = sorted((stock.out / out).rglob("*_results.json"))
    samples = sorted((stock.out / out).rglob("*_samples_*.jsonl"))
    logged = [json.loads(line) for path in samples for line in path.read_text("utf-8").splitlines()]
    return SimpleNamespace(
        code=done.returncode, said=done.stdout + done.stderr,
        results=json.loads(results[0].read_text("utf-8"))["results"] if results else None,
        answers={one["doc_id"]: (one["filtered_resps"], one["letters"]) for one in logged},
    )  # fmt: skip


def watched(stock, out, *options, **changed):
    """A run under watch, and its traces by the number of the document."""
    before = ("lmms-eval", "--store", str(stock.out / "traces"), "--prefix", f"{out}-", *options, "--")
    found = run("visionpulse", stock, out, *before, **changed)
    store, begin = vpa.TraceStore(stock.out / "traces"), f"{out}-tiny_task-test-"
    found.traces = {int(id.removeprefix(begin)): store[id] for id in store if id.startswith(begin)}
    return found


def test_scores_are_those_of_a_plain_run_and_each_document_has_a_trace(stock):
    found = watched(stock, "dense")
    assert found.code == 0, found.said
    assert found.results == stock.plain.results and found.answers == stock.plain.answers
    assert sorted(found.traces) == [0, 1, 2]
    words = AutoTokenizer.from_pretrained(stock.folder)
    for number, trace in found.traces.items():
        assert QUESTIONS[number] in trace.question and trace.attention.sizes["layer"] == 4 and len(trace) == 5
        assert found.answers[number][0].strip() == words.decode(trace.token_ids, skip_special_tokens=True).strip()
    assert ("1 documents without a picture" in found.said) == (stock.options["limit"] == 4)


def test_a_pruner_takes_part_and_the_scores_are_those_of_its_answers(stock):
    found = watched(stock, "pruned", "--pruner", PRUNER, "--layers", "1,3")
    assert found.code == 0, found.said
    assert sorted(found.traces) == [0, 1, 2] and found.answers.get(3) == stock.plain.answers.get(3)
    words = AutoTokenizer.from_pretrained(stock.folder)
    for number, trace in found.traces.items():
        assert found.answers[number][0].strip() == words.decode(trace.token_ids, skip_special_tokens=True).strip()
        assert found.answers[number][1] == sum(map(ord, found.answers[number][0])) % 97
        assert trace.layers == [1, 3] and trace.meta["pruner"]["budget"] == 0.25
        assert trace.k is not None and np.abs(trace.k.values[1:] - 0.25 * len(trace.grid)).max() <= 0.5


@pytest.mark.parametrize("stock", ["llava_hf"], indirect=True)
def test_what_cannot_be_right_ends_in_an_error_and_not_in_scores(stock):
    cached = watched(stock, "cached", use_cache=stock.out / "answers")
    assert cached.code == 2 and "does not know of pruners" in cached.said and not cached.traces
    refused = watched(stock, "refused", "--pruner", "lookm")
    assert refused.code == 2 and "\nerror: lookm edits the cache" in refused.said, refused.said
    assert not refused.traces
