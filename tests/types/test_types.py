"""Every type of the library's image-text-to-text mapping, as a tiny random model: what is recorded and what is refused.

`observing` says what is compared. The table in docs/types.md is what was seen here: a test fails where it differs.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import observing
import pytest
import torch
import transformers
import type_table
from observing import observe
from tiny_types import CLASSES, build

import visionpulse_analysis as vpa

PACKAGE = Path(vpa.__file__).parent

WRITE = os.environ.get("TYPE_TABLE") == "write"
SEEN: type_table.Results = {}


def picture():
    return observing.pictures()[0]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_type_shows_what_the_table_says_of_it(kind):
    SEEN[kind] = observe(kind)
    if not WRITE:
        assert SEEN[kind] == type_table.read()[transformers.__version__][kind], "run `make type-table`"


@pytest.mark.skipif(not WRITE, reason="writes the table")
def test_writing():
    assert set(SEEN) == set(CLASSES)
    type_table.write(transformers.__version__, SEEN)


@pytest.mark.skipif(WRITE, reason="one version after the other is being written")
def test_most_types_are_recorded_and_the_others_refused_by_name():
    seen = type_table.read()[type_table.pinned("constraints.txt")]
    assert sum(type_table.has(one, "rows", "tokens") for one in seen.values()) >= 85
    assert sum(type_table.has(one, "rows", "map") for one in seen.values()) >= 75
    for kind, one in seen.items():
        assert type_table.has(one, "rows", "tokens") or CLASSES[kind] in one["refused"]


def test_the_package_knows_no_type_by_name():
    rooms = [
        *(PACKAGE / "decoding" / "watching").glob("*.py"),
        *(PACKAGE / "models" / "locating").glob("*.py"),
        PACKAGE / "attention" / "routing.py",
    ]
    rooms.remove(PACKAGE / "decoding" / "watching" / "lmms_eval.py")  # lmms-eval's own names of models
    words = {word for path in rooms for word in re.findall(r"""["']([\w.-]+)["']""", path.read_text())}
    assert not words & set(CLASSES)


def test_a_hybrid_says_which_layers_are_recorded_and_what_hiding_does_not_reach():
    model, processor = build("qwen3_5")
    with vpa.watch(model, processor) as w:
        model.generate(**processor(picture(), "where ?"), max_new_tokens=2, do_sample=False)
    (trace,) = w.traces
    told = trace.meta["without_attention"]
    assert trace.layers == [1, 3] and told["layers"] == [0, 2] and "does not clear" in told["note"]


def test_rows_of_cross_attention_run_over_what_the_encoder_read():
    model, processor = build("mllama")
    with vpa.watch(model, processor) as w:
        model.generate(**processor(picture(), "where ?"), max_new_tokens=2, do_sample=False)
    (trace,) = w.traces
    assert trace.layers == trace.meta["cross_attention"]["layers"] == [1, 3]
    assert np.array_equal(trace.grid.position, np.arange(17))  # 16 patches and a class token
    assert np.abs(trace.mass.values - 1).max() < 1e-3  # there is nothing else to look at
    with (
        vpa.watch(model, processor, layers=0),
        pytest.raises(ValueError, match=r"layers \[0\].*those that have it are \[1, 3\]"),
    ):
        model.generate(**processor(picture(), "where ?"), max_new_tokens=2)


@pytest.mark.parametrize(
    ("kind", "pruner", "message"),
    [
        ("mllama", "fastv", "read by cross-attention"),
        ("t5gemma2", "random", "one softmax over the words and what an encoder read"),
    ],
)
def test_pruners_that_cannot_be_right_beside_cross_attention_are_refused(kind, pruner, message):
    model, processor = build(kind)
    with vpa.watch(model, processor, pruner=vpa.make_pruner(pruner)) as w, pytest.raises(ValueError, match=message):
        model.generate(**processor(picture(), "where ?"), max_new_tokens=3, do_sample=False)
    assert not w.traces


@pytest.mark.parametrize("kind", ["llava", "florence2", "idefics", "qwen3_5"])
def test_bad_input_is_one_clear_error_and_the_model_is_left_as_it_was(kind):
    model, processor = build(kind)
    inputs, before = processor(picture(), "where ?"), observing.state(model)
    with vpa.watch(model, processor) as w:
        with pytest.raises(RuntimeError, match="watched already"), vpa.watch(model, processor):
            pass
        model.train()
        with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
            model.generate(**inputs, max_new_tokens=2)
        model.eval()
        with pytest.raises(ValueError, match=r"no pictures|no image token|pixel_values"):
            model.generate(input_ids=torch.full((1, 5), 7), max_new_tokens=2)
        without_cache = model.generate(**inputs, max_new_tokens=3, do_sample=False, use_cache=False)
    assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), without_cache)
    assert len(w.traces) == 1 and len(w.traces[0].tokens) == 3
    assert observing.state(model) == before
    model.train()
    with pytest.raises(ValueError, match="training mode"), vpa.watch(model, processor):
        pass


@pytest.mark.skipif(WRITE, reason="one version after the other is being written")
def test_the_pages_have_the_table_of_what_was_seen():
    stored = type_table.read()
    assert sorted(stored) == sorted(type_table.versions()), "run `make type-table`"
    for page, text in ((type_table.PAGE, type_table.table(stored)), (type_table.MODELS, type_table.summary(stored))):
        assert type_table.between(page.read_text(), type_table.BEGIN, type_table.END, text) == page.read_text(), (
            "run `make type-table`"
        )
