"""Traces for other programs and back: nothing is lost on the way, and what cannot be said is refused."""

import hashlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from exchanged import PICTURE, assert_equal, assert_same, authors_fields, load, own, save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from visionpulse_analysis import figures
from visionpulse_analysis.metrics.attention import PAPER_THRESHOLDS, active_count, attention_mass
from visionpulse_analysis.traces import Trace
from visionpulse_analysis.traces.exchange import read_npz, write_npz
from visionpulse_analysis.traces.store import StoreVersionError, TraceStore


class TestAuthorsFiles:
    @pytest.mark.parametrize("picture", [True, False])
    @pytest.mark.parametrize("all_layers", [True, False])
    def test_there_and_back_through_a_store_loses_nothing(self, tmp_path, all_layers, picture):
        fields = authors_fields(all_layers=all_layers)
        assert not np.array_equal(fields["visual_scores"], fields["visual_scores"].astype(np.float16))
        store = TraceStore(tmp_path / "store", mode="a")
        store.add(read_npz(save(tmp_path / "in", fields, picture)))
        written = write_npz(store["vent"], tmp_path / "out" / "trace.npz")
        assert_equal(load(written[0]), fields)
        assert len(written) == 1 + picture
        if picture:
            with Image.open(written[1]) as image:
                assert np.array_equal(np.asarray(image), PICTURE)

    def test_the_trace_says_what_the_file_says(self, tmp_path):
        fields = authors_fields()
        trace = read_npz(save(tmp_path, fields))
        assert trace.attention.dtype == np.float32 and trace.layers == [2] and trace.heads is None
        assert np.array_equal(trace.attention[:, 0], fields["visual_scores"])
        assert trace.tokens == fields["token_texts"].tolist() and trace.grid.shape() == (3, 4)
        assert np.array_equal(trace.token_ids, fields["token_ids"]) and np.isnan(trace.logprobs).all()
        assert np.array_equal(trace.dataset["similarity"], fields["similarity_by_step"])
        assert trace.dataset["similarity_layer"].values.tolist() == [0, 1, 2, 3, 4]
        assert trace.grid.box[5].tolist() == [10, 10, 20, 20]  # pixels of the picture
        said = {"id": "vent", "question": "where ?", "model": "m", "seed": 42, "finished": True, "max_new_tokens": 256}
        assert {name: trace.meta[name] for name in said} == said
        assert trace.meta["trace_npz"]["sha256"] == hashlib.sha256((tmp_path / "trace.npz").read_bytes()).hexdigest()

    def test_measures_are_those_of_the_float32_rows(self, tmp_path):
        fields = authors_fields(40)
        trace = read_npz(save(tmp_path, fields))
        rows = trace.attention.values[:, 0]
        wanted = (fields["visual_scores"].astype(np.float64)[..., None] > PAPER_THRESHOLDS).sum(1)
        assert np.array_equal(active_count(rows, PAPER_THRESHOLDS), wanted)
        assert np.allclose(attention_mass(rows), trace.mass.values[:, 0], rtol=1e-6)

    def test_without_a_picture_boxes_count_patches(self, tmp_path):
        grid = read_npz(save(tmp_path, authors_fields(), picture=False)).grid
        assert grid.image_size.tolist() == [[3, 4]] and grid.box[5].tolist() == [1, 1, 2, 2]

    def test_a_picture_and_an_id_may_be_given(self, tmp_path):
        trace = read_npz(save(tmp_path, authors_fields(sample_id="a/b"), picture=False), image=PICTURE, id="a-b")
        assert trace.meta["id"] == "a-b" and np.array_equal(trace.images[0], PICTURE)

    @pytest.mark.parametrize("patches", [12, 1444])
    def test_rows_of_bfloat16_weights_are_read(self, tmp_path, patches):
        """Each weight rounded, and the mean over heads once more; the masses are at most 1 all the same."""
        weights = torch.full((6, 4, patches), 1.0 / patches)
        weights[1:] = torch.softmax(torch.randn(5, 4, patches, generator=torch.Generator().manual_seed(0)) * 4, dim=-1)
        rows = weights.bfloat16().mean(dim=1).float().numpy()
        rows[2] *= 1.004 / rows[2].sum(dtype=float)
        assert rows.sum(1, dtype=float).max() > 1.0015
        fields = authors_fields() | {"visual_scores": rows, "grid_hw": np.array([2, patches // 2])}
        trace = read_npz(save(tmp_path, fields, picture=False))
        assert np.array_equal(trace.attention.values[:, 0], rows)
        assert np.allclose(trace.mass.values[:, 0], np.minimum(rows.sum(1, dtype=float), 1), rtol=1e-6)
        figures.draw_mass_curve(figures.new_figure()[1], trace.mass.values[:, 0], trace.tokens)
        fields["visual_scores"] = rows * np.float32(1.01)
        with pytest.raises(ValueError, match=r"sums to 1\.014, softmax rows to at most 1"):
            read_npz(save(tmp_path, fields, picture=False))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"grid_hw": None}, ValueError, r"missing \['grid_hw'\]"),
            ({"extra": np.zeros(2)}, ValueError, r"unknown \['extra'\]"),
            ({"grid_hw": np.array([4, 4])}, ValueError, "grid_hw is 4 x 4, but there are 12 patches"),
            ({"grid_hw": np.array([-3, -4])}, ValueError, "grid_hw is -3 x -4"),
            ({"visual_scores": np.zeros((5, 12), np.float32)}, ValueError, "token_ids has shape"),
            ({"visual_scores": np.full((6, 12), np.nan, np.float32)}, ValueError, "not finite"),
            ({"visual_scores": np.full((6, 12), -0.1, np.float32)}, ValueError, "negative"),
            ({"visual_scores": np.full((6, 12), 0.5, np.float32)}, ValueError, "sums to 6"),
            ({"visual_scores": np.full((6, 12), 0.01)}, ValueError, "float64 and does not fit float32"),
            ({"token_texts": np.zeros(6)}, ValueError, "token_texts has shape"),
            ({"layer_indices": np.array([7, 8, 9, 10, 11])}, ValueError, "its layer is 2, but layer_indices is"),
            ({"similarity_by_step": np.zeros((6, 4, 4), np.float32)}, ValueError, "similarity_by_step has shape"),
            ({"metadata": np.asarray("{")}, ValueError, "metadata is no JSON"),
            ({"metadata": np.asarray("[1]")}, StoreVersionError, "format version None"),
            ({"metadata": np.asarray('{"format_version": 2}')}, StoreVersionError, "version 2, .* version 1"),
        ],
    )  # fmt: skip
    def test_what_does_not_fit_is_named(self, tmp_path, change, error, message):
        fields = {name: array for name, array in {**authors_fields(), **change}.items() if array is not None}
        with pytest.raises(error, match=rf"trace\.npz.*{message}"):
            read_npz(save(tmp_path, fields))


