"""Stored traces in the place of a model: the authors' statistics of their files, and notebooks that load nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from exchanged import authors_fields, own, save
from in_process import run_in_process
from typer.testing import CliRunner

import visionpulse_analysis as vpa
from visionpulse_analysis.cli import app
from visionpulse_analysis.experiments.stored_traces import StoredTraces, picture_of
from visionpulse_analysis.figures import read_provenance
from visionpulse_analysis.studies.authors_figures.figures import activation_page, even_steps
from visionpulse_analysis.studies.mass_and_usage.measure import mass_usage
from visionpulse_analysis.studies.trace_length.measure import stored_ways
from visionpulse_analysis.traces import create_trace
from visionpulse_analysis.traces.exchange import read_npz

LENGTHS = (9, 12, 7)


def files_of(folder):
    """Three files of the authors' collector, the last without its picture; their fields."""
    fields = [authors_fields(steps) for steps in LENGTHS]
    for number, one in enumerate(fields):
        save(folder / f"sample_{number:04d}", one, picture=number < 2)
    return fields


@pytest.fixture
def theirs(tmp_path):
    """Fields of three files, and the path of a store with them."""
    fields = files_of(tmp_path / "files")
    store = vpa.TraceStore(tmp_path / "theirs", mode="a")
    for path in sorted((tmp_path / "files").rglob("trace.npz")):
        store.add(read_npz(path, id=path.parent.name))
    return fields, store.path


