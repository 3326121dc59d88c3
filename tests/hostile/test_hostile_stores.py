"""Damaged stores and strange names: what was written, or one clear error."""

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.traces import Trace, create_trace
from visionpulse_analysis.traces import zarr_group as files
from visionpulse_analysis.traces.store import TraceStore

GRID = PatchGrid.from_grid(range(6), rows=2, cols=3, image_sizes=[(16, 24)])
quickly = settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))


def made(id: str, steps: int = 5, seed: int = 0) -> Trace:
    random = np.random.default_rng(seed)
    attention = random.dirichlet(np.ones(8), (steps, 2))[..., :6].astype(np.float16)
    return create_trace(
        **{"attention": attention, "mass": attention.astype(np.float32).sum(-1), "grid": GRID, "layers": [1, 4]},
        **{"tokens": [f"w{t} " for t in range(steps)], "token_ids": list(range(steps))},
        logprobs=-random.random(steps),
        kept=random.random((steps, 6)) < 0.5,
        images=[random.integers(0, 256, (16, 24, 3), dtype=np.uint8)],
        prompt_tokens=["where"],
        meta={"id": id, "question": "where ?", "seed": seed},
    )


def stream(store: TraceStore, trace: Trace, **options):
    """A writer that has written every step of a trace."""
    writer = store.writer(
        trace.meta["id"],
        **{"grid": trace.grid, "layers": trace.layers, "images": trace.images, "prompt_tokens": trace.prompt_tokens},
        optional=("kept",),
        meta={name: trace.meta[name] for name in ("question", "seed")},
        **options,
    )
    assert trace.kept is not None
    for t, token in enumerate(trace.tokens):
        arrays = {"attention": trace.attention[t], "mass": trace.mass[t], "kept": trace.kept[t]}
        writer.append(token=token, token_id=trace.token_ids[t], logprob=trace.logprobs[t], **arrays)
    return writer


def everything(trace: Trace) -> tuple[str, dict]:
    trace.dataset.load()
    return trace.data_hash, trace.meta


def corrupt(data, path: Path) -> None:
    """Change some bytes of a file, cut it, or append to it."""
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        change = data.draw(st.sampled_from(["flip", "cut", "insert", "append"]))
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        noise = data.draw(st.binary(min_size=1, max_size=4))
        if change == "flip" and content:
            content[place] ^= noise[0] or 1
        elif change == "cut":
            del content[place:]
        else:
            content[place if change == "insert" else len(content) :][:0] = noise
    path.write_bytes(content)


@quickly
@given(st.data())
def test_a_whole_trace_with_any_file_damaged_is_itself_or_an_error(data):
    with tempfile.TemporaryDirectory() as folder:
        store = TraceStore(Path(folder) / "s", mode="a")
        store.add(made("a"))
        store.add(made("other", seed=1))
        names = sorted(path for path in (store.path / "a").rglob("*") if path.is_file())
        corrupt(data, data.draw(st.sampled_from(names)))
        try:
            assert everything(store["a"]) == everything(made("a"))
        except ValueError as error:
            assert str(store.path / "a") in str(error)
        assert store.ids == ["a", "other"] and everything(store["other"]) == everything(made("other", seed=1))