class TestOwnTraces:
    @pytest.mark.parametrize("heads", [False, True])
    @pytest.mark.parametrize("pruned", [False, True])
    def test_the_same_trace_comes_back(self, tmp_path, heads, pruned):
        trace = own(heads, pruned)
        write_npz(trace, tmp_path / "trace.npz", layer=7)
        assert_same(read_npz(tmp_path / "trace.npz"), trace)

    def test_the_authors_fields_say_the_same(self, tmp_path):
        trace = own(heads=True)
        write_npz(trace, tmp_path / "trace.npz", layer=7, whole=False)
        fields = load(tmp_path / "trace.npz")
        mean = trace.attention.values[:, 1].astype(np.float32).mean(1)
        assert fields["visual_scores"].dtype == np.float32 and np.array_equal(fields["visual_scores"], mean)
        assert fields["token_texts"].tolist() == trace.tokens and np.array_equal(fields["token_ids"], trace.token_ids)
        about = json.loads(fields["metadata"].item())
        assert (about["format_version"], about["layer"], about["sample_id"]) == (1, 7, "own")
        a, b = (trace.attention.values[:, i].astype(float).mean(1) for i in (0, 1))
        cosine = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
        assert np.allclose(fields["similarity_by_step"][:, 0, 1], cosine, rtol=1e-6)
        again = read_npz(tmp_path / "trace.npz")  # now another program's file: one layer, and no more
        assert again.layers == [7] and np.array_equal(again.attention[:, 0], mean) and again.kept is None

    def test_it_says_what_its_rows_are_as_the_authors_tools_ask(self, tmp_path):
        """They pool by this text: dense head means carry the authors' own, other rows others."""

        def said(trace, **meta):
            changed = trace.with_meta({**trace.meta, **meta})
            write_npz(changed, tmp_path / "trace.npz", layer=7, whole=False, overwrite=True)
            return json.loads(load(tmp_path / "trace.npz")["metadata"].item())["attention"]

        theirs = "dense eager, head-mean probabilities, temperature=1"
        assert said(own(pruned=False), pruner=None) == theirs
        assert said(own(heads=True, pruned=False), pruner=None) == (
            "dense, mean of the probabilities of heads [0, 2, 5], temperature=1"
        )
        every = own(heads=True, pruned=False).dataset.assign_coords(head=[0, 1, 2])
        assert said(Trace(every), pruner=None, costs={"shape": {"heads": 3}}) == theirs
        assert said(Trace(every), pruner=None, costs={"shape": {"heads": 4}}) != theirs
        words = {said(own(), pruner={"name": "visionpulse", "budget": budget}) for budget in (0.05, 0.1)}
        assert len(words) == 2 and all("pruned by visionpulse(budget=0." in word for word in words)

    def test_it_says_how_tokens_were_drawn(self, tmp_path):
        drawn = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
        trace = own().with_meta({**own().meta, "sample": drawn, "max_new_tokens": 9})
        write_npz(trace, tmp_path / "trace.npz", layer=7, whole=False)
        said = json.loads(load(tmp_path / "trace.npz")["metadata"].item())["generation"]
        assert said == {"max_new_tokens": 9, "do_sample": True, "use_cache": True, **drawn}
        assert read_npz(tmp_path / "trace.npz").meta["sample"] == drawn
        write_npz(own(), tmp_path / "greedy.npz", layer=7, whole=False, overwrite=True)
        assert json.loads(load(tmp_path / "greedy.npz")["metadata"].item())["generation"]["do_sample"] is False

    def test_a_change_by_another_program_is_noticed(self, tmp_path):
        write_npz(own(), tmp_path / "trace.npz", layer=2)
        fields = load(tmp_path / "trace.npz")
        fields["visual_scores"][0, 0] += 0.01
        np.savez(tmp_path / "trace.npz", **fields)
        with pytest.raises(ValueError, match=r"was changed since it was written: \['visual_scores'\]"):
            read_npz(tmp_path / "trace.npz")

    def test_what_the_format_cannot_say_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="one still image; this trace has 5 steps, 2 images"):
            write_npz(own(images=2), tmp_path / "t.npz", layer=2)
        with pytest.raises(IndexError, match=r"several layers were recorded, \[2, 7\]: choose one"):
            write_npz(own(), tmp_path / "t.npz")
        with pytest.raises(ValueError, match="0 steps"):
            write_npz(own(tokens=[], pruned=False), tmp_path / "t.npz", layer=2)
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_replaced_unasked_and_nothing_half_written(self, tmp_path, monkeypatch):
        (tmp_path / "image.png").write_bytes(b"mine")
        with pytest.raises(FileExistsError, match=r"image\.png exists"):
            write_npz(own(), tmp_path / "trace.npz", layer=2)
        write_npz(own(), tmp_path / "trace.npz", layer=2, overwrite=True)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert set(before) == {"trace.npz", "image.png"}

        def full(file, **arrays):
            file.write(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "savez_compressed", full)
        with pytest.raises(OSError, match=r"No space left.*free some space.*nothing was written"):
            write_npz(own(), tmp_path / "trace.npz", layer=2, overwrite=True)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-marker"),))