class TestStoredTraces:
    def test_they_are_what_was_imported(self, theirs):
        fields, path = theirs
        stored = StoredTraces(path)
        assert stored.chosen_layer(-1) == stored.chosen_layer(2) == 2 and stored.weights_hash is None
        for trace, one in zip(stored.traces, fields, strict=True):
            assert np.array_equal(trace.attention.values[:, 0], one["visual_scores"])
        assert [sample.question for sample in stored.samples] == ["where ?"] * 3
        assert "3 stored traces of m. No model is loaded" in stored.about
        grey = picture_of(stored.traces[2])
        assert grey.shape == (48, 64, 3) and len(np.unique(grey)) == 1 and np.array_equal(stored.samples[2].image, grey)

    def test_what_must_not_be_pooled_is_left_out_or_refused(self, theirs, tmp_path):
        _, path = theirs
        store = vpa.TraceStore(path, mode="a")
        store.add(own(pruned=True))
        stored = StoredTraces(path)
        assert len(stored.traces) == 3 and "(1 pruned left out)" in stored.about
        other = read_npz(save(tmp_path / "other", authors_fields(5, model="another")), id="zz")
        store.add(other)
        with pytest.raises(ValueError, match=r"whose model differs.*'sample_0000' has 'm', 'zz' has 'another'"):
            StoredTraces(path)
        store.add(other.with_meta({**other.meta, "model": "m", "attention": "sparse"}), overwrite=True)
        with pytest.raises(ValueError, match=r"whose attention differs.*'zz' has 'sparse'"):
            StoredTraces(path)

    def test_layers_that_are_not_there_are_named(self, theirs, tmp_path):
        _, path = theirs
        with pytest.raises(ValueError, match=r"not layer 5; layers of all of them: \[2\]"):
            StoredTraces(path).chosen_layer(5)
        store = vpa.TraceStore(tmp_path / "own", mode="a")
        store.add(own(pruned=False).with_meta({"id": "own", "pruner": None}))
        with pytest.raises(ValueError, match=r"several layers, choose one; layers of all of them: \[2, 7\]"):
            StoredTraces(store.path).chosen_layer(-1)
        assert StoredTraces(store.path).chosen_layer(7) == 7

    def test_a_store_without_dense_traces_says_so(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no trace store at"):
            StoredTraces(tmp_path / "none")
        store = vpa.TraceStore(tmp_path / "store", mode="a")
        with pytest.raises(ValueError, match="it is empty"):
            StoredTraces(store.path)
        store.add(own(pruned=True))
        with pytest.raises(ValueError, match="holds no finished dense trace; 1 pruned left out"):
            StoredTraces(store.path)


class TestPictures:
    def test_correlation_at_chosen_thresholds_is_that_of_all_their_steps(self, theirs):
        fields, path = theirs
        thresholds = [0.03, 0.1]
        result = mass_usage(StoredTraces(path).traces, 2, thresholds=thresholds, n_resamples=20, n_permutations=10)
        rows = np.concatenate([one["visual_scores"].astype(np.float64) for one in fields])
        for relation, threshold in zip(result.paper, thresholds, strict=True):
            r = np.corrcoef(rows.sum(1), (rows > threshold).sum(1))[0, 1]
            assert relation.pooled.value == pytest.approx(r, rel=1e-12)
        for wrong in ([], [0.1, 0.1], [0.0], [2.0]):
            with pytest.raises(ValueError, match="thresholds are shares of attention between 0 and 1, each once"):
                mass_usage(StoredTraces(path).traces, 2, thresholds=wrong)

    def test_activation_pictures_show_the_chosen_steps_and_levels(self, theirs):
        _, path = theirs
        trace = StoredTraces(path).traces[0]
        assert even_steps(trace) == [0, 4, 8] and even_steps(trace, 20) == list(range(9))
        page = activation_page(trace, 2, [1, 5, 6, 8], [25, 50, 75])
        pictures = [ax for ax in page.get_axes() if ax.get_title()]
        assert [ax.get_title().partition("\n")[0] for ax in pictures] == ["step 1", "step 5", "step 6", "step 8"] * 3
        for ax, level in zip(pictures, np.repeat([25, 50, 75], 4), strict=True):
            step = int(ax.get_title().split()[1])
            scores = trace.attention.values[step, 0].reshape(3, 4)
            black = np.asarray(ax.images[1].get_array())[..., 3] == 1
            assert np.array_equal(black, scores <= np.percentile(scores, level))
        for steps, levels in (([9], [50]), ([], [50]), ([1], [])):
            with pytest.raises(ValueError, match="step"):
                activation_page(trace, 2, steps, levels)


class TestCommand:
    """``visionpulse pictures``: the authors' three, from a store."""

    def call(self, *words, code=0):
        result = CliRunner().invoke(app, ["pictures", *map(str, words)])
        assert result.exit_code == code, result.output
        return result

    def test_all_three_with_their_numbers(self, theirs, tmp_path):
        fields, path = theirs
        words = ("--threshold", 0.03, "--threshold", 0.1, "--step", 1, "--step", 5, "--level", 40, "--json")
        result = json.loads(self.call(path, "--out", tmp_path / "out", "--sample", "sample_0001", *words).stdout)
        names = {"correlation", "similarity", "activation"}
        assert {drawn.stem for drawn in map(Path, result["figures"])} == names
        for name in names:
            found = read_provenance(tmp_path / "out" / f"{name}.png")
            assert found["data_hash"] and found["parameters"]["thresholds"] == [0.03, 0.1]
        assert read_provenance(tmp_path / "out" / "activation.png")["parameters"]["steps"] == [1, 5]
        rows = np.concatenate([one["visual_scores"].astype(np.float64) for one in fields])
        r = np.corrcoef(rows.sum(1), (rows > 0.03).sum(1))[0, 1]
        assert result["correlation"]["above 0.03"]["estimate"] == pytest.approx(r, rel=1e-12)
        mean = np.mean([one["similarity_by_step"].astype(np.float64).mean(0) for one in fields], axis=0)
        assert np.allclose(result["similarity"]["matrix"], mean, rtol=1e-12)
        assert result["similarity"]["layers"] == [0, 1, 2, 3, 4]

    def test_traces_of_one_layer_have_no_similarity_and_it_says_so(self, tmp_path):
        store = vpa.TraceStore(tmp_path / "s", mode="a")
        store.add(read_npz(save(tmp_path / "f", authors_fields(8, all_layers=False))))
        result = self.call(store.path, "--out", tmp_path / "out")
        assert "similarity left out: similarity compares layers" in result.stdout
        assert {path.stem for path in (tmp_path / "out").glob("*.png")} == {"correlation", "activation"}

    def test_wrong_requests_are_one_line_and_draw_nothing(self, theirs, tmp_path):
        for words, message in (
            (("--step", 12), "step 12 is marked, but the trace has steps 0 to 8"),
            (("--level", 101), "percentile is 101"),
            (("--threshold", 2), "thresholds are shares of attention"),
            (("--sample", "x"), "no trace 'x'"),
            (("--layer", 9), "not layer 9"),
        ):
            result = self.call(theirs[1], "--out", tmp_path / "out", *words, code=2)
            assert message in result.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "options", "drawn"),
    [
        ("01", {"steps": [2, 3], "levels": [40]}, {"01_step_dependence", "01_activation", "01_coverage"}),
        ("02", {"thresholds": [0.03, 0.1], "n_permutations": 10}, {"02_attention_mass_and_usage", "02_steps"}),
        ("05", {}, {"05_similarity", "05_mass"}),
    ],
)
def test_a_notebook_takes_stored_traces_and_loads_no_model(name, options, drawn, theirs, tmp_path, monkeypatch):
    def load(*given, **options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(vpa, "load", load, raising=False)
    run_in_process(name, traces=str(theirs[1]), out=str(tmp_path / "out"), **options)
    assert drawn <= {path.stem for path in (tmp_path / "out").glob("*.png")}


class TestStoredArms:
    """Dense and pruned traces of the same samples in place of decoding them."""

    SAMPLED = {"temperature": 1.0, "top_p": 1.0, "top_k": None}

    def made(self, id, number, steps, pruner=None, finished=True, **meta):
        trace = own(pruned=pruner is not None, tokens=["see "] * steps)
        names = ["attention", "mass"]
        names += [] if pruner is None else ["kept", "k", "budget", "pruner_mass"]
        meta = {"id": id, "question": "where ?", "seed": 3, "pruner": pruner, "finished": finished, **meta}
        return create_trace(
            **{name: trace.dataset[name].values for name in names}, layers=[2, 7], tokens=["see "] * steps,
            token_ids=np.arange(steps), logprobs=-np.ones(steps), grid=trace.grid, prompt_tokens=["where"],
            images=[np.full((30, 40, 3), 10 + number, np.uint8)], meta={"max_new_tokens": 30, **meta},
        )  # fmt: skip

    @pytest.fixture
    def store(self, tmp_path):
        """Eight samples, greedy and sampled: pruned traces are two tokens shorter, and the last one is cut off."""
        store = vpa.TraceStore(tmp_path / "arms", mode="a")
        pulse = vpa.VisionPulse.five_percent(4).to_dict()
        for way, extra in (("g", {}), ("s", {"sample": self.SAMPLED})):
            for number in range(8):
                steps = 10 + number
                store.add(self.made(f"{way}-dense-{number}", number, steps, **extra))
                cut = {"finished": False} if number == 7 else {}
                store.add(self.made(f"{way}-pulse-{number}", number, 30 if cut else steps - 2, pulse, **cut, **extra))
        store.add(self.made("s-dense-other", 0, 5, sample=self.SAMPLED, seed=4))  # another seed: it pairs with nothing
        return store

    def test_they_pair_by_question_pictures_and_seed(self, store):
        ways = stored_ways(StoredTraces(store.path, pruned=True))
        assert list(ways) == ["greedy", "sampled"]
        for arms in ways.values():
            assert arms.names == ["dense", "VisionPulse 5 %"] and len(arms.rows("dense")) == 8
            change = arms.changes["VisionPulse 5 %"]
            assert (change.n_pairs, change.n_both, change.tokens.value, change.truth) == (8, 7, -2, None)
            assert (change.cut_off.n_arm, change.cut_off.at_least) == (1, 30 - 17)
            kept = [store[f"g-pulse-{number}"].kept.values[1:].mean() for number in range(8)]
            assert change.retention == pytest.approx(np.mean(kept))

    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            ({"id": "zz"}, "'g-dense-0' and 'zz' are one sample in one arm"),
            ({"id": "x", "number": 9, "max_new_tokens": 60}, "several limits of tokens"),
            ({"id": "x", "number": 9, "finished": None}, "'x' lacks its picture, or does not say whether it ended"),
            ({"id": "x", "number": 9, "model": "another"}, "whose model differs"),
        ],
    )
    def test_what_cannot_be_paired_is_refused(self, store, extra, message):
        store.add(self.made(**{"number": 0, "steps": 5, **extra}))
        with pytest.raises(ValueError, match=message):
            stored_ways(StoredTraces(store.path, pruned=True))

    def test_a_store_without_pairs_says_so(self, theirs, tmp_path):
        store = vpa.TraceStore(tmp_path / "apart", mode="a")
        store.add(self.made("dense", 0, 5))
        with pytest.raises(ValueError, match="no pruned trace beside dense ones"):
            stored_ways(StoredTraces(store.path, pruned=True))
        store.add(self.made("pruned", 1, 5, {"name": "fastv", "layer": 2, "budget": 0.1}))
        with pytest.raises(ValueError, match=r"no sample and seed that all greedy arms have, dense, fastv\(layer"):
            stored_ways(StoredTraces(store.path, pruned=True))

    def test_the_notebook_draws_them_and_loads_no_model(self, store, tmp_path, monkeypatch, capsys):
        def load(*given, **options):
            raise AssertionError("a model was loaded")

        monkeypatch.setattr(vpa, "load", load, raising=False)
        run_in_process("03", traces=str(store.path), out=str(tmp_path / "out"))
        numbers = read_provenance(tmp_path / "out" / "03_trace_length.png")["numbers"]
        assert numbers["greedy"]["VisionPulse 5 %"]["tokens"]["estimate"] == -2
        said = capsys.readouterr().out
        assert "17 stored dense traces of unknown and 16 pruned. No model is loaded" in said
        assert "Cut off at the limit: 1 of 8 traces, densely 0" in said and "Accuracy" not in said