def test_a_file_of_a_whole_trace_cut_at_any_byte_is_noticed(tmp_path):
    made("a").save(tmp_path / "a")
    for file in sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file()):
        content = file.read_bytes()
        for cut in {*range(0, len(content), max(1, len(content) // 12)), len(content) - 1}:
            file.write_bytes(content[:cut])
            with pytest.raises(ValueError, match=re.escape(str(tmp_path / "a"))):
                everything(Trace.open(tmp_path / "a"))
        file.write_bytes(content)
    assert everything(Trace.open(tmp_path / "a")) == everything(made("a"))


@quickly
@given(st.data())
def test_a_damaged_journal_holds_a_beginning_of_what_was_written(data):
    with tempfile.TemporaryDirectory() as folder:
        store, whole = TraceStore(Path(folder) / "s", mode="a"), made("a")
        stream(store, whole).abandon()
        corrupt(data, store.path / ".a.journal")
        try:
            found = store["a"]
        except ValueError as error:
            assert str(store.path / ".a.journal") in str(error)
            return
        assert found.meta["complete"] is False and found.tokens == whole.tokens[: len(found)]
        assert np.array_equal(found.attention, whole.attention[: len(found)])
        assert whole.kept is not None and np.array_equal(found.kept, whole.kept[: len(found)])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**16) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def edited(data, value):
    """The same JSON with one part of it, at any depth, replaced or left out."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 5)):
        key = data.draw(st.sampled_from(sorted(value)))
        if data.draw(st.integers(0, 5)) == 0:
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: edited(data, value[key])}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(value) - 1))
        return [*value[:place], edited(data, value[place]), *value[place + 1 :]]
    return data.draw(json_values)


@quickly
@given(st.data())
def test_edited_metadata_is_noticed(data):
    with tempfile.TemporaryDirectory() as folder:
        made("a").save(Path(folder) / "a")
        file = data.draw(st.sampled_from(sorted((Path(folder) / "a").rglob("zarr.json"))))
        before = json.loads(file.read_text())
        after = edited(data, before)
        file.write_text(json.dumps(after))
        try:
            assert everything(Trace.open(Path(folder) / "a")) == everything(made("a"))
        except ValueError as error:
            assert str(Path(folder) / "a") in str(error)


PLAUSIBLE = {
    "a token": ("zarr.json", '"w1 "', '"w9 "'),
    "the question": ("zarr.json", '"where ?"', '"who ?"'),
    "a layer": ("zarr.json", "[1, 4]", "[1, 5]"),
    "the byte order": ("mass/zarr.json", '"little"', '"big"'),
}


@pytest.mark.parametrize("edit", PLAUSIBLE)
def test_an_edit_that_would_make_sense_is_noticed(tmp_path, edit):
    made("a").save(tmp_path / "a")
    name, before, after = PLAUSIBLE[edit]
    content = json.dumps(json.loads((tmp_path / "a" / name).read_text()))
    assert before in content
    (tmp_path / "a" / name).write_text(content.replace(before, after))
    with pytest.raises(ValueError, match=r"damaged .*(it was changed)"):
        everything(Trace.open(tmp_path / "a"))


def test_a_missing_chunk_is_noticed_although_another_file_takes_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CHUNK_BYTES", 24)
    made("a").save(tmp_path / "a")
    (tmp_path / "a" / "attention" / "3.0.0").rename(tmp_path / "a" / "attention" / "3.0.0 (copy)")
    with pytest.raises(ValueError, match=r"attention is damaged .its chunk files are"):
        Trace.open(tmp_path / "a")


def test_codecs_that_we_do_not_write_are_not_run(tmp_path):
    made("a").save(tmp_path / "a")
    for file in (tmp_path / "a" / "zarr.json", tmp_path / "a" / "kept" / "zarr.json"):
        found = json.loads(file.read_text())
        for name in ("sha256", "array_sha256"):
            found["attributes"].pop(name, None)
        if "codecs" in found:
            found["codecs"].append({"name": "pickle", "configuration": {}})
        file.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"kept is damaged .its codecs are .*'pickle'"):
        Trace.open(tmp_path / "a")


def test_a_trace_that_was_replaced_while_open_is_not_mixed_with_the_new_one(tmp_path):
    made("a").save(tmp_path / "a")
    lazy = Trace.open(tmp_path / "a")
    made("a", seed=1).save(tmp_path / "a", overwrite=True)
    with pytest.raises(ValueError, match="was replaced by another trace since it was opened; open it again"):
        lazy.attention.load()
    assert everything(Trace.open(tmp_path / "a")) == everything(made("a", seed=1))


def test_names_that_are_no_ids_are_not_listed(tmp_path):
    store = TraceStore(tmp_path / "s", mode="a")
    store.add(made("a"))
    for name in (".a b.journal", "..journal", ".journal", "b.journal", ".\n.journal", "a b", ".x.journal.tmp-1"):
        (store.path / name).write_bytes(b"x")
    (store.path / "c d").mkdir()
    assert store.ids == ["a"]


def test_ids_are_checked_before_anything_is_decoded(vlm, pictures, tmp_path):
    import visionpulse_analysis as vpa

    store = TraceStore(tmp_path / "s", mode="a")
    store.add(made("b"))
    for ids, error in ((["a", "b"], FileExistsError), (["a", "../b"], ValueError)):
        with pytest.raises(error):
            vpa.decode(vlm, pictures[0], ["where ?"] * 2, max_new_tokens=1, store=store, ids=ids)
        assert store.ids == ["b"]