class TestHostileFiles:
    def test_pickles_are_not_opened(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        fields = authors_fields() | {"metadata": np.array(Evil(), dtype=object)}
        np.savez(tmp_path / "trace.npz", **fields)
        with pytest.raises(ValueError, match=r"trace\.npz is not a readable trace\.npz: Object arrays"):
            read_npz(tmp_path / "trace.npz")
        (tmp_path / "trace.npz").write_bytes(pickle.dumps(Evil()))
        with pytest.raises(ValueError, match="is not a readable"):
            read_npz(tmp_path / "trace.npz")
        assert not Path("evil-marker").exists()

    def test_names_inside_an_archive_lead_nowhere(self, tmp_path):
        (tmp_path / "in").mkdir()
        with zipfile.ZipFile(tmp_path / "in" / "trace.npz", "w") as archive:
            for name in ("../escaped.npy", "/escaped.npy", "visionpulse.../../escaped.npy"):
                buffer = io.BytesIO()
                np.save(buffer, np.zeros(3))
                archive.writestr(name, buffer.getvalue())
        with pytest.raises(ValueError, match="is not a trace"):
            read_npz(tmp_path / "in" / "trace.npz")
        assert [path.name for path in tmp_path.rglob("*")] == ["in", "trace.npz"]

    def test_bombs_are_not_unpacked(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "trace.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("visual_scores.npy", b"")
        content = bytearray((tmp_path / "trace.npz").read_bytes())
        central = content.rindex(b"PK\x01\x02")
        content[central + 24 : central + 28] = (2**32 - 2).to_bytes(4, "little")  # the size it claims to have
        (tmp_path / "trace.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"'visual_scores\.npy' would unpack from 2 to 4294967294 bytes"):
            read_npz(tmp_path / "trace.npz")

    @settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def test_damage_anywhere_is_an_error_or_the_whole_trace(self, tmp_path, data):
        path = save(tmp_path, authors_fields(3), picture=False)
        whole, content = read_npz(path), bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        else:
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        try:
            assert read_npz(path).data_hash == whole.data_hash
        except ValueError as error:
            assert str(path) in str(error)
